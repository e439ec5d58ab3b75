"""One request's answers on their way from the engine's thread to their reader, with or without asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from shoal.errors import ShoalError
from shoal.inference.engine.records import Delta, Event


class Stream:
    """Pieces of a request's answers, in order: `for delta in stream`, or `async for delta in stream`.

    Used as a context manager, `with` or `async with`, it cancels the request when the block is left before
    the end, for whatever reason: then a reader who goes away frees the request's place. For one reader.
    """

    def __init__(self, cancel: Callable[[], None], unread: int) -> None:
        """Nothing to read yet.

        Args:
            cancel: tells the engine that nobody reads any more.
            unread: pieces that may wait for the reader.
        """
        self._cancel = cancel
        self._unread = unread
        self._ready = threading.Condition()  # over all that follows
        self._deltas: deque[Delta] = deque()
        self._error: ShoalError | None = None
        self._over = False
        self._sleeper: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def put(self, event: Event) -> None:
        """Take a piece from the engine; too many that nobody reads cancel the request."""
        with self._ready:
            if self._over:
                return
            if event.delta is not None and len(self._deltas) >= self._unread:
                unread = len(self._deltas)
                self._deltas.clear()
                self._end(ShoalError(f"{unread} pieces of the answer were not read; read it as it comes"))
            else:
                if event.delta is not None:
                    self._deltas.append(event.delta)
                if event.last:
                    self._end(event.error)
                self._wake()
                return
        self._cancel()

    def cancel(self) -> None:
        """End the request and the stream, from any thread; a second time does nothing."""
        with self._ready:
            if self._over:
                return
            self._deltas.clear()
            self._end(None)
        self._cancel()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Delta:
        """The next piece, as soon as there is one.

        Raises:
            ShoalError: the request failed.
        """
        with self._ready:
            self._ready.wait_for(lambda: self._deltas or self._over)
            delta = self._next()
        if delta is None:
            raise StopIteration
        return delta

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Delta:
        """As `__next__`, without blocking the event loop."""
        while True:
            with self._ready:
                if self._deltas or self._over:
                    delta = self._next()
                    break
                woken = asyncio.Event()
                self._sleeper = (asyncio.get_running_loop(), woken)
            await woken.wait()
        if delta is None:
            raise StopAsyncIteration
        return delta

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def _next(self) -> Delta | None:
        if self._deltas:
            return self._deltas.popleft()
        if self._error is not None:
            raise self._error
        return None

    def _end(self, error: ShoalError | None) -> None:
        self._over = True
        self._error = error
        self._wake()

    def _wake(self) -> None:
        self._ready.notify_all()
        if self._sleeper is not None:
            loop, woken = self._sleeper
            self._sleeper = None
            with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(woken.set)
