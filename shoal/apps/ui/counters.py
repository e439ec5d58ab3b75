"""What a service's counters say: one snapshot of `/metrics`, and what happened between two.

Counters only grow, so a mean or a rate is the difference of two snapshots; where nothing happened there is
none. Knows nothing of HTTP and of charts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from shoal.errors import ShoalError, reason


@dataclass(frozen=True)
class Snapshot:
    """Counters at one time.

    Attributes:
        seconds: when, on any clock that only goes on.
        values: name -> value, summed over labels; `shoal_tokens_total` also by kind, as `...{completion}`.
    """

    seconds: float
    values: Mapping[str, float]

    def __getitem__(self, name: str) -> float:
        return self.values.get(name, 0.0)


@dataclass(frozen=True)
class Activity:
    """What happened between two snapshots; None where nothing did.

    Attributes:
        seconds: of the later one.
        tokens_per_second: that were made.
        requests_per_second: that were answered.
        queue_seconds: mean time until a request had a place.
        first_token_seconds: mean time until its first token.
        batch_rows: mean number of answers that got a token in a step.
        cache_hit_share: of adapters that were asked for, those found in memory, in [0, 1].
        memory_bytes: of the process at the later one.
        cached_adapters: in memory at the later one.
        running: answers being generated at the later one.
        waiting: requests without a place at the later one.
    """

    seconds: float
    tokens_per_second: float
    requests_per_second: float
    queue_seconds: float | None
    first_token_seconds: float | None
    batch_rows: float | None
    cache_hit_share: float | None
    memory_bytes: float
    cached_adapters: int
    running: int
    waiting: int


def parse_counters(exposition: str, seconds: float) -> Snapshot:
    """A snapshot from Prometheus' text format.

    Raises:
        ShoalError: it is not in that format.
    """
    from prometheus_client.parser import text_string_to_metric_families

    values: dict[str, float] = defaultdict(float)
    try:
        for family in text_string_to_metric_families(exposition):
            for sample in family.samples:
                if sample.name.endswith("_bucket"):
                    continue
                values[sample.name] += sample.value
                if "kind" in sample.labels:
                    values[f"{sample.name}{{{sample.labels['kind']}}}"] += sample.value
    except (ValueError, KeyError, IndexError) as error:
        raise ShoalError(f"the metrics are not in Prometheus' text format ({reason(error, 80)})") from None
    return Snapshot(seconds, values)


def activity(earlier: Snapshot, later: Snapshot) -> Activity | None:
    """What happened between two snapshots; None where the service was started anew, or no time passed."""
    passed = later.seconds - earlier.seconds
    if passed <= 0 or any(later[name] < earlier[name] for name in _COUNTERS):
        return None

    def grown(name: str) -> float:
        return later[name] - earlier[name]

    def mean(name: str) -> float | None:
        count = grown(f"{name}_count")
        return grown(f"{name}_sum") / count if count else None

    hits, misses = (grown(f"shoal_adapter_cache_{kind}_total") for kind in ("hits", "misses"))
    return Activity(
        seconds=later.seconds,
        tokens_per_second=grown("shoal_tokens_total{completion}") / passed,
        requests_per_second=grown("shoal_requests_total") / passed,
        queue_seconds=mean("shoal_queue_seconds"),
        first_token_seconds=mean("shoal_first_token_seconds"),
        batch_rows=mean("shoal_batch_rows"),
        cache_hit_share=hits / (hits + misses) if hits + misses else None,
        memory_bytes=later["shoal_memory_bytes"],
        cached_adapters=int(later["shoal_cached_adapters"]),
        running=int(later["shoal_running_answers"]),
        waiting=int(later["shoal_waiting_requests"]),
    )


_COUNTERS = (
    "shoal_requests_total",
    "shoal_tokens_total{completion}",
    "shoal_queue_seconds_count",
    "shoal_batch_rows_count",
    "shoal_adapter_cache_hits_total",
    "shoal_adapter_cache_misses_total",
)
