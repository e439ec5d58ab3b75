"""Clients that leave, never read, or send what two readers could take for different requests."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from shoal.models.backbone import load_backbone
from tests.fixtures.service import ASK, FREELY, is_error, post_of, wait_until


def test_a_client_that_goes_away_frees_its_place(running: Any) -> None:
    for stream in (False, True):
        body = json.dumps({**ASK, "model": running.model, "max_tokens": 400, "stream": stream, "n": 8})
        with socket.create_connection(("127.0.0.1", running.port)) as connection:
            connection.sendall(post_of(running.ada, body.encode()))
            wait_until(lambda: running.service.runner.state().running)
        running.wait_until_idle()
    outcomes = running.service.monitoring.outcomes.labels("cancelled")
    assert outcomes._value.get() >= 2


def test_a_client_that_goes_away_ends_the_scoring_of_its_prompts(serve: Any, tiny_llama: Path) -> None:
    slow, passes = load_backbone(str(tiny_llama)), []

    def count(*_: object) -> None:
        passes.append(None)
        time.sleep(0.3)

    slow.model.get_submodule(slow.shape.targets[0].name).register_forward_pre_hook(count)
    asked = {"prompt": ["ab", "cd"] * 4, "echo": True, "logprobs": 0, "max_tokens": 3}
    with serve(backbone=slow, **FREELY) as running:
        for stream in (False, True):
            passes.clear()
            body = json.dumps({**asked, "model": running.model, "stream": stream})
            sent = post_of(running.ada, body.encode())
            with socket.create_connection(("127.0.0.1", running.port)) as connection:
                connection.sendall(sent.replace(b"/v1/chat/completions", b"/v1/completions"))
                wait_until(lambda: bool(passes))
            before = -1
            while before < len(passes):
                before = len(passes)
                time.sleep(1)
            assert len(passes) < 8  # of the 8 prompts alone
            running.wait_until_idle()


def test_a_body_without_a_length_is_cut_off(http: TestClient) -> None:
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        for _ in range(1000):
            read += 2**16
            yield b" " * 2**16

    assert is_error(http.post("/v1/adapters", content=endless()), 413)


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
            wait_until(lambda: runner.state().running, 60)
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
        running.wait_until_idle()  # an answer that nobody reads keeps no place
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
