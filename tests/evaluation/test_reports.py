"""Reports as values: means, paired differences, tables, and JSON there and back."""

import json
from dataclasses import replace

import pytest

from shoal.errors import ShoalError, UsageError
from shoal.evaluation.reports import Answer, MethodResult, Report, cell, mean_result, summarise
from shoal.tasks.metrics import Interval


def answer(rouge: float, exact: float, nll: float) -> Answer:
    return Answer("in", "out", ("right", "also right"), rouge, exact, nll)


def result(name: str, *scores: tuple[float, float, float]) -> MethodResult:
    return summarise(name, {f"task{i}": [answer(*s)] for i, s in enumerate(scores)}, samples=1)


BASE = result("base", (0.2, 0.0, 3.0), (0.4, 0.0, 5.0))
T2L = result("T2L", (0.5, 1.0, 2.0), (0.5, 0.0, 1.0))
REPORT = Report("some/model", ("task0", "task1"), 7, (BASE, T2L), {"seed": 3})


def test_scores_are_means_over_examples_then_over_tasks() -> None:
    answers = {
        "a": [answer(0.0, 1.0, 2.0), answer(1.0, 1.0, 4.0), answer(0.5, 0.0, 0.0)],
        "b": [answer(1, 0, 1)],
    }
    got = summarise("m", answers, samples=2)
    assert got.scores == {
        "rouge_l": {"a": 0.5, "b": 1.0},
        "exact_match": {"a": pytest.approx(2 / 3), "b": 0.0},
        "nll": {"a": 2.0, "b": 1.0},
    }
    assert got.intervals["rouge_l"].mean == 0.75 and got.intervals["rouge_l"].n == 2
    assert [len(kept) for kept in got.samples.values()] == [2, 1]


def test_differences_are_paired_over_tasks() -> None:
    difference = REPORT.difference("T2L", "base", "nll")
    assert difference.mean == pytest.approx((-1.0 - 4.0) / 2)
    assert (difference.low, difference.high) == (-4.0, -1.0)
    assert REPORT.difference("base", "base", "rouge_l") == Interval(0.0, 0.0, 0.0, 2)


def test_a_mean_row_averages_repetitions() -> None:
    mean = mean_result("mean", [BASE, T2L])
    assert mean.scores["nll"] == {"task0": 2.5, "task1": 3.0}
    assert mean.intervals["nll"].mean == 2.75
    assert mean.samples == BASE.samples
    assert mean_result("same", [T2L]).scores == T2L.scores


def test_a_mean_of_nothing_or_of_other_tasks_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one result"):
        mean_result("mean", [])
    with pytest.raises(UsageError, match="same tasks"):
        mean_result("mean", [BASE, result("short", (0, 0, 0))])


def test_what_is_not_in_the_report_is_named() -> None:
    with pytest.raises(UsageError, match="no method 'other'; choose from 'base', 'T2L'"):
        REPORT.result("other")
    with pytest.raises(UsageError, match="unknown metric 'bleu'; choose from rouge_l"):
        REPORT.difference("T2L", "base", "bleu")


def test_json_there_and_back() -> None:
    text = json.dumps(REPORT.to_json())
    assert Report.from_json(json.loads(text)) == REPORT


@pytest.mark.parametrize(
    "damage", [{"results": 3}, {"tasks": None}, {"results": [{"name": "x"}]}, {"notes": 1}]
)
def test_json_that_is_no_report_is_refused(damage: dict) -> None:
    with pytest.raises(ShoalError, match="not an evaluation report"):
        Report.from_json({**REPORT.to_json(), **damage})
    with pytest.raises(ShoalError, match="not an evaluation report"):
        Report.from_json({})


def test_the_table() -> None:
    lines = REPORT.to_markdown("T2L").splitlines()
    assert lines[0] == "|  | ROUGE-L | exact match | NLL per token | T2L leads by |"
    assert lines[1] == "|---|---:|---:|---:|---:|"
    assert (
        lines[2]
        == "| base | 30.0 (20.0 to 40.0) | 0.0 (0.0 to 0.0) | 4.00 (3.00 to 5.00) | 20.0 (10.0 to 30.0) |"
    )
    assert lines[3] == "| T2L | 50.0 (50.0 to 50.0) | 50.0 (0.0 to 100.0) | 1.50 (1.00 to 2.00) |  |"
    assert lines[5].startswith("2 tasks, at most 7 test examples each")
    assert "leads by" not in REPORT.to_markdown()


def test_one_task_has_no_interval() -> None:
    alone = replace(REPORT, tasks=("task0",), results=(result("base", (0.25, 0.0, 3.0)),))
    assert "| base | 25.0 | 0.0 | 3.00 |" in alone.to_markdown()
    assert cell(Interval(1.5, None, None, 1), "nll") == "1.50"
