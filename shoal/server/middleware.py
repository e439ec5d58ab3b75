"""Layers that every HTTP request passes before a route sees it, and every answer on its way out.

Host, key, rate and size are checked from the headers, before a body is read; answers get safe headers, are
logged without what was said, and are given up where the client does not read.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal.config import ServiceConfig
from shoal.errors import shorten
from shoal.registry.api_keys import ANYONE
from shoal.server.browsers import check_browser, refuse_preflight
from shoal.server.errors import Failure, failure_of
from shoal.server.json_logs import FACTS
from shoal.server.pools import run_in

if TYPE_CHECKING:
    from shoal.server.service import Service

log = logging.getLogger(__name__)

PUBLIC = frozenset({"/", "/health", "/ready", "/openapi.json", "/docs", "/docs/start.js"})
PUBLIC_FOLDER = "/docs/static/"
UPLOADS = frozenset({"/v1/adapters/import", "/v1/jobs"})
MAX_HEADER_BYTES = 2**15  # of a request's target and headers together
FORM_BYTES = 2**16  # of an upload besides its file
SLOWEST = 2**14  # bytes of a body a second
MAX_UPLOADS = 4  # of an owner that are received at once
LENGTH_DIGITS = 19  # of a Content-Length: all that fit 64 bits
SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware around all routes."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._uploads: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; whatever happens, the client gets an OpenAI body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send, self._service.config.send_seconds)
        started, failure = time.perf_counter(), None
        try:
            await self._pass(scope, receive, answer)
        except (ClientDisconnect, TimeoutError, asyncio.TimeoutError):
            log.info("the client went away", extra={FACTS: {"id": answer.id}})
        except Exception as error:
            failure = failure_of(error, self._service.config.retry_seconds)
            if not answer.started:
                await failure.response()(scope, receive, answer.send)
        finally:
            self._record(scope, answer, time.perf_counter() - started)

    async def _pass(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        check_head(scope)
        headers, service = Headers(scope=scope), self._service
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            raise refuse_preflight()  # those of allowed origins are answered before
        public = scope["path"] in PUBLIC or scope["path"].startswith(PUBLIC_FOLDER)
        if service.open:
            reads_page = public and scope["method"] in ("GET", "HEAD")
            check_browser(headers, reads_page=reads_page, origins=service.config.allowed_origins)
        if public:
            await self._app(scope, receive, answer.send)
            return
        owner = await run_in(service.pools.keys, self._owner, headers)
        scope.setdefault("state", {})["owner"] = owner
        with service.limits.request(owner) if owner else nullcontext():
            limit = body_limit(scope["path"], service.config)
            if _stated_length(headers) > limit:
                raise too_large(limit)
            upload = scope["method"] == "POST" and scope["path"] in UPLOADS
            async with self._place_of(owner) if upload else nullcontext():
                body = _bounded(receive, limit, service.config.body_seconds)
                await self._app(scope, body, answer.send)

    def _place_of(self, owner: str) -> asyncio.Semaphore:
        """A place among the uploads of an owner that are received at once; others wait unread."""
        return self._uploads.setdefault(owner, asyncio.Semaphore(MAX_UPLOADS))

    def _owner(self, headers: Headers) -> str:
        """Whom the request is from.

        Raises:
            Failure: 401: no key, or a wrong one.
        """
        if self._service.open:
            return ANYONE
        scheme, _, key = headers.get("authorization", "").partition(" ")
        owner = self._service.keys.owner_of(key.strip()) if scheme.lower() == "bearer" else None
        if owner is None:
            raise Failure(
                401,
                "a valid API key is needed: Authorization: Bearer sk-shoal-...",
                "authentication_error",
                "invalid_api_key",
            )
        return owner

    def _record(self, scope: Scope, answer: _Answer, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        status = answer.status or 499
        self._service.monitoring.answered(route, status, seconds)
        facts = {"id": answer.id, "method": scope["method"], "route": route, "status": status}
        facts |= {"owner": scope.get("state", {}).get("owner"), "seconds": round(seconds, 4)}
        log.info("%s %s %d", scope["method"], route, status, extra={FACTS: facts})


class _Answer:
    """The way out."""

    def __init__(self, send: Send, seconds: float) -> None:
        self._send = send
        self._seconds = seconds
        self.id = secrets.token_hex(8)
        self.started = False
        self.status = 0

    async def send(self, message: Message) -> None:
        """Pass a message on.

        Raises:
            TimeoutError: the client does not read.
        """
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            for name, value in {**SAFE_HEADERS, "X-Request-Id": self.id}.items():
                headers.setdefault(name, value)
        await asyncio.wait_for(self._send(message), self._seconds)


def check_head(scope: Scope) -> None:
    """See that target and headers are not too long; a server that reads them in one piece lets more through.

    Raises:
        Failure: 431: they are.
    """
    size = len(scope.get("raw_path") or scope["path"]) + len(scope.get("query_string", b""))
    size += sum(len(name) + len(value) for name, value in scope["headers"])
    if size > MAX_HEADER_BYTES:
        raise Failure(
            431, f"the headers have {size} bytes, the limit is {MAX_HEADER_BYTES}; send less", code="headers"
        )


def body_limit(path: str, config: ServiceConfig) -> int:
    """Bytes that the body of a request to a path may have."""
    if path not in UPLOADS:
        return config.max_body_bytes
    return FORM_BYTES + (config.max_training_bytes if path == "/v1/jobs" else config.max_upload_bytes)


def _bounded(receive: Receive, limit: int, seconds: float) -> Receive:
    """The same body, cut off where it is larger or slower than it may be, whatever its headers say.

    It has some seconds, and a second more for every `SLOWEST` bytes.
    """
    seen, reading, until = 0, True, time.monotonic() + seconds

    async def bounded() -> Message:
        nonlocal seen, reading
        if not reading:  # what is waited for now is the client's leaving
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), until + seen / SLOWEST - time.monotonic())
        except (TimeoutError, asyncio.TimeoutError):
            raise Failure(
                408, f"the body did not come within {seconds:g} s; send it at once", code="slow"
            ) from None
        seen += len(message.get("body", b""))
        reading = bool(message.get("more_body"))
        if seen > limit:
            raise too_large(limit)
        return message

    return bounded


def _stated_length(headers: Headers) -> int:
    """Bytes that the body will have, 0 where that is not stated.

    Raises:
        Failure: 400: it is stated in a way that two readers could take for different lengths.
    """
    stated = headers.getlist("content-length")
    if stated and "transfer-encoding" in headers:
        said = "together with Transfer-Encoding"
    elif len(stated) > 1:
        said = f"{len(stated)} times"
    elif stated and not (stated[0].isascii() and stated[0].isdigit() and len(stated[0]) <= LENGTH_DIGITS):
        said = f"as {shorten(stated[0], 40)}"
    else:
        return int(stated[0]) if stated else 0
    raise Failure(400, f"Content-Length is given {said}; give one number, or none", code="body_length")


def too_large(limit: int) -> Failure:
    """The answer to a body above its limit."""
    return Failure(413, f"the body is larger than {limit} bytes; send less", code="body_too_large")
