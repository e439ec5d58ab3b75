"""Uvicorn with what it lacks: a time limit for the head of a request, fair shares of connections, a soft end.

Knows connections; nothing of what is asked over them. The time that a body may take is the guard's.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from shoal.server.middleware import MAX_HEADER_BYTES

KEEP_ALIVE_SECONDS = 15
DESCRIPTORS = 64  # kept for files and databases
LAST_SECONDS = 5  # in which errors are delivered after the engine has ended


class Server(uvicorn.Server):
    """A server that ends what is open after a while with an error that clients understand."""

    def __init__(
        self, app: ASGIApp, end: Callable[[], object], *, head_seconds: float, leaving_seconds: float
    ) -> None:
        """Nothing is served yet.

        Args:
            app: the application.
            end: ends every answer with an error; called on a thread.
            head_seconds: that a client has for the head of a request.
            leaving_seconds: that open requests have when the service is stopped.
        """
        super().__init__(
            uvicorn.Config(
                app,
                http=cast(
                    Any, partial(Connection, limits=ConnectionLimits(head_seconds, connection_limit()))
                ),
                ws="none",
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=int(leaving_seconds + LAST_SECONDS),
                server_header=False,
                access_log=False,
                log_config=None,
            )
        )
        self._end = end
        self._leaving_seconds = leaving_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more, wait for what is open, then end it."""
        loop = asyncio.get_running_loop()
        ending = loop.call_later(self._leaving_seconds, lambda: loop.run_in_executor(None, self._end))
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()


def connection_limit() -> int:
    """Connections that the process has descriptors for, after its limit was raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 2**16 if hard == resource.RLIM_INFINITY else min(hard, 2**16)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return max(1, most - DESCRIPTORS)


class ConnectionLimits:
    """Limits of all connections of a server: of an address, as many as are left for all."""

    def __init__(self, head_seconds: float, most: int) -> None:
        """Allow so many seconds for the head of a request, and so many connections."""
        self.head_seconds = head_seconds
        self._most = most
        self._of_address: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        """Count a connection; True where it is within the limits."""
        self._of_address[address] += 1
        return self._of_address[address] <= 1 + self._most - self._of_address.total()

    def leave(self, address: str) -> None:
        """Forget a connection."""
        self._of_address[address] -= 1
        if not self._of_address[address]:
            del self._of_address[address]


class Connection(H11Protocol):
    """A connection that ends where the head of a request takes too long, and at once above its limits."""

    def __init__(self, *arguments: Any, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._limits = limits
        self._deadline: asyncio.TimerHandle | None = None
        self._address = ""

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        if self._limits.enter(self._address):
            self._await_head()
        else:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take what came; a part of a head gives it no more time."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget_head()
        elif not self.transport.is_closing():
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._forget_head()
        self._limits.leave(self._address)
        super().connection_lost(exc)

    def _await_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self._limits.head_seconds, self.transport.close)

    def _forget_head(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
