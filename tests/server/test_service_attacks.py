"""Hostile uploads, half-open connections and pages of other sites: refused, and nobody else notices."""

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

from shoal.errors import UsageError
from shoal.registry.registry import Registry
from shoal.server.app import create_app
from shoal.server.middleware import MAX_UPLOADS
from shoal.server.service import Service, open_service
from tests.fixtures.hostile import uploads
from tests.fixtures.service import ASK, FREELY, is_error, post_of, wait_until

HOSTILE = uploads()
HARMLESS = {"many keys"}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_upload_costs_little_and_is_the_senders_mistake(http: TestClient, name: str) -> None:
    sent, started = {"file": HOSTILE[name]()}, time.process_time()
    answer = http.post("/v1/adapters/import", data={"name": "hostile"}, files=sent)
    assert time.process_time() - started < 1
    if name in HARMLESS:
        assert answer.status_code == 201
        return
    assert is_error(answer, 400), answer.text
    message = answer.json()["error"]["message"]
    assert "\n" not in message and len(message) < 700 and "/tmp" not in message


def test_uploads_leave_nothing_behind(http: TestClient, service: Service) -> None:
    http.post("/v1/adapters/import", data={"name": "x"}, files={"file": HOSTILE["many tensors"]()})
    assert not list((service.registry.root / "incoming").iterdir())


def test_what_a_killed_upload_left_is_swept(service: Service) -> None:
    left = service.registry.root / "incoming" / "left"
    left.mkdir()
    (left / "adapter_config.json").write_text("{}")
    service.registry.sweep()
    assert not left.exists()


def test_an_owners_skills_have_a_size_together(http: TestClient) -> None:
    statuses = [
        http.post("/v1/skills", json={"name": f"odd_{i}", "keywords": ["x" * 390] * 20}).status_code
        for i in range(5)
    ]
    assert statuses == [201, 201, 201, 201, 409]


@contextlib.contextmanager
def open_app(model: Path, root: Path) -> Iterator[TestClient]:
    service = open_service(Registry(root), str(model), open=True)
    yield TestClient(create_app(service), raise_server_exceptions=False)
    service.close()


@pytest.fixture(scope="module")
def keyless(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with open_app(tiny_llama, tmp_path_factory.mktemp("open") / "registry") as http:
        yield http


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_another_sites_page_is_refused(keyless: TestClient, headers: dict[str, str]) -> None:
    form = {"data": {"name": "x"}, "files": {"file": b"PK"}}
    assert is_error(keyless.post("/v1/adapters/import", headers=headers, **form), 403)  # type: ignore[arg-type]
    assert is_error(keyless.get("/v1/models", headers=headers), 403)


def test_its_own_page_and_programs_are_answered(keyless: TestClient) -> None:
    for headers in ({}, {"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"}):
        assert keyless.get("/v1/models", headers=headers).status_code == 200
    assert keyless.get("/docs", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200  # a link to it


@pytest.mark.parametrize("host", ["LOCALHOST", "localhost:8000", "127.0.0.1:80", "[::1]", "LocalHost:1"])
def test_names_of_this_machine_are_known_in_any_case(keyless: TestClient, host: str) -> None:
    assert keyless.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "localhost.",
        "localhost:",
        "localhost:80:80",
        "me@localhost",
        "localhost/x",
        " ",
        "[::1",
        "localhost:x",
    ],
)
def test_odd_forms_of_a_host_are_refused(keyless: TestClient, host: str) -> None:
    assert is_error(keyless.get("/v1/models", headers={"Host": host}), 403)


def test_half_sent_headers_end(serve: Any) -> None:
    with serve(head_seconds=2) as running, contextlib.ExitStack() as opened:
        silent = [
            opened.enter_context(socket.create_connection(("127.0.0.1", running.port))) for _ in range(20)
        ]
        for number, connection in enumerate(silent[10:]):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localh"[: 10 + number])
        wait_until(lambda: len(running.server.server_state.connections) == 20)
        for _ in range(5):  # a byte now and then gives no more time
            time.sleep(0.5)
            for connection in silent[10:]:
                with contextlib.suppress(OSError):
                    connection.sendall(b"x")
        wait_until(lambda: not running.server.server_state.connections, 20)


def test_an_unfinished_body_frees_its_place(serve: Any) -> None:
    with serve(body_seconds=4, max_open_a_key=4, **FREELY) as running, contextlib.ExitStack() as opened:
        for _ in range(4):
            connection = opened.enter_context(socket.create_connection(("127.0.0.1", running.port)))
            connection.sendall(post_of(running.ada, b"{", "Content-Length: 1000"))
        wait_until(lambda: running.service.limits._open["ada"] == 4)
        with running.http(running.ada) as http:
            assert is_error(http.get("/v1/models"), 429)
        wait_until(lambda: running.service.limits._open["ada"] == 0, 30)
        answer = connection.recv(2**16)
        assert answer.startswith(b"HTTP/1.1 408") and b"connection: close" in answer.lower()


def test_uploads_that_wait_for_a_place_have_their_time_for_the_body(serve: Any) -> None:
    hold = threading.Event()
    with serve(body_seconds=2, **FREELY) as running, running.http(running.ada) as ada:
        running.service.adapters.upload = lambda *_, **__: hold.wait(30)  # type: ignore[method-assign]
        statuses: list[int] = []

        def upload() -> None:
            form = {"data": {"name": "a"}, "files": {"file": b"PK"}}
            statuses.append(ada.post("/v1/adapters/import", **form).status_code)

        threads = [threading.Thread(target=upload) for _ in range(MAX_UPLOADS + 1)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: running.service.limits._open["ada"] == len(threads))
            assert ada.get("/v1/jobs").status_code == 200  # waits for no place
            time.sleep(2.5)
        finally:
            hold.set()
            for thread in threads:
                thread.join()
    assert len(statuses) == len(threads) and 408 not in statuses


def test_health_is_answered_while_every_thread_is_taken(serve: Any) -> None:
    hold = threading.Event()
    with serve(max_open=80, max_open_a_key=70, **FREELY) as running, contextlib.ExitStack() as opened:
        service = running.service
        ada, eve = (
            opened.enter_context(running.http(running.ada)),
            opened.enter_context(running.http(running.eve)),
        )

        def wait(*_: object, **__: object) -> None:
            hold.wait(30)
            raise UsageError("held")

        service.adapters.create = wait  # type: ignore[method-assign]
        service.adapters.upload = wait  # type: ignore[method-assign]

        def ask(number: int) -> None:
            with contextlib.suppress(httpx2.HTTPError):
                if number % 2:
                    ada.post("/v1/adapters", json={"name": "a", "description": "b c d"})
                else:
                    ada.post("/v1/adapters/import", data={"name": "a"}, files={"file": b"PK"})

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(60)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: service.limits._open["ada"] == 60)
            started = time.monotonic()
            for path in ("/health", "/ready", "/v1/models", "/v1/adapters"):
                assert eve.get(path).status_code == 200
            chat = eve.post("/v1/chat/completions", json={"model": running.model, **ASK})
            assert chat.status_code == 200 and time.monotonic() - started < 10
        finally:
            hold.set()
            for thread in threads:
                thread.join()


def test_stopping_ends_a_stream_with_an_error_and_a_whole_answer_with_503(serve: Any) -> None:
    with serve(**FREELY, max_tokens=400) as running:
        service = running.service
        slow = service.runner._engine._backbone.layers[0].register_forward_pre_hook(
            lambda *_: time.sleep(0.1)
        )
        body = {"model": running.model, **ASK, "max_tokens": 400, "temperature": 0}
        told: dict[bool, Any] = {}

        def ask(stream: bool) -> None:
            with running.http(running.ada) as http:
                told[stream] = http.post("/v1/chat/completions", json={**body, "stream": stream})

        threads = [threading.Thread(target=ask, args=(stream,)) for stream in (False, True)]
        for thread in threads:
            thread.start()
        wait_until(lambda: service.runner.state().running == 2)
        running.server.should_exit = True
        for thread in threads:
            thread.join(20)
        slow.remove()
    assert is_error(told[False], 503) and int(told[False].headers["retry-after"]) > 0
    *_, error, done = [line for line in told[True].text.split("\n\n") if line]
    assert (
        done == "data: [DONE]" and "shut down" in json.loads(error.removeprefix("data: "))["error"]["message"]
    )
