"""Calls that come while another runs are done together, as one batch, on one thread.

For work whose batch costs little more than one call. One thread, since every thread that computes has helpers
and an allocator of its own. Knows nothing of what the work is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from shoal.errors import UnavailableError

Key = TypeVar("Key")
Value = TypeVar("Value")


class MicroBatcher(Generic[Key, Value]):
    """A function of one thing, out of a function of many; for any number of threads."""

    def __init__(
        self, work: Callable[[Sequence[Key]], Sequence[Value]], limit: int, linger: float = 0.0
    ) -> None:
        """Nothing runs yet.

        Args:
            work: gives a value for every key, in order; always called on the same thread.
            limit: keys of one batch.
            linger: seconds that a batch waits at most until it has as many keys as the last one: who was
                answered together asks again together.
        """
        self._work = work
        self._limit = limit
        self._linger = linger
        self._thread = ThreadPoolExecutor(1, "shoal-combined")
        self._arrived = threading.Condition()
        self._pending: list[tuple[Key, Future[Value]]] = []
        self._last = 0

    def __call__(self, key: Key) -> Value:
        """The value of a key.

        Raises:
            UnavailableError: it was closed.
            Exception: what `work` raises for this key alone.
        """
        own: Future[Value] = Future()
        with self._arrived:
            self._pending.append((key, own))
            self._arrived.notify()
        try:
            self._thread.submit(self._next)
        except RuntimeError:
            raise UnavailableError("the service was stopped; ask again when it is back") from None
        return own.result()

    def close(self) -> None:
        """End the thread after what is asked for already."""
        self._thread.shutdown(wait=False)

    def _next(self) -> None:
        with self._arrived:
            if not self._pending:  # an earlier one took them along
                return
            self._arrived.wait_for(lambda: len(self._pending) >= self._last, self._linger)
            batch, self._pending = self._pending[: self._limit], self._pending[self._limit :]
            self._last = len(batch)
        self._run(batch)

    def _run(self, batch: list[tuple[Key, Future[Value]]]) -> None:
        try:
            values = self._work([key for key, _ in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            for one in batch:  # one key's mistake is not the others'
                self._run([one])
            return
        for (_, future), value in zip(batch, values, strict=True):
            future.set_result(value)
