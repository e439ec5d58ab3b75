"""Rates and means between two snapshots are those of what happened, and restarts and foreign text say so."""

from __future__ import annotations

import pytest

from shoal.apps.ui.counters import activity, parse_counters
from shoal.errors import ShoalError
from shoal.inference.engine.adapter_cache import CacheStatistics
from shoal.inference.engine.records import EngineState, FinishedRecord, StepRecord
from shoal.server.metrics import Monitoring

IDLE = EngineState(waiting=2, running=3, reading=0, kv_tokens=0, adapters=CacheStatistics())


@pytest.fixture
def monitoring() -> Monitoring:
    return Monitoring(lambda: IDLE, lambda: 0.5)


def test_what_happened_between_two_snapshots(monitoring: Monitoring) -> None:
    earlier = parse_counters(monitoring.exposition().decode(), 10.0)
    for running in (2, 4):
        monitoring.observe(StepRecord(0.1, running, waiting=0, prefill_tokens=0, gaps=(0.1,)))
    for queue in (0.2, 0.4):
        finished = FinishedRecord("stop", queue, 0.5, 1.0, prompt_tokens=7, completion_tokens=30)
        monitoring.observe(finished)
    for status in (200, 200, 404, 429):
        monitoring.answered("/v1/chat/completions", status, 0.1)
    now = activity(earlier, parse_counters(monitoring.exposition().decode(), 14.0))
    assert now is not None
    assert (now.tokens_per_second, now.requests_per_second, now.batch_rows) == (15.0, 1.0, 3.0)
    assert now.queue_seconds == pytest.approx(0.3) and now.first_token_seconds == pytest.approx(0.5)
    assert (now.waiting, now.running, now.cache_hit_share) == (2, 3, None)
    assert now.memory_bytes > 2**20


def test_where_nothing_happened_there_is_no_mean(monitoring: Monitoring) -> None:
    text = monitoring.exposition().decode()
    now = activity(parse_counters(text, 1.0), parse_counters(text, 2.0))
    assert now is not None and now.tokens_per_second == 0.0
    assert now.queue_seconds is now.batch_rows is now.first_token_seconds is None


def test_a_restarted_service_has_no_rates(monitoring: Monitoring) -> None:
    before = parse_counters(monitoring.exposition().decode(), 1.0)
    monitoring.answered("/health", 200, 0.1)
    after = parse_counters(monitoring.exposition().decode(), 2.0)
    assert activity(after, before) is None and activity(before, before) is None
    assert activity(parse_counters("shoal_requests_total 5\n", 1.0), parse_counters("", 2.0)) is None


def test_foreign_text_is_one_line() -> None:
    with pytest.raises(ShoalError, match="not in Prometheus"):
        parse_counters('shoal_requests{route="', 1.0)
