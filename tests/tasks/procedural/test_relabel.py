"""Relabelled tasks: the same inputs, other label names, and every description says which."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.errors import UsageError
from shoal.tasks.procedural.catalogue import procedural_tasks
from shoal.tasks.procedural.relabel import is_copy, relabel, siblings
from shoal.tasks.records import Example, Task
from shoal.text_to_lora.known_tasks import known_tasks

CLOSED = procedural_tasks(["number-parity", "review-sentiment", "sentence-type", "price-class"], size=60)


@pytest.mark.parametrize("task", CLOSED, ids=lambda task: task.name)
@pytest.mark.parametrize("seed", range(6))
def test_labels_are_renamed_one_to_one(task: Task, seed: int) -> None:
    other = relabel(task, seed)
    assert other is not None and other.name == f"{task.name}-relabelled-{seed}"
    assert is_copy(other) and not is_copy(task)
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


def test_copies_and_their_original_are_siblings() -> None:
    first, second = CLOSED[:2]
    copies = [relabel(first, 0), relabel(first, 1), relabel(second, 0)]
    drawn = dataclasses.replace(first, name="labels-relabelled-0-3")  # of several tasks: no copy of one
    tasks = [first, *copies, drawn, CLOSED[2], second]
    assert siblings(tasks) == {0: (1, 2), 1: (0, 2), 2: (0, 1), 3: (6,), 6: (3,)}


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


def test_every_closed_family_can_be_renamed() -> None:
    for task in procedural_tasks(size=64, test_size=16):
        few = len({e.outputs[0] for e in task.train}) <= 6 and "classification" in task.category
        for seed in range(4):
            other = relabel(task, seed)
            assert (other is not None) >= few, task.name
            if other is not None:
                check_renaming(task, other)


def check_renaming(task: Task, other: Task) -> None:
    """One new name for each label, in both parts, and all of them in every text."""
    olds = [e.outputs[0] for e in (*task.train, *task.test)]
    news = [e.outputs[0] for e in (*other.train, *other.test)]
    assert len(set(olds)) == len(set(news)) == len(set(zip(olds, news, strict=True))), task.name
    assert len(set(other.descriptions)) == len(task.descriptions)
    for text in (other.definition, *other.descriptions):
        assert all(new in text for new in set(news)), (task.name, text)


def test_a_name_that_becomes_too_long_is_refused() -> None:
    task = dataclasses.replace(CLOSED[0], name="n" * 120)
    with pytest.raises(UsageError, match="1 to 128"):
        relabel(task, 0)


def test_other_right_answers_are_renamed_or_left_out() -> None:
    train = (Example("2", ("even", "not odd")), Example("3", ("odd",)), Example("4", ("even", "odd")))
    other = relabel(dataclasses.replace(CLOSED[0], train=train), 0)
    assert other is not None
    even, odd = other.train[0].outputs[0], other.train[1].outputs[0]
    assert [e.outputs for e in other.train] == [(even,), (odd,), (even, odd)]


def test_too_many_labels_are_left_alone() -> None:
    train = tuple(Example(f"number {n}", (f"label {n}",)) for n in range(13))
    named = ", ".join(e.outputs[0] for e in train)
    task = dataclasses.replace(CLOSED[0], definition=named, train=train, test=train[:0])
    assert relabel(task, 0) is None
    assert relabel(dataclasses.replace(task, train=train[:12]), 0) is not None


class Directions:
    """Descriptions point one way, each in its own manner, and everything else the other way."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        known = {text for task in CLOSED for text in task.descriptions}
        seeds = [torch.Generator().manual_seed(sum(text.encode())) for text in texts]
        signs = torch.tensor([1.0 if text in known else -1.0 for text in texts])
        return signs[:, None] * (1 + 0.5 * torch.stack([torch.randn(8, generator=s) for s in seeds]))


def test_copies_say_nothing_of_how_near_unseen_tasks_are() -> None:
    copies = [copy for task in CLOSED if (copy := relabel(task, 0)) is not None]
    encoder: Any = Directions()
    alone, with_copies = known_tasks(encoder, CLOSED), known_tasks(encoder, [*CLOSED, *copies])
    assert alone is not None and with_copies is not None and len(copies) == len(CLOSED)
    assert (alone.names, alone.near, alone.far) == (with_copies.names, with_copies.near, with_copies.far)
