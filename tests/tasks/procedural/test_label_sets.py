"""Tasks with some labels of others: every description lists them, and every answer is one of them."""

from __future__ import annotations

import dataclasses

import pytest

from shoal.tasks.procedural.catalogue import procedural_tasks
from shoal.tasks.procedural.label_sets import EXAMPLES_A_LABEL, label_sets
from shoal.tasks.procedural.relabel import is_copy
from shoal.tasks.records import Example, Task

SOURCES = procedural_tasks(["country-continent", "news-topic", "phrase-language", "mail-department"])
DRAWN = label_sets(SOURCES, 40)


@pytest.mark.parametrize("task", DRAWN, ids=lambda task: task.name)
def test_descriptions_list_the_labels(task: Task) -> None:
    labels = {output for example in task.train for output in example.outputs}
    assert 2 <= len(labels) <= 8 and not task.test and is_copy(task)
    assert len(task.descriptions) >= 8
    for text in (task.definition, *task.descriptions):
        assert all(label in text for label in labels)
        assert len(text.split()) < 60


def test_every_answer_is_what_a_source_says() -> None:
    truth = {(example.input, example.outputs[0]) for task in SOURCES for example in task.train}
    assert {(e.input, e.outputs[0]) for task in DRAWN for e in task.train} <= truth
    assert all(len(e.outputs) == 1 for task in DRAWN for e in task.train)


def test_sets_differ_and_some_are_of_several_tasks() -> None:
    sets = [frozenset(e.outputs[0] for e in task.train) for task in DRAWN]
    owner = {e.outputs[0]: task.name for task in SOURCES for e in task.train}
    assert len(set(sets)) > 25
    assert 8 <= sum(len({owner[label] for label in one}) > 1 for one in sets) <= 32
    orders = {text.partition(":")[2] for text in DRAWN[0].descriptions if ":" in text}
    assert len(orders) > 1  # nor is one label always first


def test_they_depend_on_seed_and_tasks_alone() -> None:
    assert label_sets(SOURCES, 40) == DRAWN
    assert label_sets(SOURCES, 3, seed=1) != DRAWN[:3]
    assert len({task.name for task in (*DRAWN, *label_sets(SOURCES, 3, seed=1))}) == 43


def test_tasks_that_give_no_labels() -> None:
    task = next(task for task in SOURCES if task.name == "news-topic")

    def with_labels(change: dict[str, str]) -> Task:
        train = [Example(e.input, (change.get(e.outputs[0], e.outputs[0]),)) for e in task.train]
        return dataclasses.replace(task, train=tuple(train))

    names = sorted({e.outputs[0] for e in task.train})
    assert label_sets([task], 1)
    assert label_sets([with_labels({names[0]: "a label of too many words"})], 1) == []
    assert label_sets([with_labels({name: str(i) for i, name in enumerate(names)})], 1) == []
    assert label_sets([with_labels({name: names[-1] for name in names[2:]})], 1) == []
    assert label_sets([with_labels({name: f"{name}, too" for name in names[3:]})], 1) == []
    rare = [e for e in task.train if e.outputs[0] in names[:3]]
    for name in names[3:]:
        rare += [e for e in task.train if e.outputs[0] == name][: EXAMPLES_A_LABEL - 1]
    assert label_sets([dataclasses.replace(task, train=tuple(rare))], 1) == []
    assert label_sets(procedural_tasks(["list-sort"]), 5) == []
