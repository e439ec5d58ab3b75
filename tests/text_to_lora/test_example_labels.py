"""What solved examples say of the set of labels."""

from __future__ import annotations

import logging

import pytest

from shoal.adapters.card import LabelSet
from shoal.errors import UsageError
from shoal.tasks.records import Example
from shoal.text_to_lora.example_labels import (
    closed_in_examples,
    given_in_examples,
    shown_label_set,
)
from shoal.text_to_lora.material import check_material

MOODS = ["good", "bad"] * 4
NAMED = LabelSet(labels=("good", "bad", "mixed"), source="description")


def solved(answers: list[str]) -> tuple[Example, ...]:
    return tuple(Example(f"input {i}", (answer,)) for i, answer in enumerate(answers))


def test_answers_that_all_come_again_are_a_set() -> None:
    found = shown_label_set(solved(["Not  good", "bad", "not good", "bad"] * 2))
    assert found == LabelSet(labels=("Not good", "bad"), source="examples")


@pytest.mark.parametrize(
    "answers",
    {
        "too few examples": ["good", "bad"] * 3,
        "one answer": ["good"] * 8,
        "one comes once": [*MOODS, "mixed"],
        "numbers": ["1", "2", "1", "2"] * 2,
        "numbers with commas": ["1,000", "-2.5"] * 4,
        "sentences": ["it is rather good then", "bad"] * 4,
        "none": [],
    }.values(),
)
def test_other_answers_show_no_set(answers: list[str]) -> None:
    assert shown_label_set(solved(answers)) is None


def test_a_described_set_is_spelled_as_the_examples_are() -> None:
    found = closed_in_examples(NAMED, solved(["Good", "BAD", "Good", "BAD"]))
    assert found == LabelSet(labels=("Good", "BAD", "mixed"), source="description")


def test_a_described_set_that_an_example_contradicts_is_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "shoal"):
        found = closed_in_examples(NAMED, solved(["fine", "poor"] * 4))
    assert found == LabelSet(labels=("fine", "poor"), source="examples")
    assert "good, bad, mixed" in caplog.text and "'fine'" in caplog.text
    assert closed_in_examples(NAMED, solved(["fine", "good", "bad", "good"])) is None


def test_a_given_set_stays_and_must_have_every_answer() -> None:
    given = LabelSet(labels=("GOOD", "bad"))
    assert given_in_examples(given, solved(MOODS)) is given
    with pytest.raises(UsageError, match=r"answers 'mixed', which is none of the 2 labels; give it"):
        given_in_examples(given, solved([*MOODS, "mixed"]))


@pytest.mark.parametrize(
    ("description", "labels", "source"),
    [
        ("Tell the mood of the review.", None, "examples"),
        ("Classify the review as good, bad or mixed.", None, "description"),
        ("Tell the mood of the review.", ["good", "bad"], "given"),
        ("Tell the mood of the review.", [], None),
    ],
)
def test_material_takes_the_surest_set(
    description: str, labels: list[str] | None, source: str | None
) -> None:
    label_set = check_material(description, solved(MOODS), labels=labels).label_set
    assert (label_set.source if label_set else None) == source
