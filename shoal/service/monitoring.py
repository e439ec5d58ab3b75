"""What an operator watches, as Prometheus collects it, and the guide's five names for the same.

Each service has a registry of its own, so several may run in one process. Knows nothing of HTTP.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shoal.serving.records import EngineState, FinishedRecord, StepRecord

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Usage:
    """The guide's monitoring names.

    Attributes:
        total_requests: requests that were answered.
        successful_requests: those whose status was below 400.
        avg_response_time: seconds until the end of an answer.
        avg_memory_usage: bytes of this process in memory, averaged over answers.
        skill_detection_accuracy: share of people's judgements that called detected skills right; None before
            the first.
    """

    total_requests: int
    successful_requests: int
    avg_response_time: float
    avg_memory_usage: float
    skill_detection_accuracy: float | None


class Monitoring:
    """Counts and clocks of one service; for any number of threads."""

    def __init__(self, state: Callable[[], EngineState]) -> None:
        """Nothing is counted yet; `state` tells what the engine is busy with."""
        self.registry = CollectorRegistry()
        self._lock = threading.Lock()
        self._total = self._successful = self._judged = self._right = 0
        self._seconds = self._bytes = 0.0
        self.requests = Counter(
            "shoal_requests", "requests answered", ["route", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "shoal_request_seconds",
            "until the end of an answer",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.errors = Counter(
            "shoal_errors", "requests answered by an error", ["code"], registry=self.registry
        )
        self.outcomes = Counter(
            "shoal_generations", "requests to the engine that ended", ["outcome"], registry=self.registry
        )
        self.queue = Histogram(
            "shoal_queue_seconds", "until a request has a place", buckets=SECONDS, registry=self.registry
        )
        self.first_token = Histogram(
            "shoal_first_token_seconds", "until the first token", buckets=SECONDS, registry=self.registry
        )
        self.gap = Histogram(
            "shoal_token_gap_seconds", "between two tokens", buckets=SECONDS, registry=self.registry
        )
        self.tokens = Counter(
            "shoal_tokens",
            "tokens read and made; their rate is tokens a second",
            ["kind"],
            registry=self.registry,
        )
        self.batch = Histogram(
            "shoal_batch_rows", "answers that got a token in a step", buckets=ROWS, registry=self.registry
        )
        self.adapter_seconds = Histogram(
            "shoal_adapter_generation_seconds",
            "from a description to an adapter",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.memory = Gauge("shoal_memory_bytes", "of this process in memory", registry=self.registry)
        self.memory.set_function(memory_bytes)
        self.registry.register(_State(state))
        self.registry.register(_Guide(self.usage))

    def observe(self, record: StepRecord | FinishedRecord) -> None:
        """What the engine tells of its steps and requests."""
        if isinstance(record, StepRecord):
            if record.running:
                self.batch.observe(record.running)
            for gap in record.gaps:
                self.gap.observe(gap)
            return
        self.outcomes.labels(record.outcome).inc()
        self.queue.observe(record.queue_seconds)
        if record.first_token_seconds is not None:
            self.first_token.observe(record.first_token_seconds)
        self.tokens.labels("prompt").inc(record.prompt_tokens)
        self.tokens.labels("completion").inc(record.completion_tokens)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """One HTTP request that has ended."""
        self.requests.labels(route, str(status)).inc()
        self.request_seconds.labels(route).observe(seconds)
        if status >= 400:
            self.errors.labels(str(status)).inc()
        with self._lock:
            self._total += 1
            self._successful += status < 400
            self._seconds += seconds
            self._bytes += memory_bytes()

    def judged(self, right: bool) -> None:
        """What a person says of skills that were detected."""
        with self._lock:
            self._judged += 1
            self._right += right

    def usage(self) -> Usage:
        """The guide's names, of this process since it started."""
        with self._lock:
            answers = max(1, self._total)
            accuracy = self._right / self._judged if self._judged else None
            return Usage(
                self._total, self._successful, self._seconds / answers, self._bytes / answers, accuracy
            )

    def exposition(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)


class _State(Collector):
    """The engine's own counts, read when they are asked for."""

    def __init__(self, state: Callable[[], EngineState]) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        state = self._state()
        cache = state.adapters
        for name, about, value in (
            ("shoal_waiting_requests", "requests without a place", state.waiting),
            ("shoal_running_answers", "answers that are being generated", state.running),
            ("shoal_kv_tokens", "places for keys and values that are reserved", state.kv_tokens),
            ("shoal_cached_adapters", "adapters in memory", cache.adapters),
            ("shoal_cached_adapter_bytes", "bytes of adapters in memory", cache.bytes),
        ):
            yield GaugeMetricFamily(name, about, value)
        for name, about, value in (
            ("shoal_adapter_cache_hits", "adapters found in memory", cache.hits),
            ("shoal_adapter_cache_misses", "adapters read from disk", cache.misses),
            ("shoal_adapter_cache_evictions", "adapters given up for want of room", cache.evictions),
        ):
            yield CounterMetricFamily(name, about, value)


class _Guide(Collector):
    def __init__(self, usage: Callable[[], Usage]) -> None:
        self._usage = usage

    def collect(self) -> Iterator[Metric]:
        for name, value in vars(self._usage()).items():
            if value is not None:
                yield GaugeMetricFamily(name, "the guide's name; see shoal.service.monitoring.Usage", value)


def memory_bytes() -> int:
    """Bytes of this process in memory; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
