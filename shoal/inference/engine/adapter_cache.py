"""Adapters in memory by name, those used last, within a number of bytes.

Loads what is asked for, each name once at a time. Knows nothing of where adapters come from.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass

from cachetools import LRUCache

from shoal.adapters.base import Adapter
from shoal.errors import UsageError


@dataclass(frozen=True)
class CacheStatistics:
    """Figures of a cache since its beginning, and its content now.

    Attributes:
        hits: requests for an adapter that was there, or on its way.
        misses: requests that loaded one.
        evictions: adapters given up for want of room.
        adapters: how many are held.
        bytes: that they take.
    """

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    adapters: int = 0
    bytes: int = 0


class AdapterCache:
    """A bounded cache for any number of threads."""

    def __init__(self, load: Callable[[str], Adapter], max_bytes: int) -> None:
        """Nothing is loaded yet.

        Args:
            load: gives the adapter of a name, best in the dtype and on the device of the model, or raises; it
                is called without a lock, on the thread that asks.
            max_bytes: of all adapters together. One that is larger is given out and not kept.

        Raises:
            UsageError: max_bytes is below 0.
        """
        if max_bytes < 0:
            raise UsageError(f"max_bytes {max_bytes} is below 0; give the bytes that adapters may take")
        self._load = load
        self._lock = threading.Lock()  # over all that follow
        self._held: LRUCache[str, Adapter] = LRUCache(max_bytes, getsizeof=lambda adapter: adapter.nbytes)
        self._loading: dict[str, Future[Adapter]] = {}
        self._hits = 0
        self._misses = 0
        self._evictions = 0

    def get(self, name: str, *, again: bool = False) -> Adapter:
        """The adapter of a name, loaded if need be.

        Args:
            name: of the adapter.
            again: for a request that has asked before, which is no other hit.

        Raises:
            Exception: whatever `load` raises, to everyone who waited for it; nothing of it is kept.
        """
        with self._lock:
            held, loading = self._held.get(name), self._loading.get(name)
            if held is None and loading is None:
                own = self._loading[name] = Future()
                self._misses += 1
            elif not again:
                self._hits += 1
        if held is not None:
            return held
        if loading is not None:
            return loading.result()
        try:
            adapter = self._load(name)
        except BaseException as error:
            with self._lock:
                self._forget(name, own)
            own.set_exception(error)
            raise
        with self._lock:
            if self._forget(name, own):
                self._keep(name, adapter)
        own.set_result(adapter)
        return adapter

    def discard(self, name: str) -> None:
        """Forget an adapter, also one that is being loaded: the next `get` loads it anew."""
        with self._lock:
            self._loading.pop(name, None)
            self._held.pop(name, None)

    def statistics(self) -> CacheStatistics:
        """Counts since the beginning, and what is held now."""
        with self._lock:
            held = self._held
            return CacheStatistics(self._hits, self._misses, self._evictions, len(held), int(held.currsize))

    def _forget(self, name: str, own: Future[Adapter]) -> bool:
        """End a load; True where it was still wanted."""
        wanted = self._loading.get(name) is own
        if wanted:
            del self._loading[name]
        return wanted

    def _keep(self, name: str, adapter: Adapter) -> None:
        """Hold an adapter that was not there, in the place of those used longest ago."""
        before = len(self._held)
        with suppress(ValueError):  # larger than all that may be held
            self._held[name] = adapter
            self._evictions += before + 1 - len(self._held)
