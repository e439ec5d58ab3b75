"""Rows answered from label sets, beside the plain ones and for every method."""

from pathlib import Path

import pytest
import torch

from shoal.evaluation.evaluate import Method, described, evaluate
from shoal.evaluation.label_sets import SUFFIX, described_label_sets
from shoal.models.backbone import Backbone, load_backbone
from shoal.tasks.loading import Example, Task


def task(name: str, description: str, train: int = 4) -> Task:
    return Task(
        name=name,
        category="test",
        definition="Sort.",
        descriptions=(description,),
        train=tuple(Example(f"{name} thing {i}", ("cat",)) for i in range(train)),
        test=tuple(Example(f"{name} other {i}", ("cat", "dog")) for i in range(3)),
    )


CLOSED = task("closed", "Classify the word as cat, dog or cow.")
OPEN = task("open", "Say something about the word.")


@pytest.fixture(scope="module")
def backbone(tiny_llama: Path) -> Backbone:
    return load_backbone(str(tiny_llama), device="cpu", dtype=torch.float32)


def test_sets_are_read_from_first_descriptions_alone() -> None:
    assert described_label_sets([CLOSED, OPEN]) == {"closed": ("cat", "dog", "cow")}


def test_every_method_has_a_second_row(backbone: Backbone) -> None:
    methods = [Method("base"), Method("told", request=described)]
    report = evaluate(
        backbone, [CLOSED, OPEN], methods, max_new_tokens=2, label_sets={"closed": ("cat", "dog")}
    )
    names = [result.name for result in report.results]
    assert names == ["base", "base" + SUFFIX, "told", "told" + SUFFIX]
    plain, labelled = report.results[:2]
    assert {a.answer for a in labelled.samples["closed"]} <= {"cat", "dog"}
    assert labelled.scores["exact_match"]["closed"] == 1
    assert labelled.samples["open"] == plain.samples["open"]
    assert labelled.scores["nll"] == plain.scores["nll"]


def test_without_inputs_content_free_texts_calibrate(backbone: Backbone) -> None:
    bare = task("bare", "Classify the word as cat or dog.", train=0)
    report = evaluate(
        backbone, [bare], [Method("base")], max_new_tokens=2, label_sets={"bare": ("cat", "cow")}
    )
    assert {a.answer for a in report.results[1].samples["bare"]} <= {"cat", "cow"}
