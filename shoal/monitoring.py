"""Counts of requests, as values and as Prometheus text.

Knows that a request was served, how long it took and what the process held; nothing of what was asked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from shoal.errors import ShoalError
from shoal.memory import resident

_HELP = {
    "total_requests": "Requests so far",
    "successful_requests": "Requests that ended without an error",
    "avg_response_time": "Mean time of a request in seconds",
    "avg_memory_usage": "Mean resident memory at the end of a request in bytes",
    "skill_detection_accuracy": "Share of labelled prompts whose skills are all found and no other",
}


@dataclass(frozen=True)
class MonitoringMetrics:
    """What an operator watches.

    Attributes:
        total_requests: requests so far.
        successful_requests: those that ended without an error.
        avg_response_time: mean over all requests, in seconds; None before the first.
        avg_memory_usage: mean of what the process held when each ended, in bytes; None before the first.
        skill_detection_accuracy: share of the labelled prompts whose skills are exactly right, in [0, 1].
    """

    total_requests: int
    successful_requests: int
    avg_response_time: float | None
    avg_memory_usage: float | None
    skill_detection_accuracy: float

    def to_prometheus(self, prefix: str = "shoal") -> str:
        """The same in Prometheus' text format; what is not known yet is left out.

        Raises:
            ShoalError: prometheus-client is not installed.
        """
        try:
            from prometheus_client import CollectorRegistry, Gauge, generate_latest
        except ImportError as error:
            raise ShoalError(
                f"metrics for Prometheus need {error.name}, which is not installed; "
                "pip install 'shoal[monitoring]'"
            ) from None
        registry = CollectorRegistry()
        for name, about in _HELP.items():
            value = getattr(self, name)
            if value is not None:  # gauges all: a counter's name would have to end otherwise
                Gauge(f"{prefix}_{name}", about, registry=registry).set(value)
        return generate_latest(registry).decode()


class RequestLog:
    """Counts requests; may be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = self._successful = 0
        self._seconds = self._bytes = 0.0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count what happens inside as one request, successful unless it raises."""
        started, failed = time.perf_counter(), True
        try:
            yield
            failed = False
        finally:
            self.add(time.perf_counter() - started, successful=not failed)

    def add(self, seconds: float, *, successful: bool) -> None:
        """Count a request that has ended after so many seconds."""
        held = resident()
        with self._lock:
            self._total += 1
            self._successful += successful
            self._seconds += seconds
            self._bytes += held

    def metrics(self, skill_detection_accuracy: float) -> MonitoringMetrics:
        """The counts so far, with an accuracy that was measured elsewhere."""
        with self._lock:
            total = self._total
            return MonitoringMetrics(
                total_requests=total,
                successful_requests=self._successful,
                avg_response_time=self._seconds / total if total else None,
                avg_memory_usage=self._bytes / total if total else None,
                skill_detection_accuracy=skill_detection_accuracy,
            )
