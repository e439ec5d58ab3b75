"""The curve over numbers of shots: nested draws, pairs, costs, and cells that are not measured twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from shoal.errors import UsageError
from shoal.evaluation.shots import Prepared, Shots, ShotsMethod, measure_shots
from shoal.evaluation.shots_methods import in_prompt, shots_of, shuffled
from shoal.evaluation.shots_report import Cell, ShotsReport
from shoal.models.backbone import Backbone, load_backbone
from shoal.tasks.loading import Example, Task


def task(name: str) -> Task:
    train = tuple(Example(f"{name} thing {i}", (f"colour {i}",)) for i in range(9))
    test = tuple(Example(f"{name} other {i}", (f"hue {i}",)) for i in range(2))
    return Task(name, "test", "Say the colour.", ("Name the colour of a thing.",), train, test)


TASKS = [task("first"), task("second")]


@pytest.fixture(scope="module")
def backbone(tiny_llama: Path) -> Backbone:
    return load_backbone(str(tiny_llama), device="cpu", dtype=torch.float32)


class Recorder:
    """A method that notes its shots."""

    def __init__(self, **settings: object) -> None:
        self.seen: list[Shots] = []
        self.method = ShotsMethod("mine", self.prepare, **settings)

    def prepare(self, shots: Shots) -> Prepared:
        self.seen.append(shots)
        return Prepared(None, 2.0, 10 * len(shots.examples))


def measured(backbone: Backbone, recorder: Recorder, folder: Path, **settings: object) -> ShotsReport:
    limits = {"draws": 2, "examples": 2, "max_new_tokens": 2, **settings}
    return measure_shots(backbone, TASKS, [recorder.method], [4, 0, 2], folder, **limits)


def test_more_shots_contain_fewer_and_draws_differ(backbone: Backbone, tmp_path: Path) -> None:
    recorder = Recorder()
    report = measured(backbone, recorder, tmp_path)
    assert report.counts == (0, 2, 4)
    by_key = {(s.task.name, len(s.examples), s.draw): s.examples for s in recorder.seen}
    assert by_key["first", 4, 0][:2] == by_key["first", 2, 0]
    assert by_key["first", 4, 0] != by_key["first", 4, 1]
    assert all(set(examples) <= set(task(name).train) for (name, _, _), examples in by_key.items())
    assert report.costs("mine", 4)[:2] == (2.0, 40)
    # nothing differs between draws without shots, so these are measured once
    assert sum(not s.examples for s in recorder.seen) == len(TASKS)


def test_cells_are_not_measured_again(backbone: Backbone, tmp_path: Path) -> None:
    first, again, other = Recorder(), Recorder(), Recorder(depends_on="another network")
    report = measured(backbone, first, tmp_path)
    assert measured(backbone, again, tmp_path).to_json() == report.to_json()
    assert not again.seen
    measured(backbone, other, tmp_path)
    assert len(other.seen) == len(first.seen)


def test_a_method_that_needs_no_shots_is_measured_once_a_task(backbone: Backbone, tmp_path: Path) -> None:
    recorder = Recorder(uses_shots=False)
    report = measured(backbone, recorder, tmp_path)
    assert len(recorder.seen) == len(TASKS)
    assert report.interval("mine", 0, "nll") == report.interval("mine", 4, "nll")


def cells(*scores: float) -> dict[str, list[Cell]]:
    """A cell for each task."""
    return {
        t.name: [Cell({"rouge_l": s, "exact_match": 0.0, "nll": 1.0}, 1.5, 100, 30.0)]
        for t, s in zip(TASKS, scores, strict=True)
    }


REPORT = ShotsReport(
    "some/model",
    ("first", "second"),
    (0, 4),
    1,
    2,
    {"base": {0: cells(0.1, 0.5), 4: cells(0.2, 0.4)}, "mine": {4: cells(0.4, 0.5)}},
)


def test_leads_are_paired_over_tasks() -> None:
    lead = REPORT.lead("mine", "base", 4)
    assert (
        lead.mean == pytest.approx(0.15)
        and lead.low == pytest.approx(0.1)
        and lead.high == pytest.approx(0.2)
    )
    assert REPORT.worse_than_none("base", 4) == 1 and REPORT.worse_than_none("mine", 4) is None


def test_tables_have_a_column_a_number_and_a_dash_where_nothing_is_measured() -> None:
    text = REPORT.to_markdown("base")
    assert "| ROUGE-L | 0 | 4 |" in text and "| ROUGE-L minus that of base | 0 | 4 |" in text
    assert "| mine | - | 45.0 (40.0 to 50.0) |" in text and "| mine | - | 15.0 (10.0 to 20.0) |" in text
    assert "| base | 1.5 | 1.5 |" in text
    json.dumps(REPORT.to_json())


@pytest.mark.parametrize(
    ("counts", "settings", "said"),
    [
        ([], {}, "at least one of shots"),
        ([4, 4], {}, "at least one of shots, each once"),
        ([-1], {}, "shots -1 must be at least 0"),
        ([10], {}, "9 training and 2 test examples; 10 shots"),
        ([4], {"draws": 0}, "draws 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    counts: list[int], settings: dict, said: str, backbone: Backbone, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        measure_shots(backbone, TASKS, [Recorder().method], counts, tmp_path, **settings)


def test_prompts_hold_description_and_shots(backbone: Backbone) -> None:
    method = in_prompt("prompt", backbone)
    shots = Shots(TASKS[0], TASKS[0].train[:2], 0)
    request = method.request(shots, TASKS[0].test[0])
    assert request.startswith(
        "Name the colour of a thing.\n\nInput: first thing 0\nOutput: colour 0\n\nInput:"
    )
    assert request.endswith("Input: first other 0\nOutput:")
    none = method.request(Shots(TASKS[0], (), 0), TASKS[0].test[0])
    assert none == "Name the colour of a thing.\n\nfirst other 0"


def test_controls_change_labels_or_task() -> None:
    shots = Shots(TASKS[0], TASKS[0].train[:6], 0)
    mixed = shuffled(shots)
    assert [e.input for e in mixed] == [e.input for e in shots.examples]
    assert sorted(e.outputs for e in mixed) == sorted(e.outputs for e in shots.examples) and mixed != list(
        shots.examples
    )
    others = shots_of({"first": TASKS[1]})(shots)
    assert len(others) == 6 and set(others) <= set(TASKS[1].train)


def test_shuffled_labels_are_never_in_their_own_order() -> None:
    for draw in range(20):
        shots = Shots(TASKS[0], TASKS[0].train[:2], draw)
        assert [e.outputs for e in shuffled(shots)] == [("colour 1",), ("colour 0",)]


def test_more_shots_of_another_task_contain_fewer() -> None:
    few, many = (shots_of({"first": TASKS[1]})(Shots(TASKS[0], TASKS[0].train[:k], 0)) for k in (2, 6))
    assert many[:2] == few
