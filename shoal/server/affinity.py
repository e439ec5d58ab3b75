"""Before replicas, in Ray Serve's HTTP proxy: requests that go together, and the answer where one is lost.

Requests that name the same adapter in their body get the same session, which Ray Serve's consistent hashing
sends to the same replica. A request that a dying replica left unanswered is sent to another, where that does
no harm, else answered 503. Checks no keys and knows no adapters: replicas do.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal.config import DEFAULT_MODEL, ServiceConfig
from shoal.server.errors import Failure
from shoal.server.middleware import SAFE_HEADERS, body_limit, check_head, too_large

if TYPE_CHECKING:
    from starlette.middleware import Middleware

log = logging.getLogger(__name__)

CONFIG_VARIABLE = "SHOAL_SERVICE_CONFIG"  # a ServiceConfig as JSON
IMPORT_PATH = "shoal.server.affinity.middlewares"  # for $RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH
REPLICA_HEADER = "x-served-by"
SESSION_HEADER = "x-session-id"
ANSWERS = frozenset({"/v1/chat/completions", "/v1/completions"})
OF_SERVE = frozenset(  # headers by which clients could steer Ray Serve
    {SESSION_HEADER, "serve-multiplexed-model-id", "x-request-id"}
    | {"x-request-timeout-seconds", "x-request-disconnect-disabled"}
)
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
OF_RAY = "/-/"  # paths that the proxy itself answers
ATTEMPTS, PAUSE_SECONDS, START_SECONDS = 3, 0.25, 300.0
LOST = "the replica of this answer was lost, or none is there"
_ADAPTER = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def middlewares() -> list[Middleware]:
    """The middlewares that Ray Serve's proxies put before themselves."""
    from starlette.middleware import Middleware

    config = ServiceConfig.model_validate_json(os.environ.get(CONFIG_VARIABLE) or "{}")
    return [Middleware(Affinity, config=config)]


class Affinity:
    """ASGI middleware around Ray Serve's proxy."""

    def __init__(self, app: ASGIApp, config: ServiceConfig) -> None:
        self._app = app
        self._config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, sent on until a replica answers or none would."""
        if scope["type"] != "http" or scope["path"].startswith(OF_RAY):
            await self._app(scope, receive, send)
            return
        answer = _Answer(send, self._config.send_seconds)
        try:
            check_head(scope)
            limit = body_limit(scope["path"], self._config)
            _check_stated(scope, limit)
            await self._send_on(scope, _Incoming(receive, limit), answer)
        except Failure as failure:
            await answer.fail(scope, receive, failure)
        except (TimeoutError, asyncio.TimeoutError):  # one class from Python 3.11 on
            if not answer.unread:
                raise
            log.info("%s %s: the client does not read", scope["method"], scope["path"])

    async def _send_on(self, scope: Scope, incoming: _Incoming, answer: _Answer) -> None:
        asks = scope["path"] in ANSWERS and scope["method"] == "POST"
        harmless = asks or scope["method"] in SAFE_METHODS  # to send twice
        body = await incoming.read() if harmless else b""
        scope = _with_session(scope, session_of(body) if asks else None)
        for attempt in range(ATTEMPTS if harmless else 1):
            await asyncio.sleep(PAUSE_SECONDS * attempt)
            await self._ask(scope, incoming, answer)
            if answer.unread:
                return
            if answer.started:
                await answer.end()
            if answer.started or incoming.gone:
                return
            log.warning("%s %s: no replica answered, attempt %d", scope["method"], scope["path"], attempt + 1)
        seconds = self._config.retry_seconds
        raise Failure(503, f"{LOST}; ask again", "server_error", "unavailable", retry_after=seconds)

    async def _ask(self, scope: Scope, incoming: _Incoming, answer: _Answer) -> None:
        """One attempt; given up where no answer begins for long, as Ray Serve waits for replicas forever."""
        asking = asyncio.ensure_future(self._app(scope, incoming.again(), answer.send))
        began = asyncio.ensure_future(answer.began.wait())
        try:
            await asyncio.wait({asking, began}, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if asking.done() or answer.started:
                await asking
        finally:
            began.cancel()
            asking.cancel()


class _Incoming:
    """The messages that a client sends.

    Attributes:
        gone: whether the client went away.
    """

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._seen = 0
        self._body: bytes | None = None
        self.gone = False

    async def read(self) -> bytes:
        """The whole body, which every attempt then gets.

        Raises:
            Failure: 413: it is too large.
        """
        body = bytearray()
        more = True
        while more and not self.gone:
            message = await self._next()
            body += message.get("body", b"")
            if self._seen > self._limit:
                raise too_large(self._limit)
            more = message.get("more_body", False)
        self._body = bytes(body)
        return self._body

    def again(self) -> Receive:
        """For one attempt: the body, if it was read already, and what follows it."""
        given = self._body is None

        async def receive() -> Message:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": self._body, "more_body": False}
            if self._seen > self._limit:  # the replica has seen that it is too much, and says so
                await asyncio.Event().wait()
            return await self._next()

        return receive

    async def _next(self) -> Message:
        message = await self._receive()
        self.gone = self.gone or message["type"] == "http.disconnect"
        self._seen += len(message.get("body", b""))
        return message


class _Answer:
    """The way out. What Ray Serve says of itself is not passed on: replicas sign their answers.

    Attributes:
        started: True once anything was sent to the client.
        began: is set then.
        unread: whether the client was left because it does not read.
    """

    def __init__(self, send: Send, seconds: float) -> None:
        self._client = send
        self._seconds = seconds
        self.unread = False
        self.started = False
        self.began = asyncio.Event()
        self._rays = self._events = self._ended = False

    async def send(self, message: Message) -> None:
        """Pass a message of the cluster on; TimeoutError where the client does not read."""
        if message["type"] == "http.response.start":
            headers = Headers(raw=message.get("headers", []))
            self._rays = REPLICA_HEADER not in headers
            self._events = headers.get("content-type", "").startswith("text/event-stream")
        if self._rays:
            return
        self.started = True
        self.began.set()
        self._ended = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)

    async def _send(self, message: Message) -> None:
        if self.unread:
            raise TimeoutError
        try:
            await asyncio.wait_for(self._client(message), self._seconds)
        except asyncio.TimeoutError:  # before Python 3.11 this is no TimeoutError
            self.unread = True
            raise TimeoutError from None

    async def end(self) -> None:
        """Say in a stream of events that it was cut off; any other answer shows it by its length."""
        if self._ended or not self._events:
            return
        failure = Failure(503, f"{LOST}; ask again", "server_error", "unavailable")
        last = f"data: {json.dumps(failure.body())}\n\ndata: [DONE]\n\n".encode()
        await self._send({"type": "http.response.body", "body": last})

    async def fail(self, scope: Scope, receive: Receive, failure: Failure) -> None:
        """Send an error of our own, unless something was sent already."""
        if not self.started:
            await failure.response(SAFE_HEADERS)(scope, receive, self._send)


def session_of(body: bytes) -> str | None:
    """The session of a request, shared by those of the same adapter or mix; None where it has none."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return None  # the replica says what is wrong
    if not isinstance(asked, dict):
        return None
    chosen = asked.get("adapter")
    if isinstance(chosen, Mapping) and isinstance(chosen.get("mix"), list):
        names = [str(part.get("name")) for part in chosen["mix"][:64] if isinstance(part, Mapping)]
        return "+".join(sorted(filter(_is_adapter, names))) or None
    return asked["model"] if _is_adapter(asked.get("model")) else None


def _is_adapter(name: Any) -> bool:
    return isinstance(name, str) and name != DEFAULT_MODEL and _ADAPTER.fullmatch(name) is not None


def _check_stated(scope: Scope, limit: int) -> None:
    stated = Headers(scope=scope).get("content-length", "")
    if stated.isascii() and stated.isdigit() and (len(stated) > 19 or int(stated) > limit):
        raise too_large(limit)


def _with_session(scope: Scope, session: str | None) -> Scope:
    """The same request under a session of ours; a client's own says nothing here."""
    ours = (SESSION_HEADER.encode(), session.encode()) if session else None
    kept = [(n, v) for n, v in scope["headers"] if n.decode("latin-1").replace("_", "-") not in OF_SERVE]
    return {**scope, "headers": [*kept, ours] if ours else kept}
