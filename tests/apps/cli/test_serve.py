"""`shoal serve` as it is started: a process of its own, its routes, how it ends, whom it does not let in."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from shoal.apps.cli import cluster
from shoal.apps.cli.cluster import Deployment, Replicas
from shoal.apps.cli.registry import Place
from shoal.apps.cli.serve import Address, check_service, serve
from shoal.config import EngineConfig, ServiceConfig
from shoal.errors import ShoalError, UsageError
from shoal.models.backbone import pick_device, pick_dtype
from shoal.registry.registry import Registry
from shoal.server.engines import open_engine
from shoal.server.middleware import MAX_HEADER_BYTES

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 120  # for what a busy machine may take long for; nothing is measured


@pytest.fixture(scope="module")
def served(
    tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`shoal serve --open` of the tiny model, and its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    registry = tmp_path_factory.mktemp("serve") / "registry"
    command = [
        sys.executable,
        "-m",
        "shoal.apps.cli.main",
        "serve",
        "--open",
        "--dtype",
        "float32",
        "--base",
        str(tiny_llama),
    ]
    process = subprocess.Popen(
        [*command, "--dtype", "float32", "--port", str(port), "--registry", str(registry)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url, until = f"http://127.0.0.1:{port}", time.monotonic() + SECONDS
        while True:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until, "the service does not start"
            try:
                with socket.create_connection(("127.0.0.1", port), 1):
                    break
            except OSError:
                time.sleep(0.1)
        yield process, url
    finally:
        process.kill()
        process.communicate()


def test_the_command_serves_and_ends_when_it_is_told_to(
    served: tuple[subprocess.Popen[str], str], tiny_llama: Path
) -> None:
    process, url = served
    chat = {"messages": [{"role": "user", "content": "Say something."}], "max_tokens": 4, "temperature": 0}
    with httpx2.Client(base_url=url, timeout=SECONDS) as http:
        assert [m["id"] for m in http.get("/v1/models").json()["data"]] == [str(tiny_llama)]
        answer = http.post("/v1/chat/completions", json={"model": str(tiny_llama), **chat})
        assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 4
        assert "server" not in answer.headers
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: "
    for length, status in ((MAX_HEADER_BYTES // 2, b"200"), (MAX_HEADER_BYTES, b"431"), (2**20, b"400")):
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), SECONDS) as connection:
            with suppress(ConnectionError):  # what is too much is not read
                connection.sendall(head + b"a" * length + b"\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 " + status), length
    process.send_signal(signal.SIGTERM)
    said, complaints = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, complaints
    assert said == "stopped\n" and "Traceback" not in complaints


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "float16"])
def test_the_model_has_the_dtype_that_was_asked_for(
    tiny_llama: Path, tmp_path: Path, dtype: str | None
) -> None:
    registry, engine = Registry(tmp_path / "r"), EngineConfig(dtype=dtype)
    answering = open_engine(
        registry, str(tiny_llama), engine, ServiceConfig(), lambda record: None, backbone=None, experts=None
    )
    chosen = getattr(torch, dtype) if dtype else pick_dtype(pick_device())
    assert {w.dtype for w in answering.backbone.model.parameters()} == {chosen}
    answering.close()
    registry.close()


def test_a_dtype_that_cannot_be_had_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="dtype int8: "):
        EngineConfig(dtype="int8")
    registry = Registry(tmp_path / "r")
    engine = EngineConfig(engine="vllm", vllm_url="http://127.0.0.1:9", dtype="float32")
    with pytest.raises(UsageError, match="--dtype float32 is not for --engine vllm"):
        open_engine(
            registry, str(tiny_llama), engine, ServiceConfig(), lambda _: None, backbone=None, experts=None
        )
    registry.close()


def test_a_port_that_another_service_has_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.server.service.open_service", lambda *given, **more: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = Address(open=True, port=other.getsockname()[1])
        with pytest.raises(ShoalError, match=f"cannot listen on 127.0.0.1:{address.port}: .*in use"):
            serve(address, Place(registry=tmp_path / "r"), EngineConfig(), ServiceConfig())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_nobody_is_let_in_from_outside_without_a_key(host: str) -> None:
    with pytest.raises(UsageError, match="would let anyone in"):
        check_service(Address(open=True, host=host))
    check_service(Address(host=host))  # keys are asked for


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_machine_may_go_without(host: str) -> None:
    check_service(Address(open=True, host=host))


@pytest.mark.parametrize("mode", ["disabled", "", "TOKENS"])
def test_ray_is_not_started_without_a_token(
    mode: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed; pip install 'shoal[cluster]'")
    import ray

    def never(**_: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", never)
    monkeypatch.setenv(cluster.AUTH_VARIABLE, mode)
    deployment = Deployment(place=Place(registry=tmp_path), service=ServiceConfig(), replicas=Replicas())
    with pytest.raises(UsageError, match="lets anyone who reaches Ray's ports run code"):
        cluster._start_ray(deployment)
