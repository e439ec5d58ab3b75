"""What has gone wrong in systems like this one, and that it cannot here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from sqlalchemy import create_engine, make_url
from starlette.testclient import TestClient

from shoal.adapters.files import WEIGHTS_FILE
from shoal.config import EngineConfig, ServiceConfig
from shoal.inference.engine.records import Request
from shoal.models.backbone import load_backbone
from shoal.registry.api_keys import ApiKeys
from shoal.registry.registry import Registry
from shoal.server.app import create_app
from shoal.server.json_logs import JsonLines
from shoal.server.service import Service, open_service

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Say something."}], "max_tokens": 4}
FREELY = {"requests_per_minute": 10**6, "tokens_per_minute": 10**9}


@pytest.fixture(scope="module")
def service(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    limits = {**FREELY, "max_tokens": 8, "max_adapters": 50}
    registry = Registry(tmp_path_factory.mktemp("security") / "registry")
    service = open_service(registry, str(tiny_llama), ServiceConfig(**limits))
    yield service
    service.close()


@pytest.fixture(scope="module")
def app(service: Service) -> FastAPI:
    return create_app(service)


@pytest.fixture(scope="module")
def http(service: Service, app: FastAPI) -> TestClient:
    key = service.keys.create("ada")
    return TestClient(app, headers={"Authorization": f"Bearer {key}"}, raise_server_exceptions=False)


def small(
    tiny_llama: Path, root: Path, url: str | None = None, **limits: float
) -> tuple[Service, TestClient]:
    service = open_service(Registry(root, url), str(tiny_llama), ServiceConfig(**limits))
    key = service.keys.create("ada")
    client = TestClient(
        create_app(service), headers={"Authorization": f"Bearer {key}"}, raise_server_exceptions=False
    )
    return service, client


def post_of(key: str, body: bytes, lengths: str | None = None) -> bytes:
    """The bytes of a request for a chat."""
    stated = f"Content-Length: {len(body)}" if lengths is None else lengths
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
    return f"{head}Content-Type: application/json\r\n{stated}\r\n\r\n".encode() + body


def is_error(answer: Any, status: int) -> bool:
    """Whether an answer is an OpenAI error body of this status without a trace of Python."""
    body = answer.json()
    return (
        answer.status_code == status
        and set(body) == {"error"}
        and set(body["error"]) == {"message", "type", "param", "code"}
        and "Traceback" not in answer.text
        and 'File "' not in answer.text
    )


def routes(app: FastAPI) -> list[tuple[str, str]]:
    table = app.openapi()["paths"]
    found = [(method.upper(), path) for path, methods in table.items() for method in methods]
    assert len(found) > 20
    return [*found, ("GET", "/openapi.json")]


def test_every_route_wants_a_key(app: FastAPI, http: TestClient, service: Service) -> None:
    right = http.headers["Authorization"]
    revoked = service.keys.create("ada")
    service.keys.revoke(revoked.split("-")[2])
    bare = TestClient(app, raise_server_exceptions=False)
    for method, path in routes(app):
        path = path.replace("{name}", "nobody").replace("{identity}", "0")
        for wrong in ("", "Bearer", "Bearer x", right[:-1], right + "x", "Basic YTpi", f"Bearer {revoked}"):
            answer = bare.request(method, path, headers={"Authorization": wrong} if wrong else {})
            if path in ("/health", "/ready"):
                assert answer.status_code == 200
            else:
                assert is_error(answer, 401) and answer.headers["www-authenticate"] == "Bearer", (path, wrong)
        answer = http.request(method, path)
        assert answer.status_code in (200, 400, 404), (method, path, answer.text)
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["x-request-id"]


def test_no_route_is_hidden_from_the_schema(app: FastAPI) -> None:
    declared = {path for _, path in routes(app)}
    own = {route.path.replace("{name:path}", "{name}") for route in app.routes if isinstance(route, APIRoute)}
    assert own <= declared


def refused(http: TestClient, service: Service) -> dict[str, tuple[int, Any]]:
    model = service.base_names[0]
    chat = {"model": model, **ASK}
    post = http.post
    return {
        "n": (400, post("/v1/chat/completions", json={**chat, "n": 100})),
        "choices": (400, post("/v1/completions", json={"model": model, "prompt": ["a"] * 5, "n": 2})),
        "max_tokens": (400, post("/v1/chat/completions", json={**chat, "max_tokens": 9})),
        "many tokens": (400, post("/v1/chat/completions", json={**chat, "max_tokens": 2**40})),
        "a long prompt": (400, post("/v1/completions", json={"model": model, "prompt": "x" * 150_000})),
        "a large body": (413, post("/v1/completions", json={"model": model, "prompt": "x" * 2**21})),
        "temperature": (400, post("/v1/chat/completions", json={**chat, "temperature": 3})),
        "NaN": (400, post("/v1/chat/completions", content=b'{"model": "m", "temperature": NaN}')),
        "deep JSON": (400, post("/v1/chat/completions", content=b"[" * 100_000)),
        "top_logprobs": (
            400,
            post("/v1/chat/completions", json={**chat, "logprobs": True, "top_logprobs": 99}),
        ),
        "stops": (400, post("/v1/chat/completions", json={**chat, "stop": ["a"] * 9})),
        "roles": (
            400,
            post("/v1/chat/completions", json={**chat, "messages": [{"role": "root", "content": ""}]}),
        ),
        "no messages": (400, post("/v1/chat/completions", json={**chat, "messages": []})),
        "tools": (400, post("/v1/chat/completions", json={**chat, "tools": []})),
        "remote code": (400, post("/v1/chat/completions", json={**chat, "trust_remote_code": True})),
        "token ids": (400, post("/v1/completions", json={"model": model, "prompt": [10**6]})),
        "a mix": (
            400,
            post("/v1/chat/completions", json={**chat, "adapter": {"mix": [{"name": "a"}] * 9}}),
        ),
        "a weight": (
            400,
            post("/v1/chat/completions", json={**chat, "adapter": {"mix": [{"name": "a", "weight": 1e9}]}}),
        ),
        "a batch": (
            400,
            post("/v1/adapters/batch", json={"adapters": [{"name": "a", "description": "b c d"}] * 65}),
        ),
        "twice": (
            400,
            post("/v1/adapters/batch", json={"adapters": [{"name": "a", "description": "b c d"}] * 2}),
        ),
        "a description": (400, post("/v1/adapters", json={"name": "a", "description": "x" * 5000})),
        "a page": (400, http.get("/v1/adapters", params={"limit": 10**6})),
        "no ZIP": (400, post("/v1/adapters/import", data={"name": "a"}, files={"file": b"PK"})),
        "a method": (405, http.put("/v1/adapters")),
        "a path": (404, http.get("/v1/adapters/%2e%2e%2f%2e%2e%2fetc%2fpasswd")),
        "no length": (400, post("/v1/adapters", content=b"{}", headers={"Content-Length": "x"})),
    }


def test_limits_come_before_work(http: TestClient, service: Service) -> None:
    before = service.runner.state()
    for what, (status, answer) in refused(http, service).items():
        assert is_error(answer, status), (what, answer.status_code, answer.text)
    assert service.runner.state() == before and service.registry.count(None) == 0


def test_a_body_without_a_length_is_cut_off(http: TestClient) -> None:
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        for _ in range(1000):
            read += 2**16
            yield b" " * 2**16

    assert is_error(http.post("/v1/adapters", content=endless()), 413)


def test_no_adapter_takes_the_name_of_the_base_model(tiny_llama: Path, tmp_path: Path) -> None:
    """Else the base model would answer in its place, since its name is looked at first."""
    loaded = load_backbone(str(tiny_llama))
    backbone = replace(loaded, shape=replace(loaded.shape, base_model="gpt2"))  # as its hub id
    service = open_service(Registry(tmp_path / "r"), str(tiny_llama), open=True, backbone=backbone)
    http = TestClient(create_app(service), raise_server_exceptions=False)
    try:
        new = {"name": "gpt2", "description": "Write the plural of the given noun."}
        lines = b'{"input": "a", "output": "b"}'
        answers = {
            "create": http.post("/v1/adapters", json=new),
            "batch": http.post("/v1/adapters/batch", json={"adapters": [{**new, "name": "a"}, new]}),
            "upload": http.post("/v1/adapters/import", data={"name": "gpt2"}, files={"file": b"PK"}),
            "job": http.post("/v1/jobs", data={"name": "gpt2", "definition": "Copy."}, files={"file": lines}),
        }
        for what, answer in answers.items():
            assert is_error(answer, 400) and "is a model's own" in answer.text, (what, answer.text)
        assert service.registry.count(None) == 0 and not service.jobs.page(None)
        assert http.post("/v1/completions", json={"model": "gpt2", "prompt": "a"}).status_code == 200
    finally:
        service.close()


def test_rates_say_when_to_come_back(tiny_llama: Path, tmp_path: Path) -> None:
    service, http = small(tiny_llama, tmp_path / "r", requests_per_minute=5, tokens_per_minute=60)
    eve = service.keys.create("eve")
    try:
        ask = {"model": service.base_names[0], **ASK}
        answers = [http.post("/v1/chat/completions", json=ask) for _ in range(3)]  # about 30 tokens each
        assert [a.status_code for a in answers] == [200, 429, 429]
        assert "tokens a minute" in answers[1].text and 1 <= int(answers[1].headers["retry-after"]) <= 120
        assert is_error(http.post("/v1/chat/completions", json={**ask, "max_tokens": 100}), 400)
        http.get("/v1/models")
        answer = http.get("/v1/models")
        assert is_error(answer, 429) and "requests a minute" in answer.text and answer.headers["retry-after"]
        others = http.get("/v1/models", headers={"Authorization": f"Bearer {eve}"})
        assert others.status_code == 200 and http.get("/health").status_code == 200
    finally:
        service.close()


def test_a_full_engine_is_503(tiny_llama: Path, tmp_path: Path) -> None:
    service, http = small(tiny_llama, tmp_path / "r", max_running=1, max_waiting=1, max_open_a_key=4)

    async def many() -> list[httpx2.Response]:
        transport = httpx2.ASGITransport(http.app)
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://x", headers=http.headers
        ) as client:
            ask = {"model": service.base_names[0], **ASK, "max_tokens": 300}
            return await asyncio.gather(*(client.post("/v1/chat/completions", json=ask) for _ in range(8)))

    try:
        answers = asyncio.run(many())
        statuses = {a.status_code for a in answers}
        assert statuses == {200, 429, 503}, statuses
        for answer in answers:
            assert answer.status_code == 200 or int(answer.headers["retry-after"]) >= 1
    finally:
        service.close()


def test_a_lost_database_is_503(tiny_llama: Path, tmp_path: Path) -> None:
    service, http = small(tiny_llama, tmp_path / "r")
    for path in (tmp_path / "r").glob("registry.db*"):
        path.unlink()
    for answer in (http.get("/v1/adapters"), http.get("/ready")):
        assert is_error(answer, 503) and answer.headers["retry-after"] == "5"
    assert http.get("/health").status_code == 200
    service.close()


def test_a_closed_engine_is_not_ready(tiny_llama: Path, tmp_path: Path) -> None:
    service, http = small(tiny_llama, tmp_path / "r")
    assert http.get("/ready").status_code == 200
    service.runner.close()
    answer = http.get("/ready")
    assert is_error(answer, 503) and answer.headers["retry-after"] and http.get("/health").status_code == 200
    service.close()


@pytest.mark.filterwarnings("ignore:Exception in thread shoal-engine")
def test_an_engine_whose_thread_has_ended_is_not_ready(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, http = small(tiny_llama, tmp_path / "r")
    runner: Any = service.runner
    monkeypatch.setattr(runner._engine, "step", sys.exit)
    runner.submit(Request([1, 2]))
    runner._thread.join(20)
    answer = http.get("/ready")
    assert is_error(answer, 503) and "thread has ended" in answer.text and answer.headers["retry-after"]
    service.close()


def test_a_vllm_that_is_gone_is_not_ready(tiny_llama: Path, tmp_path: Path) -> None:
    served = [str(tiny_llama)]

    class Models(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"data": [{"id": name} for name in served]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *said: object) -> None:
            pass

    vllm = HTTPServer(("127.0.0.1", 0), Models)
    thread = threading.Thread(target=vllm.serve_forever)
    thread.start()
    engine = EngineConfig(engine="vllm", vllm_url=f"http://127.0.0.1:{vllm.server_port}")
    service = open_service(Registry(tmp_path / "r"), str(tiny_llama), engine=engine, open=True)
    http = TestClient(create_app(service), raise_server_exceptions=False)
    assert http.get("/ready").status_code == 200
    served[:] = ["another"]
    answer = http.get("/ready")
    assert is_error(answer, 503) and "serves another, not" in answer.text and answer.headers["retry-after"]
    vllm.shutdown()
    vllm.server_close()
    thread.join()
    answer = http.get("/ready")
    assert is_error(answer, 503) and answer.headers["retry-after"] and http.get("/health").status_code == 200
    service.close()


@pytest.fixture(scope="module")
def on_postgresql(
    tiny_llama: Path, postgresql: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestClient]:
    server = make_url(postgresql)
    engine = create_engine(server.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE security")
    engine.dispose()
    url = server.set(database="security").render_as_string(hide_password=False)
    service, http = small(tiny_llama, tmp_path_factory.mktemp("postgresql") / "r", url)
    yield http
    service.close()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/adapters", {"name": "nul", "description": "Write the \0 plural of the noun."}),
        ("GET", "/v1/adapters?search=%00", None),
        ("GET", "/v1/adapters?after=%00", None),
        ("GET", "/v1/models?after=%00", None),
        ("GET", "/v1/models/%00", None),
        ("GET", "/v1/jobs/%00", None),
        ("POST", "/v1/jobs/%00/cancel", None),
        ("POST", "/v1/skills", {"name": "n\0", "keywords": ["contract"]}),
    ],
)
def test_a_value_that_no_database_keeps_is_the_callers_mistake(
    on_postgresql: TestClient, method: str, path: str, body: Any
) -> None:
    answer = on_postgresql.request(method, path, json=body)
    assert is_error(answer, 404 if path == "/v1/models/%00" else 400), (answer.status_code, answer.text)
    assert "security" not in answer.text and on_postgresql.get("/v1/adapters").json()["data"] == []


def test_what_a_killed_service_left_is_swept(tiny_llama: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "r")
    left = [tmp_path / "r" / "jobs" / ("0" * 32), tmp_path / "r" / "objects" / "00" / ("0" * 64)]
    left.append(tmp_path / "r" / "incoming" / "draft")
    for folder in left:
        folder.mkdir(parents=True)
        os.utime(folder, (0, 0))
    open_service(registry, str(tiny_llama)).close()
    assert not any(folder.exists() for folder in left)


def test_a_corrupt_adapter_says_so(http: TestClient, service: Service) -> None:
    new = {"name": "broken", "description": "Write the plural of the given noun."}
    assert http.post("/v1/adapters", json=new).status_code == 201
    weights = service.registry.directory(service.registry.get("broken", None)) / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-8])
    for answer in (
        http.post("/v1/chat/completions", json={"model": "broken", **ASK}),
        http.get("/v1/adapters/broken/download"),
    ):
        assert is_error(answer, 500) and "are not those that were written" in answer.text
    assert http.post("/v1/chat/completions", json={"model": service.base_names[0], **ASK}).status_code == 200
    assert http.delete("/v1/adapters/broken").status_code == 200


def test_a_full_disk_is_503(tiny_llama: Path, small_disk: Path, tmp_path: Path) -> None:
    service, http = small(tiny_llama, small_disk / "r", f"sqlite:///{tmp_path / 'r.db'}")
    for number in range(50):
        new = {"name": f"a{number}", "description": f"Write the plural of noun number {number}."}
        answer = http.post("/v1/adapters", json=new)
        if answer.status_code != 201:
            break
    assert is_error(answer, 503) and "the disk is full" in answer.text and answer.headers["retry-after"]
    assert http.post("/v1/chat/completions", json={"model": "a0", **ASK}).status_code == 200
    service.close()


def test_no_space_for_uploads_is_503(
    tiny_llama: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where the body is kept while it is read, nor where a ZIP is to be unpacked."""
    service, http = small(tiny_llama, tmp_path / "r")
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    forms: dict[str, dict[str, str]] = {
        "/v1/adapters/import": {"name": "a"},
        "/v1/jobs": {"name": "a", "definition": "Copy."},
    }
    answers = [http.post(path, data=form, files={"file": b"x" * 2**21}) for path, form in forms.items()]
    mount = ["mount", "-o", "remount,nr_inodes=1", str(small_disk)]  # the directory's own
    subprocess.run(mount, check=True)
    answers.append(http.post("/v1/adapters/import", data={"name": "a"}, files={"file": b"PK"}))
    for answer in answers:
        assert is_error(answer, 503) and "the disk is full" in answer.text, answer.text
        assert answer.headers["retry-after"]
    assert not list(small_disk.iterdir()) and not service.jobs.page(None)
    service.close()


def test_logs_hold_no_prompts_and_no_keys(tiny_llama: Path, tmp_path: Path) -> None:
    """`shoal serve` itself, to its end: a JSON object a line, of every request and of nothing it said."""
    registry = Registry(tmp_path / "r")
    key = ApiKeys(registry.database).create("ada")
    registry.close()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [
        sys.executable,
        "-m",
        "shoal.apps.cli.main",
        "serve",
        "--base",
        str(tiny_llama),
        "--port",
        port,
    ]
    command += ["--registry", str(tmp_path / "r")]
    headers = {"Authorization": f"Bearer {key}"}
    secret, said = "tangerine", "Write the plural of the word tangerine."
    ask = {"model": str(tiny_llama), "max_tokens": 2}
    out = subprocess.DEVNULL  # what the command says; its log is on standard error
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=out, stderr=log) as process:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as http:
            until = time.monotonic() + 120
            while True:
                with contextlib.suppress(httpx2.TransportError):
                    http.get("/health")
                    break
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.1)
            form = {"name": secret, "definition": said}
            example = json.dumps({"input": said, "output": secret}).encode()
            chat = {**ask, "messages": [{"role": "user", "content": said}]}
            answers = [
                http.post("/v1/chat/completions", json=chat),
                http.post("/v1/chat/completions", json={**chat, "adapter": {"describe": said}}),
                http.post("/v1/chat/completions", json={**chat, "tools": [secret]}),
                http.post("/v1/completions", json={**ask, "prompt": said, "stream": True}),
                http.post("/generate-adapter", params={"prompt": said, "model_path": str(tiny_llama)}),
                http.post("/v1/adapters", json={"name": secret, "description": said}),
                http.get("/v1/adapters", params={"search": secret}),
                http.get(f"/v1/adapters/{secret}/norms"),
                http.post("/v1/adapters/import", data={"name": secret}, files={"file": said.encode()}),
                http.post("/v1/skills", json={"name": secret, "keywords": [said]}),
                http.post("/v1/skills/detect", json={"text": said}),
                http.post("/v1/jobs", data={**form, "steps": "1"}, files={"file": example}),
                http.post("/v1/jobs", data=form, files={"file": said.encode()}),
                http.get(f"/{secret}"),
                http.get("/v1/models", headers={"Authorization": f"Bearer {key}{secret}"}),
            ]
            statuses = [answer.status_code for answer in answers]
            while http.get("/v1/jobs").json()["data"][0]["state"] in ("queued", "running"):
                assert time.monotonic() < until
                time.sleep(0.2)
        process.terminate()
    assert statuses == [200, 200, 400, 200, 200, 201, 200, 200, 400, 201, 200, 202, 400, 404, 401]
    text = (tmp_path / "log").read_text()
    assert secret not in text and "sk-shoal" not in text
    written = [json.loads(line) for line in text.splitlines()]
    assert all(set(line) >= {"time", "level", "logger", "message"} for line in written)
    assert {line["logger"] for line in written} >= {"shoal.server.middleware", "uvicorn.error"}
    known = [line for line in written if line.get("route") == "/v1/chat/completions"]
    assert [(line["status"], line["owner"], line["method"]) for line in known[:2]] == [
        (200, "ada", "POST")
    ] * 2
    assert {line["id"] for line in written if "id" in line} >= {a.headers["x-request-id"] for a in answers}


def test_a_failure_is_one_line_of_the_log() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "a %s", ("b\nc",), sys.exc_info())
    line = JsonLines().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "a b\nc" and "two\nlines" in json.loads(line)["traceback"]


def test_without_keys_only_this_machine_is_answered(tiny_llama: Path, tmp_path: Path) -> None:
    service = open_service(Registry(tmp_path / "r"), str(tiny_llama), open=True)
    http = TestClient(create_app(service))
    assert http.get("/v1/models").status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", ""):
        assert is_error(http.get("/v1/models", headers={"Host": host}), 403)
    service.close()


def test_a_client_that_never_reads_is_left(serve: Any, tiny_llama: Path) -> None:
    """Its answers' places are freed, its connection ends, little of it is kept, and others are answered."""
    slow = load_backbone(str(tiny_llama))  # 400 tokens take 8 seconds: longer than the connection is kept
    first = slow.model.get_submodule(slow.shape.targets[0].name)
    first.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    # A second is long enough to fill what the kernel keeps.
    with serve(backbone=slow, send_seconds=1, send_buffer=4096, **FREELY) as running:
        runner, ask = running.service.runner, {"model": running.model, **ASK}
        long = {**ask, "max_tokens": 400, "temperature": 0, "stream": True}
        long |= {"logprobs": True, "top_logprobs": 20}
        with socket.socket() as silent:
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            silent.connect(("127.0.0.1", running.port))
            silent.sendall(post_of(running.ada, json.dumps(long).encode()))
            until = time.monotonic() + 60
            while not runner.state().running:
                assert time.monotonic() < until
                time.sleep(0.001)
            connections = running.server.server_state.connections
            (its,) = connections
            meanwhile, kept = 0, list[int]()

            def watch() -> None:  # beside the requests, which can take as long as it is kept
                while its in connections:
                    kept.append(its.transport.get_write_buffer_size())
                    time.sleep(0.001)

            watching = threading.Thread(target=watch)
            watching.start()
            eve = {"Authorization": f"Bearer {running.eve}"}
            with httpx2.Client(base_url=running.url, headers=eve) as http:
                while its in connections:
                    assert time.monotonic() < until, "a connection that nobody reads is kept"
                    assert http.post("/v1/chat/completions", json=ask).status_code == 200
                    meanwhile += 1
            watching.join()
        while runner.state().running or runner.state().waiting:
            assert time.monotonic() < until, "an answer that nobody reads keeps its place"
            time.sleep(0.01)
        outcomes = running.service.monitoring.outcomes
        assert outcomes.labels("cancelled")._value.get() == 1  # it was not answered to its end
        assert outcomes.labels("length")._value.get() + outcomes.labels("stop")._value.get() == meanwhile
        assert 0 < max(kept) < 2**18, "what it does not read is kept for it"


@pytest.mark.parametrize(
    ("lengths", "status"),
    [
        ("Content-Length: -1", 400),
        ("Content-Length: +2", 400),
        ("Content-Length: two", 400),
        ("Content-Length: 0x2", 400),
        ("Content-Length: 2.0", 400),
        ("Content-Length:", 400),
        ("Content-Length: 2, 3", 400),
        ("Content-Length: 2\r\nContent-Length: 3", 400),
        ("Content-Length: 2\r\nTransfer-Encoding: chunked", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 2", 400),
        (f"Content-Length: {'9' * 5000}", 400),
        (f"Content-Length: {'9' * 19}", 413),
        ("Content-Length: 1048577", 413),
    ],
)
def test_a_length_that_can_be_misread_is_refused(running: Any, lengths: str, status: int) -> None:
    """Nothing after it is taken for another request: the connection ends."""
    hidden = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        connection.settimeout(20)
        connection.sendall(post_of(running.ada, b"{}" + hidden, lengths))
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while more := connection.recv(2**16):
                answer += more
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
    assert answer.count(b"HTTP/1.1 ") == 1 and b"Traceback" not in answer


@pytest.mark.parametrize("stated", ["-1", "two", "+2", "2.0", "", "\u0662", "9" * 5000, "2, 2"])
def test_a_length_that_is_no_number_is_400_on_any_server(http: TestClient, stated: str) -> None:
    headers = {"Content-Length": stated.encode()}
    answer = http.post("/v1/adapters", content=b"{}", headers=headers)  # type: ignore[arg-type]
    assert is_error(answer, 400) and answer.json()["error"]["code"] == "body_length"
    assert answer.headers["connection"] == "close"


def test_long_headers_are_refused(running: Any) -> None:
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000)
        connection.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100).startswith(b"HTTP/1.1 4")


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.one_of(
        st.text(st.characters(codec="utf-8"), max_size=80),
        st.sampled_from(["..", ".", "../x", "/etc", "a/b", "con", "a\x00"]),
    )
)
def test_any_name_is_refused_or_stays_in_the_store(http: TestClient, service: Service, name: str) -> None:
    root = service.registry.root
    before = {p.name for p in root.parent.iterdir()}
    answers = [http.get(f"/v1/adapters/{quote(name, safe='', errors='surrogatepass') or '%20'}")]
    answers.append(
        http.post("/v1/adapters", json={"name": name, "description": "Write the plural of the noun."})
    )
    ask = {"model": name or "x", **ASK}
    answers.append(http.post("/v1/chat/completions", json=ask))
    for answer in answers:
        assert answer.status_code < 500, answer.text
    if answers[1].status_code == 201:
        http.delete(f"/v1/adapters/{name}")
    assert {p.name for p in root.parent.iterdir()} == before
    assert {p.name for p in root.iterdir()} <= {
        "objects",
        "incoming",
        "jobs",
        ".lock",
        "registry.db",
        "registry.db-wal",
        "registry.db-shm",
    }


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_request_of_the_schema_breaks_the_service(tiny_llama: Path, tmp_path: Path, mode: str) -> None:
    """More than 1,000 cases over every route, of requests that the schema allows and that it does not.

    A service of its own: schemathesis ends the application with the test, and nothing answers after that.
    """
    service, http = small(tiny_llama, tmp_path / "registry", max_tokens=8, max_adapters=50, **FREELY)
    app: Any = http.app
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=dict(http.headers))
    tried, left_out = 0, []
    for found in schema.get_all_operations():
        operation = found.ok()
        cases = operation.as_strategy(generation_mode=GenerationMode(mode))

        @settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck), database=None)
        @given(case=cases)
        def check(case: Any) -> None:
            nonlocal tried
            tried += 1
            answer = case.call(headers={"Authorization": http.headers["Authorization"]})
            text = answer.content.decode("utf-8", "replace")  # a download is a ZIP
            busy = (
                answer.status_code == 503
                and "retry-after" in answer.headers
                and re.search(r"the limit is|requests wait|jobs wait", text)
            )
            assert answer.status_code < 500 or busy, (case, text)
            assert "Traceback" not in text

        try:
            check()
        except Unsatisfiable:  # nothing is wrong to send where nothing is read
            left_out.append(operation.label)
    print(f"{mode}: {tried} cases; left out: {left_out}")
    assert tried >= 1000 and set(left_out) <= {"GET /health", "GET /ready"}
    assert {p.name for p in tmp_path.iterdir()} == {"registry"}
    service.runner.ready()  # it was open to the end
