"""Solved examples as they are given from outside."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.errors import UsageError
from shoal.tasks.records import Example, check_examples

PAIRS = [("cat", "cats"), ("dog", "dogs"), ("ox", "oxen"), ("pen", "pens")]


def test_pairs_and_records_become_records() -> None:
    mixed = [*PAIRS[:3], Example("pen", ("pens",))]
    assert check_examples(mixed) == check_examples(PAIRS) == [Example(one, (two,)) for one, two in PAIRS]


def test_several_outputs_may_be_right() -> None:
    assert check_examples([*PAIRS, ("cactus", ["cacti", "cactuses"])])[-1].outputs == ("cacti", "cactuses")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "0 different inputs in 0 examples"),
        (PAIRS[:3], "3 different inputs in 3 examples .* the least is 4; give more, or none"),
        (PAIRS[:1] * 8, "1 different inputs in 8 examples"),
        ([("Cat", "x"), ("cat", "x"), ("CAT", "x"), ("cat ", "x")], "1 different inputs in 4 examples"),
        ([*PAIRS, ("half \ud83d", "x")], "not valid Unicode at character 5"),
        ([*PAIRS, ("", "nothing")], "is blank"),
        ([*PAIRS, ("bee", [])], "outputs: 0 entries"),
        ([*PAIRS, ("bee", " ")], "is blank"),
        ([*PAIRS, "bee"], "'bee' is no pair"),
        ([*PAIRS, ("bee", "bees", "swarm")], "is no pair"),
    ],
)
def test_what_nothing_can_be_refined_on_is_refused(given: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_examples(given)
