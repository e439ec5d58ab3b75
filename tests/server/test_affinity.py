"""Before a cluster's replicas: sessions by adapter, limits, and what a lost replica's clients are told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shoal.config import DEFAULT_MODEL, ServiceConfig
from shoal.server import affinity
from shoal.server.affinity import Affinity, session_of
from shoal.server.middleware import SAFE_HEADERS

App = Callable[..., Awaitable[None]]
SIGNED = [(b"x-served-by", b"a"), (b"content-type", b"application/json")]
EVENTS = [(b"x-served-by", b"a"), (b"content-type", b"text/event-stream")]


@pytest.mark.parametrize(
    ("body", "session"),
    [
        ({"model": "mine"}, "mine"),
        ({"model": DEFAULT_MODEL}, None),
        ({"model": "HuggingFaceTB/SmolLM2-135M-Instruct"}, None),
        ({"model": "a/b", "adapter": {"mix": [{"name": "two"}, {"name": "one"}]}}, "one+two"),
        ({"model": "a/b", "adapter": {"describe": "Sort."}}, None),
        ({"model": "a/b", "adapter": {"mix": [1, {"name": ["x"]}]}}, None),
        ({"model": ["x"]}, None),
        ({"model": "bad\r\nname"}, None),
        ([], None),
    ],
)
def test_requests_of_one_adapter_share_a_session(body: Any, session: str | None) -> None:
    assert session_of(json.dumps(body).encode()) == session
    assert session_of(b"{" + json.dumps(body).encode()) is None
    assert session_of(b"[" * 100_000) is None


def ask(
    app: App, path: str = "/v1/chat/completions", method: str = "POST", parts: tuple[bytes, ...] = (b"{}",),
    headers: tuple[tuple[bytes, bytes], ...] = (), gone: bool = False, reads: int = 10**6,
    query: bytes = b"", **limits: float,
) -> list[dict[str, Any]]:  # fmt: skip
    """What a client gets."""
    sent: list[dict[str, Any]] = []
    left = [{"type": "http.request", "body": p, "more_body": i < len(parts) - 1} for i, p in enumerate(parts)]

    async def receive() -> dict[str, Any]:
        if left:
            return left.pop(0)
        if gone:
            return {"type": "http.disconnect"}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        if len(sent) >= reads:
            await asyncio.Event().wait()
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers), "query_string": query}
    asyncio.run(Affinity(app, ServiceConfig(**limits))(scope, receive, send))
    return sent


def replica(headers: list[tuple[bytes, bytes]], *bodies: bytes, whole: bool = True) -> App:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number, body in enumerate(bodies):
            more = not whole or number < len(bodies) - 1
            await send({"type": "http.response.body", "body": body, "more_body": more})

    return app


def failing(times: int, then: App, said: int | None = None) -> tuple[App, list[bytes]]:
    """A cluster that loses the first requests; and the bodies that it was sent."""
    bodies: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        bodies.append(message["body"])
        if len(bodies) > times:
            given = [message]

            async def again() -> Any:
                return given.pop() if given else await receive()

            await then(scope, again, send)
        elif said is not None:  # Ray Serve's own words
            await send({"type": "http.response.start", "status": said, "headers": []})
            await send({"type": "http.response.body", "body": b"Traceback of Ray"})

    return app, bodies


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity, "PAUSE_SECONDS", 0.0)


@pytest.mark.parametrize("said", [None, 500, 503])
def test_a_lost_question_is_asked_again(said: int | None) -> None:
    app, bodies = failing(2, replica(SIGNED, b"{}"), said)
    answer = ask(app, parts=(b'{"model"', b': "mine"}'))
    assert answer[0]["status"] == 200 and answer[1]["body"] == b"{}"
    assert bodies == [b'{"model": "mine"}'] * 3


@pytest.mark.parametrize(
    ("method", "path", "attempts"), [("POST", "/v1/adapters", 1), ("GET", "/v1/models", 3)]
)
def test_what_nobody_answers_is_503(method: str, path: str, attempts: int) -> None:
    app, bodies = failing(99, replica(SIGNED), 500)
    start, body = ask(app, path, method)
    assert start["status"] == 503 and len(bodies) == attempts  # what changes something is not repeated
    assert dict(start["headers"])[b"retry-after"] == b"5" and b"Ray" not in body["body"]
    assert json.loads(body["body"])["error"]["code"] == "unavailable"


def test_a_stream_that_is_cut_off_says_so() -> None:
    *_, piece, last = ask(replica(EVENTS, b"data: {}\n\n", whole=False))
    assert piece["body"] == b"data: {}\n\n" and last["body"].endswith(b"data: [DONE]\n\n")
    assert json.loads(last["body"].split(b"\n\n")[0][6:])["error"]["code"] == "unavailable"
    assert not last.get("more_body")
    whole = ask(replica(SIGNED, b"{", whole=False))
    assert whole[-1]["body"] == b"{" and whole[-1]["more_body"]  # the server closes the connection


def test_nobody_is_asked_for_who_has_gone() -> None:
    app, bodies = failing(99, replica(SIGNED))

    async def leaving(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)
        assert (await receive())["type"] == "http.disconnect"

    assert ask(leaving, gone=True) == [] and len(bodies) == 1


@pytest.mark.parametrize(
    ("parts", "headers"),
    [((b"x" * 2000,), ()), ((b"x" * 1000, b"x" * 1000), ()), ((b"{}",), ((b"content-length", b"9" * 30),))],
)
def test_a_question_that_is_too_large_goes_nowhere(parts: Any, headers: Any) -> None:
    app, bodies = failing(0, replica(SIGNED, b"{}"))
    start, _ = ask(app, parts=parts, headers=headers, max_body_bytes=1024)
    assert start["status"] == 413 and bodies == []


def test_no_more_of_an_upload_is_read_than_may_be() -> None:
    seen: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while True:
            try:
                message = await asyncio.wait_for(receive(), 0.1)
            except TimeoutError:
                break
            except asyncio.TimeoutError:
                break
            seen.append(message["body"])
        await replica(SIGNED, b"{}")(scope, _nothing, send)

    ask(app, "/v1/adapters", parts=(b"x" * 1000,) * 5, max_body_bytes=1024)
    assert len(seen) == 2  # the second is above the limit, which the replica answers with 413


async def _nothing() -> dict[str, Any]:
    return {"type": "http.request", "body": b""}


def test_clients_cannot_steer_the_cluster() -> None:
    seen: list[dict[bytes, bytes]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(dict(scope["headers"]))
        await replica(SIGNED, b"{}")(scope, receive, send)

    own = [b"x-session-id", b"x_session_id", b"serve_multiplexed_model_id", b"x-request-timeout-seconds"]
    headers = (*((name, b"theirs") for name in own), (b"authorization", b"Bearer x"))
    ask(app, parts=(b'{"model": "mine"}',), headers=headers)
    assert seen == [{b"authorization": b"Bearer x", b"x-session-id": b"mine"}]


def test_ray_has_its_own_paths() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    assert ask(app, "/-/healthz", "GET")[0]["status"] == 200


@pytest.mark.parametrize("reads", [0, 1, 3])
def test_a_client_that_never_reads_is_left(reads: int) -> None:
    told: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await replica(EVENTS, *[b"data: {}\n\n"] * 5)(scope, receive, send)
        except TimeoutError:
            told.append(True)
            await send({"type": "http.response.body", "body": b"", "more_body": False})  # nor is this sent

    sent = ask(app, reads=reads, send_seconds=0.05)
    assert len(sent) == reads and told == [True]  # asked once, and its answer was ended


@pytest.mark.parametrize(
    ("headers", "query"),
    [(((b"x", b"a" * 2**15),), b""), (((b"x", b"a" * 400),) * 100, b""), ((), b"a" * 2**16)],
)
def test_long_headers_go_nowhere(headers: Any, query: bytes) -> None:
    app, bodies = failing(0, replica(SIGNED, b"{}"))
    start, body = ask(app, headers=headers, query=query)
    assert start["status"] == 431 and bodies == []
    assert b"the limit is 32768" in body["body"]
    assert ask(app, headers=((b"x", b"a" * 2**14),))[0]["status"] == 200


def test_its_own_failures_have_safe_headers() -> None:
    app, _ = failing(99, replica(SIGNED))
    for start in (ask(app)[0], ask(app, parts=(b"x" * 2000,), max_body_bytes=1024)[0]):
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        assert {name.lower(): value for name, value in SAFE_HEADERS.items()}.items() <= headers.items()
