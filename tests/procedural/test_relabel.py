"""Relabelled tasks: the same inputs, other label names, and every description says which."""

from __future__ import annotations

import dataclasses

import pytest

from shoal.procedural.catalogue import procedural_tasks
from shoal.procedural.relabel import relabel
from shoal.task_records import Example, Task

CLOSED = procedural_tasks(["number-parity", "review-sentiment", "sentence-type", "price-class"], size=60)


@pytest.mark.parametrize("task", CLOSED, ids=lambda task: task.name)
@pytest.mark.parametrize("seed", range(6))
def test_labels_are_renamed_one_to_one(task: Task, seed: int) -> None:
    other = relabel(task, seed)
    assert other is not None and other.name == f"{task.name}-relabelled-{seed}"
    assert other == relabel(task, seed)
    renamed = {}
    for part in ("train", "test"):
        for old, new in zip(getattr(task, part), getattr(other, part), strict=True):
            assert old.input == new.input
            assert renamed.setdefault(old.outputs[0], new.outputs[0]) == new.outputs[0]
    assert len(set(renamed.values())) == len(renamed) and not set(renamed) & set(renamed.values())
    assert len(set(other.descriptions)) == len(other.descriptions) == len(task.descriptions)
    for text in (other.definition, *other.descriptions):
        assert all(label in text for label in renamed.values()), text


def test_seeds_give_other_names() -> None:
    names = {e.outputs[0] for seed in range(12) for e in relabel(CLOSED[0], seed).train}
    assert len(names) > 8


def test_unsuitable_tasks_are_left_alone() -> None:
    (open_answers,) = procedural_tasks(["list-sort"], size=60)
    task = CLOSED[0]
    long = tuple(Example(e.input, (f"the answer is {e.outputs[0]}",)) for e in task.train)
    odd_test = (Example("zero", ("neither",)),)
    for unsuitable in (
        open_answers,
        dataclasses.replace(task, train=long),
        dataclasses.replace(task, test=odd_test),
        dataclasses.replace(task, train=tuple(e for e in task.train if e.outputs[0] == "odd")),
        dataclasses.replace(task, definition="Judge it.", descriptions=("Judge the number.",)),
    ):
        assert relabel(unsuitable, 0) is None
