"""Example, Task and Split records, and the rule that keeps training and evaluation apart.

Two texts are the same when they agree after Unicode NFKC, case folding and collapsing of whitespace. A
training example leaks

* when its input is among the test inputs of its own task, or
* when its input together with one of its outputs is in the test part of another training task, or in any part
  of a task that is held out.

The records refuse what leaks; `remove_leaks` takes it out of training first. An input that two tasks share
with different answers is not a leak: many collections ask several questions about one text.

Knows nothing of files, tokens or models.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shoal.config import MIN_EXAMPLES
from shoal.errors import ShoalError, UsageError, shorten
from shoal.tasks.texts import check_task_name, check_text, check_texts, normalise, prompted_input

logger = logging.getLogger(__name__)


class LeakageError(ShoalError):
    """Evaluation data is among the training data."""


@dataclass(frozen=True)
class Example:
    """An input and the answers that are right for it; training uses `outputs[0]` or a random one.

    Raises:
        UsageError: the input is blank, or there is no output, or an output is blank, or one is not a string.
    """

    input: str
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
        check_text(self.input, "input")
        check_texts(self.outputs, "outputs")


Solved = (
    Example | tuple[str, str | Sequence[str]]
)  # as given from outside: an input, and what is right for it


@dataclass(frozen=True)
class Task:
    """One thing to learn: its descriptions, and examples to train on and to be tested on.

    `train` or `test` may be empty, not both. `definition` is the full instruction; `descriptions` are
    paraphrases that a user might type.

    Raises:
        UsageError: a field is of the wrong type, empty or blank, or the name does not match `TASK_NAME`.
        LeakageError: an input of `test` is also in `train`.
    """

    name: str
    category: str
    definition: str
    descriptions: tuple[str, ...]
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    source: tuple[str, ...] = ()
    license: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_task_name(self.name)
        check_text(self.definition, "definition")
        check_texts(self.descriptions, "descriptions")
        if not self.train and not self.test:
            raise UsageError(
                f"task {self.name}: 0 examples in train and test; at least 1 is needed, add some"
            )
        tested = _inputs(self.test)
        leaks = [example.input for example in self.train if normalise(example.input) in tested]
        if leaks:
            raise LeakageError(
                f"task {self.name}: {len(leaks)} train inputs are also in test, first {shorten(leaks[0])}; "
                "0 are allowed, take them out of train"
            )

    def described(self, text: str, number: int = 0) -> str:
        """A request with one of the descriptions before it, counted from 0 and over again from the first."""
        return prompted_input(self.descriptions[number % len(self.descriptions)], text)


@dataclass(frozen=True)
class Split:
    """Tasks to train on and tasks that no training may see.

    Attributes:
        train: to train on.
        validation: to choose among recipes by.
        validation_2: to report once at the end; nothing is chosen by them.

    Raises:
        LeakageError: as `check_no_leakage`.
    """

    train: tuple[Task, ...]
    validation: tuple[Task, ...]
    validation_2: tuple[Task, ...] = ()

    def __post_init__(self) -> None:
        check_no_leakage(self.train, self.held_out)

    @property
    def held_out(self) -> tuple[Task, ...]:
        """All tasks that no training may see."""
        return (*self.validation, *self.validation_2)


def check_no_leakage(train: Sequence[Task], held_out: Sequence[Task]) -> None:
    """Check that nothing in the `train` parts of `train` gives away a test answer or a held-out task.

    Raises:
        UsageError: two tasks of one side have the same name.
        LeakageError: a task is on both sides, or a training example leaks (see the module's docstring).
    """
    _check_distinct_names(train, "train")
    _check_distinct_names(held_out, "held-out")
    both = sorted({task.name for task in train} & {task.name for task in held_out})
    if both:
        raise LeakageError(
            f"{len(both)} held-out tasks are also in training, the first is {both[0]}; 0 are allowed, take "
            "them out of one side"
        )
    owners = _pair_owners(train, held_out)
    for task in train:
        for example in task.train:
            owner = _leaks_to(example, task.name, owners)
            if owner is not None:
                raise LeakageError(
                    f"task {task.name}: its training example {shorten(example.input)} is evaluation data of "
                    f"task {owner}; 0 such are allowed, take it out of train "
                    "(shoal.tasks.loading.remove_leaks does)"
                )


def remove_leaks(train: Sequence[Task], held_out: Sequence[Task]) -> tuple[Task, ...]:
    """The tasks of `train` without the training examples that leak; the number taken out is logged.

    Raises:
        UsageError: nothing is left of a task.
    """
    owners = _pair_owners(train, held_out)
    cleaned = []
    removed = {}
    for task in train:
        kept = tuple(example for example in task.train if _leaks_to(example, task.name, owners) is None)
        if len(kept) < len(task.train):
            removed[task.name] = len(task.train) - len(kept)
        cleaned.append(task if len(kept) == len(task.train) else replace(task, train=kept))
    if removed:
        logger.info(
            "took %d training examples of %d tasks out: they are evaluation data of other tasks",
            sum(removed.values()),
            len(removed),
        )
    return tuple(cleaned)


def remove_tested(train: Iterable[Example], test: Iterable[Example]) -> tuple[Example, ...]:
    """The examples of `train` whose input is not among those of `test`."""
    tested = _inputs(test)
    return tuple(example for example in train if normalise(example.input) not in tested)


def divide(
    examples: Iterable[Example],
    *,
    train_size: int | None = None,
    test_size: int = 60,
    seed: int = 0,
    join: bool = True,
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Divide examples into a train and a test part by a hash of `seed` and the input, whatever their order.

    Examples of one input are first joined into one, for which the outputs of each are right, unless `join` is
    False; inputs that are the same only by `normalise` stay two examples, in one part. The test part has
    `test_size` examples but at most half of all; the train part has the others, at most `train_size` of them
    (None: no limit).

    Raises:
        UsageError: a size is negative.
    """
    for field, size in (("train_size", train_size), ("test_size", test_size)):
        if size is not None and size < 0:
            raise UsageError(f"{field} {size}: must be at least 0; give a number of examples")
    kept = _joined(examples) if join else list(examples)
    groups: dict[bytes, list[Example]] = {}
    for example in sorted(kept, key=lambda example: example.input):
        digest = hashlib.blake2b(f"{seed}\n{normalise(example.input)}".encode()).digest()
        groups.setdefault(digest, []).append(example)
    tested = min(test_size, len(kept) // 2)
    train: list[Example] = []
    test: list[Example] = []
    for digest in sorted(groups):
        (test if len(test) < tested else train).extend(groups[digest])
    return tuple(train[:train_size]), tuple(test[:tested])


def _joined(examples: Iterable[Example]) -> list[Example]:
    """One example for every input, for which the outputs of each are right."""
    outputs: dict[str, dict[str, None]] = {}
    for example in examples:
        outputs.setdefault(example.input, {}).update(dict.fromkeys(example.outputs))
    return [Example(question, tuple(answers)) for question, answers in outputs.items()]


def check_examples(given: Sequence[Solved], least: int = MIN_EXAMPLES) -> list[Example]:
    """The solved examples that an adapter is to be refined on, as records.

    Raises:
        UsageError: one is neither a record nor a pair, or blank, or fewer than `least` inputs differ.
    """
    examples = [_record(example) for example in given]
    different = len({normalise(example.input) for example in examples})
    if different < least:
        raise UsageError(
            f"{different} different inputs in {len(examples)} examples are too few to refine an adapter on, "
            f"the least is {least}; give more, or none"
        )
    return examples


def describe(definition: str, descriptions: Sequence[str]) -> tuple[str, ...]:
    """The descriptions of a task, or its definition where there are none.

    Raises:
        UsageError: they are one string.
    """
    if isinstance(descriptions, str):
        raise UsageError(f"descriptions: {shorten(descriptions)} is one string; it must be a list of them")
    return tuple(descriptions) or (definition,)


def _record(given: Solved) -> Example:
    if isinstance(given, Example):
        return given
    if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != 2:
        raise UsageError(f"example {shorten(given)} is no pair; give Example records or (input, output)")
    question, outputs = given
    answers: tuple[Any, ...] = tuple(outputs) if isinstance(outputs, list | tuple) else (outputs,)
    return Example(question, answers)


def _inputs(examples: Iterable[Example]) -> set[str]:
    return {normalise(example.input) for example in examples}


def _pairs(example: Example) -> Iterator[tuple[str, str]]:
    question = normalise(example.input)
    return ((question, normalise(output)) for output in example.outputs)


def _pair_owners(train: Sequence[Task], held_out: Sequence[Task]) -> dict[tuple[str, str], set[str]]:
    """Normalised (input, output) pairs that must not be trained on, with the tasks that evaluate on them."""
    owners: dict[tuple[str, str], set[str]] = {}
    for tasks, parts in ((train, ("test",)), (held_out, ("train", "test"))):
        for task in tasks:
            for example in (example for part in parts for example in getattr(task, part)):
                for pair in _pairs(example):
                    owners.setdefault(pair, set()).add(task.name)
    return owners


def _leaks_to(example: Example, name: str, owners: Mapping[tuple[str, str], set[str]]) -> str | None:
    """Another task than `name` that evaluates on this example, if there is one."""
    others = {owner for pair in _pairs(example) for owner in owners.get(pair, ())} - {name}
    return min(others, default=None)


def _check_distinct_names(tasks: Sequence[Task], side: str) -> None:
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(
            f"{side} tasks: {names.count(twice)} are named {twice}; names must differ, rename or drop one"
        )
