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


class Combined(Generic[Key, Value]):
    """A function of one thing, out of a function of many; for any number of threads."""

    def __init__(self, work: Callable[[Sequence[Key]], Sequence[Value]], limit: int) -> None:
        """Nothing runs yet.

        Args:
            work: gives a value for every key, in order; always called on the same thread.
            limit: keys of one batch.
        """
        self._work, self._limit = work, limit
        self._thread, self._lock = ThreadPoolExecutor(1, "shoal-combined"), threading.Lock()
        self._pending: list[tuple[Key, Future[Value]]] = []

    def __call__(self, key: Key) -> Value:
        """The value of a key.

        Raises:
            UnavailableError: it was closed.
            Exception: what `work` raises for this key alone.
        """
        own: Future[Value] = Future()
        with self._lock:
            self._pending.append((key, own))
        try:
            self._thread.submit(self._next)
        except RuntimeError:
            raise UnavailableError("the service was stopped; ask again when it is back") from None
        return own.result()

    def close(self) -> None:
        """End the thread after what is asked for already."""
        self._thread.shutdown(wait=False)

    def _next(self) -> None:
        with self._lock:
            batch, self._pending = self._pending[: self._limit], self._pending[self._limit :]
        if batch:  # else an earlier one took them along
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
