"""The adapters in vLLM: each is loaded before its first use, so many at most, none unloaded while in use.

Names are content: `shoal-` and the SHA-256 of an adapter's directory, so that one name never means two
adapters, whichever service of a registry asked for it. Knows nothing of requests.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from shoal.errors import ShoalError, UnavailableError, UsageError
from shoal.inference.engine.adapter_cache import CacheStatistics
from shoal.inference.vllm.client import VllmClient

log = logging.getLogger(__name__)

PREFIX = "shoal-"


@dataclass
class _Loaded:
    """An adapter in vLLM, or on its way there."""

    lock: threading.Lock = field(default_factory=threading.Lock)  # over loading it
    ready: bool = False
    users: int = 0
    gone: bool = False  # deleted: unloaded by the last who uses it


class VllmAdapters:
    """The adapters of one server; for any number of threads."""

    def __init__(
        self, client: VllmClient, directory: Callable[[str], str], unloaded: Callable[[str], None], most: int
    ) -> None:
        """Nothing is loaded yet.

        Args:
            client: of the server.
            directory: where the files of a content are, as vLLM finds them; raises where there are none.
            unloaded: called with a content that vLLM needs no more.
            most: adapters that are kept loaded.

        Raises:
            UsageError: most is below 1.
        """
        if most < 1:
            raise UsageError(f"{most} adapters in vLLM are below 1; allow more")
        self._client = client
        self._directory = directory
        self._most = most
        self._unloaded = unloaded
        self._lock = threading.Lock()  # over the next two
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()  # the one used last is last
        self._statistics = CacheStatistics()

    @contextmanager
    def using(self, sha256: str) -> Iterator[str]:
        """The name of a content in vLLM, where it stays loaded as long as the block runs.

        Raises:
            UnavailableError: vLLM did not load it, or as many others are in use as may be.
            ShoalError: its files are damaged or missing.
        """
        mine, evicted = self._take(sha256)
        try:
            for other in evicted:
                self._unload(other)
            with mine.lock:
                if not mine.ready:
                    self._client.load(PREFIX + sha256, self._directory(sha256))
                    mine.ready = True
            yield PREFIX + sha256
        finally:
            self._leave(sha256, mine)

    def forgotten(self, sha256: str) -> None:
        """Take note that vLLM has lost a content: its next use loads it again."""
        with self._lock:
            self._drop(sha256)

    def discard(self, sha256: str) -> None:
        """Unload a content, as soon as nobody uses it; a vLLM that cannot be reached is left alone."""
        with self._lock:
            mine = self._loaded.get(sha256)
            if mine is None:
                return
            mine.gone = True
            if mine.users:
                return
            self._drop(sha256)
        self._unload(sha256)

    def statistics(self) -> CacheStatistics:
        """Counts since the beginning, and how many are loaded; bytes are vLLM's to know."""
        with self._lock:
            return self._statistics

    def _take(self, sha256: str) -> tuple[_Loaded, list[str]]:
        """A content for one more user, and those that must make room for it."""
        evicted: list[str] = []
        with self._lock:
            mine = self._loaded.get(sha256)
            if mine is not None:
                self._statistics = replace(self._statistics, hits=self._statistics.hits + 1)
            else:
                idle = [name for name, other in self._loaded.items() if not other.users]
                excess = len(self._loaded) + 1 - self._most
                if excess > len(idle):
                    raise UnavailableError(
                        f"{len(self._loaded)} adapters are in use in vLLM; try again later"
                    )
                evicted = idle[: max(0, excess)]
                for name in evicted:
                    self._drop(name)
                mine = self._loaded[sha256] = _Loaded()
                now = self._statistics
                self._statistics = replace(
                    now,
                    misses=now.misses + 1,
                    evictions=now.evictions + len(evicted),
                    adapters=len(self._loaded),
                )
            self._loaded.move_to_end(sha256)
            mine.users += 1
        return mine, evicted

    def _leave(self, sha256: str, mine: _Loaded) -> None:
        with self._lock:
            mine.users -= 1
            last = not mine.users and self._loaded.get(sha256) is mine
            unload = last and mine.ready and mine.gone
            if last and (mine.gone or not mine.ready):
                self._drop(sha256)
        if unload:
            self._unload(sha256)

    def _drop(self, sha256: str) -> None:
        self._loaded.pop(sha256, None)
        self._statistics = replace(self._statistics, adapters=len(self._loaded))

    def _unload(self, sha256: str) -> None:
        try:
            self._client.unload(PREFIX + sha256)
        except ShoalError as error:  # vLLM keeps it until it is restarted: a name more, and no wrong answer
            log.warning("%s", error)
        self._unloaded(sha256)
