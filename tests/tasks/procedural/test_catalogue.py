"""The catalogue as a whole: enough families, told apart by their descriptions, divided without a leak."""

from __future__ import annotations

from collections import Counter

import pytest

from shoal.errors import ShoalError, UsageError
from shoal.tasks.procedural.catalogue import FAMILIES, make_task, procedural_tasks
from shoal.tasks.procedural.family import Family
from shoal.tasks.records import Task, check_no_leakage
from shoal.tasks.texts import normalise

NAMES = [family.name for family in FAMILIES]


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    return {task.name: task for task in procedural_tasks(size=64, test_size=8)}


def test_there_are_many_families_of_many_kinds(tasks: dict[str, Task]) -> None:
    assert len(tasks) == len(FAMILIES) >= 60
    assert len({task.category for task in tasks.values()}) >= 10
    assert all(task.source == ("procedural",) and task.license == ("MIT",) for task in tasks.values())


def test_no_description_serves_two_families() -> None:
    texts = [text for family in FAMILIES for text in family.descriptions]  # as written: some are about case
    assert len(set(texts)) == len(texts) and all(text.strip() for text in texts)


@pytest.mark.parametrize("name", NAMES)
def test_a_family_is_described_and_gives_short_distinct_examples(name: str, tasks: dict[str, Task]) -> None:
    task = tasks[name]
    assert len(task.descriptions) >= 10 and task.definition.strip()
    examples = [*task.train, *task.test]
    assert len({normalise(e.input) for e in examples}) == len(examples) >= 40
    assert len(task.test) >= 4
    assert all(e.outputs[0].strip() and len(e.input.split()) <= 80 for e in examples)
    answers = [e.outputs[0] for e in examples]
    assert max(answers.count(answer) for answer in set(answers)) <= 0.75 * len(answers)


def test_no_tested_input_is_trained_on_by_any_family(tasks: dict[str, Task]) -> None:
    tested = {normalise(e.input) for task in tasks.values() for e in task.test}
    assert not tested & {normalise(e.input) for task in tasks.values() for e in task.train}
    check_no_leakage(list(tasks.values())[1:], list(tasks.values())[:1])


def test_a_task_depends_on_its_own_name_sizes_and_seed(tasks: dict[str, Task]) -> None:
    chosen = procedural_tasks(["list-sort", "first-word"], size=64, test_size=8)
    assert chosen == [tasks["list-sort"], tasks["first-word"]]
    assert procedural_tasks(["list-sort"], size=64, test_size=8, seed=1) != chosen[:1]


def test_neither_order_nor_company_changes_a_task(tasks: dict[str, Task]) -> None:
    backwards = procedural_tasks(reversed(NAMES), size=64, test_size=8)
    assert backwards == [tasks[name] for name in reversed(NAMES)]
    assert procedural_tasks(NAMES[::7], size=64, test_size=8) == [tasks[name] for name in NAMES[::7]]


@pytest.mark.parametrize("seed", [0, 1])
def test_larger_tasks_keep_balance_and_division(seed: int) -> None:
    tasks = procedural_tasks(seed=seed)
    tested = {normalise(e.input) for task in tasks for e in task.test}
    assert not tested & {normalise(e.input) for task in tasks for e in task.train}
    for task in tasks:
        answers = Counter(e.outputs[0] for e in (*task.train, *task.test))
        assert max(answers.values()) <= 0.75 * answers.total(), task.name


def test_nothing_need_be_tested() -> None:
    (task,) = procedural_tasks(["first-word"], size=10, test_size=0)
    assert (len(task.train), len(task.test)) == (10, 0)
    (task,) = procedural_tasks(["country-capital"], size=1000)
    assert len(task.train) + len(task.test) < 100  # there are no more countries


def test_a_family_needs_two_inputs() -> None:
    family = Family("constant", "none", "Answer.", ("answer",), lambda rng: ("same", "answer"))
    with pytest.raises(ShoalError, match="constant: 1 different inputs; at least 2"):
        make_task(family, size=4, test_size=1, seed=0)


def test_sizes_are_kept() -> None:
    (task,) = procedural_tasks(["first-word"], size=50, test_size=10)
    assert (len(task.train), len(task.test)) == (40, 10)
    (task,) = procedural_tasks(["first-word"], size=6, test_size=100)
    assert (len(task.train), len(task.test)) == (3, 3)


@pytest.mark.parametrize(
    ("names", "sizes", "message"),
    [
        (["list-sorted"], {}, "did you mean list-sort"),
        (["%$"], {}, "FAMILIES lists them"),
        (["list-sort", "list-sort"], {}, "named 2 times"),
        ("list-sort", {}, "is one string"),
        (None, {"size": 1}, "size 1: must be at least 2"),
        (None, {"test_size": -1}, "test_size -1: must be at least 0"),
    ],
)
def test_mistakes(names: object, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        procedural_tasks(names, **sizes)  # type: ignore[arg-type]
