"""Limits of an owner: requests and tokens per minute, and requests at once.

Requests at once are counted in this process, the others too unless a database counts them for several.
Tokens are counted when a request is taken on, an answer at its limit, as OpenAI's rate limits count them.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from shoal.config import ServiceConfig
from shoal.server.errors import Failure
from shoal.server.shared_rates import SharedRates


class RateLimits:
    """The counts of every owner; for any number of threads."""

    def __init__(self, config: ServiceConfig, shared: SharedRates | None = None) -> None:
        self._config = config
        self._shared = shared
        self._windows = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._requests = RateLimitItemPerMinute(config.requests_per_minute, namespace="requests")
        self._tokens = RateLimitItemPerMinute(config.tokens_per_minute, namespace="tokens")
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def request(self, owner: str) -> Iterator[None]:
        """One request of an owner, from its headers to its end.

        Raises:
            Failure: 429 where the owner has too many open or had too many this minute, 503 where all have.
        """
        config = self._config
        with self._lock:
            if self._open.total() >= config.max_open:
                raise _busy(
                    503, f"{config.max_open} requests are open, no more are taken", config.retry_seconds
                )
            if self._open[owner] >= config.max_open_a_key:
                raise _busy(
                    429, f"{config.max_open_a_key} requests of {owner} are open", config.retry_seconds
                )
            self._open[owner] += 1
        try:
            self._count(self._requests, owner, 1, "requests")
            yield
        finally:
            with self._lock:
                self._open[owner] -= 1
                if not self._open[owner]:
                    del self._open[owner]

    def tokens(self, owner: str, count: int) -> None:
        """Count tokens before they are made.

        Raises:
            Failure: 429 where the owner has used up this minute's; 400 for more than any minute has.
        """
        if count > self._config.tokens_per_minute:
            raise Failure(
                400,
                f"the request asks for up to {count} tokens, the limit is {self._config.tokens_per_minute} a "
                "minute; ask for less",
            )
        self._count(self._tokens, owner, count, "tokens")

    def _count(self, item: RateLimitItemPerMinute, owner: str, cost: int, what: str) -> None:
        if self._shared is not None:
            seconds = self._shared.hit(what, owner, cost, item.amount)
        elif self._windows.hit(item, owner, cost=cost):
            seconds = None
        else:
            left = self._windows.get_window_stats(item, owner).reset_time - time.time()
            seconds = max(1, math.ceil(left))
        if seconds is not None:
            raise _busy(429, f"{owner} is above {item.amount} {what} a minute", seconds)


def _busy(status: int, message: str, seconds: int) -> Failure:
    code, kind = (
        ("rate_limit_exceeded", "rate_limit_error") if status == 429 else ("unavailable", "server_error")
    )
    return Failure(status, f"{message}; ask again in {seconds} s", kind, code, retry_after=seconds)
