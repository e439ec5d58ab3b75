"""Requests are counted as they end, and every number can be scraped."""

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shoal.errors import UsageError
from shoal.integration import RequestLog
from shoal.process import forget_peak, peak, resident
from shoal.text_to_lora.skill_check import LABELLED, detection_accuracy
from shoal.text_to_lora.skill_keywords import SKILLS


def test_requests_are_counted_as_they_end() -> None:
    log = RequestLog()
    empty = log.metrics(0.5)
    assert empty.total_requests == 0 and empty.avg_response_time is empty.avg_memory_usage is None
    with log.request():
        pass
    with pytest.raises(UsageError), log.request():
        raise UsageError("no")
    metrics = log.metrics(0.5)
    assert (metrics.total_requests, metrics.successful_requests) == (2, 1)
    assert 0 < metrics.avg_response_time < 1 and metrics.avg_memory_usage > 1e6


def test_printed_metrics_name_their_units() -> None:
    log = RequestLog()
    assert str(log.metrics(0.5)).splitlines()[-1] == "skill_detection_accuracy: 0.5"
    log.add(0.25, successful=True)
    lines = str(log.metrics(0.5)).splitlines()
    assert lines[:3] == ["total_requests: 1", "successful_requests: 1", "avg_response_time: 0.25 seconds"]
    assert re.fullmatch(r"avg_memory_usage: \d{7,} bytes", lines[3])


def test_prometheus_reads_every_number() -> None:
    log = RequestLog()
    unknown = log.metrics(0.25).to_prometheus()
    assert "avg_response_time" not in unknown
    with log.request():
        pass
    metrics = log.metrics(0.25)
    read = {f.name: f.samples[0].value for f in text_string_to_metric_families(metrics.to_prometheus())}
    assert read == {f"shoal_{name}": value for name, value in vars(metrics).items()}


def test_accuracy_is_the_share_of_exactly_right_sets() -> None:
    truth = {text: skills.split() for skills, texts in LABELLED.items() for text in texts}
    assert detection_accuracy(lambda texts: [truth[t] for t in texts]) == 1
    assert detection_accuracy(lambda texts: [[] for _ in texts]) == len(LABELLED[""]) / len(truth)
    assert detection_accuracy(lambda texts: [[*truth[t], "more"] for t in texts]) == 0


def test_labelled_prompts_were_never_fitted_on() -> None:
    def words(text: str) -> frozenset[str]:
        return frozenset(re.findall(r"[a-z+#]+", text.casefold()))

    root = Path(__file__).resolve().parents[1]
    lines = (root / "benchmarks" / "skill_prompts.jsonl").read_text("utf-8").splitlines()
    fitted = {words(json.loads(line)["prompt"]) for line in lines}
    ours = [text for texts in LABELLED.values() for text in texts]
    assert len(set(ours)) == len(ours)
    for text in ours:
        own = words(text)
        assert max(len(own & other) / len(own | other) for other in fitted if other) <= 0.7, text
    assert {skill for skills in LABELLED for skill in skills.split()} == set(SKILLS)


def test_the_peak_is_that_since_it_was_forgotten() -> None:
    assert peak() >= 0.9 * resident() > 1e6
    if not forget_peak():
        return  # the kernel keeps one peak for a process's life
    before = peak()
    held = bytearray(400_000_000)  # others in this process may give some back meanwhile
    assert peak() >= before + 250_000_000
    del held
    assert forget_peak() and peak() < before + 150_000_000
