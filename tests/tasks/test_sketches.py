"""Sketches of examples: sets that share some are seen to."""

from __future__ import annotations

import pytest

from shoal.tasks.records import Example, LeakageError
from shoal.tasks.sketches import KEPT, check_not_learnt, sketch_of


def numbers(first: int, end: int) -> list[Example]:
    return [Example(f"number {i}", (str(i), f"no. {i}")) for i in range(first, end)]


def test_a_sketch_is_short_and_does_not_depend_on_order() -> None:
    examples = numbers(0, 900)
    assert sketch_of(examples) == sketch_of(examples[::-1]) and len(sketch_of(examples)) == KEPT
    assert sketch_of([]) == ()


@pytest.mark.parametrize("learnt", [numbers(0, 900), numbers(3, 4)])
def test_what_was_learnt_is_recognised(learnt: list[Example]) -> None:
    known = {"one": (), "two": sketch_of(learnt)}
    check_not_learnt(numbers(1000, 1100), known)
    with pytest.raises(LeakageError, match="two was trained on 'number") as error:
        check_not_learnt([*numbers(1000, 1010), *numbers(0, 900)], known)
    assert "\n" not in str(error.value)


def test_other_answers_to_an_input_are_another_example() -> None:
    check_not_learnt([Example("number 3", ("odd",))], {"one": sketch_of(numbers(3, 4))})
