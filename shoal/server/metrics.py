"""Metrics of a service, as Prometheus collects them, and the guide's five names for the same.

Each service has a registry of its own, so several may run in one process. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shoal.inference.engine.records import EngineState, FinishedRecord, StepRecord
from shoal.integration import MonitoringMetrics, RequestLog
from shoal.process import resident

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Monitoring:
    """Counts and clocks of one service; for any number of threads."""

    def __init__(self, state: Callable[[], EngineState], skill_accuracy: Callable[[], float]) -> None:
        """Nothing is counted yet.

        Args:
            state: tells what the engine is busy with.
            skill_accuracy: measures how well skills are detected; called once, when it is first asked for.
        """
        self.registry = CollectorRegistry()
        self._log = RequestLog()
        self._skill_accuracy = cache(skill_accuracy)
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
            "tokens read and generated; their rate is tokens per second",
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
        self.memory.set_function(resident)
        self.registry.register(_State(state))
        self.registry.register(_Guide(self.usage))

    def observe(self, record: StepRecord | FinishedRecord) -> None:
        """Count a step or a request of the engine."""
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
        """Count an HTTP request that has ended."""
        self.requests.labels(route, str(status)).inc()
        self.request_seconds.labels(route).observe(seconds)
        if status >= 400:
            self.errors.labels(str(status)).inc()
        self._log.add(seconds, successful=status < 400)

    def usage(self) -> MonitoringMetrics:
        """The guide's names, of this process since it started."""
        return self._log.metrics(self._skill_accuracy())

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
            ("shoal_waiting_requests", "requests whose prompts wait to be read", state.waiting),
            ("shoal_running_answers", "answers that are being generated", state.running),
            ("shoal_paused_answers", "answers that wait for their turn", state.paused),
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
    def __init__(self, usage: Callable[[], MonitoringMetrics]) -> None:
        self._usage = usage

    def collect(self) -> Iterator[Metric]:
        for name, value in vars(self._usage()).items():
            if value is not None:
                yield GaugeMetricFamily(
                    name, "the guide's name; see shoal.integration.MonitoringMetrics", value
                )
