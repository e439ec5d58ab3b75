"""Calls that come while another runs are done together, as one batch, by the first that gets its turn.

For work whose batch costs little more than one call. Knows nothing of what the work is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Combined(Generic[Key, Value]):
    """A function of one thing, out of a function of many; for any number of threads."""

    def __init__(self, work: Callable[[Sequence[Key]], Sequence[Value]], limit: int) -> None:
        """Nothing runs yet.

        Args:
            work: gives a value for every key, in order; called by one thread at a time.
            limit: keys of one batch.
        """
        self._work, self._limit = work, limit
        self._turn, self._lock = threading.Lock(), threading.Lock()
        self._pending: list[tuple[Key, Future[Value]]] = []

    def __call__(self, key: Key) -> Value:
        """The value of a key; raises what `work` raises for this key alone."""
        own: Future[Value] = Future()
        with self._lock:
            self._pending.append((key, own))
        while not own.done():
            with self._turn:
                with self._lock:
                    batch, self._pending = self._pending[: self._limit], self._pending[self._limit :]
                if batch:
                    self._run(batch)
        return own.result()

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
