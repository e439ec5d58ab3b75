"""Kinds of answers: told by rule over the examples, and a mix in which each has its share."""

from __future__ import annotations

from collections import defaultdict

import pytest

from shoal.tasks.answer_kinds import BALANCED, answer_kind, balanced_weights, mix_part
from shoal.tasks.records import Example, Task


def task(pairs: list[tuple[str, str]], name: str = "t") -> Task:
    examples = tuple(Example(f"{given} {number}", (answer,)) for number, (given, answer) in enumerate(pairs))
    return Task(name, "c", "Do it.", ("Do it.",), examples, ())


WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
SENTENCE = "the {} dog did not want to walk with us in the rain today"
KINDS = {
    "label": task([(f"some text about {word}", "yes" if i % 2 else "no") for i, word in enumerate(WORDS)]),
    "span": task([(f"my friend {word} has gone to the market", word) for word in WORDS]),
    "rewrite": task([(f"dog {word} barks", f"the dog {word} barked") for word in WORDS]),
    "long rewrite": task([(SENTENCE.format(word), SENTENCE.format(word) + "!") for word in WORDS]),
    "sentence": task([(word, f"nobody knows why {word} was called so") for word in WORDS]),
    "number": task([(word, f"{number + 0.5}") for number, word in enumerate(WORDS)]),
    "structure": task([(word, f'{{"name": "{word}"}}') for word in WORDS]),
}


@pytest.mark.parametrize("part", KINDS)
def test_the_kind_is_told_from_the_examples(part: str) -> None:
    assert mix_part(KINDS[part]) == part
    assert answer_kind(KINDS[part]) == part.removeprefix("long ")


@pytest.mark.parametrize(
    "answer", ["7", "-3", "3.25", "1,204", "4:15 PM", "12 %", "3, 5, 8", "2011-03-04", "$40"]
)
def test_numbers_in_many_forms(answer: str) -> None:
    assert answer_kind(task([(word, answer) for word in WORDS])) == "number"


@pytest.mark.parametrize("answer", ["ten", "i = 4", "room 7b", "May 4"])
def test_what_is_no_number(answer: str) -> None:
    assert answer_kind(task([(word, f"{answer} {word}") for word in WORDS])) != "number"


def test_a_few_odd_answers_do_not_matter() -> None:
    pairs = [(f"my friend {word} has gone to the market", word) for word in WORDS]
    assert answer_kind(task([*pairs[:9], *(("a text", word) for word in WORDS[9:])])) == "span"


def test_a_task_without_training_examples_is_told_by_its_test() -> None:
    numbers = KINDS["number"]
    assert answer_kind(Task("t", "c", "Do it.", ("Do it.",), (), numbers.train)) == "number"


def test_every_part_has_its_share() -> None:
    tasks = [*KINDS.values(), KINDS["label"], KINDS["label"], KINDS["span"]]
    shares: dict[str, float] = defaultdict(float)
    for own, weight in zip(tasks, balanced_weights(tasks), strict=True):
        shares[mix_part(own)] += weight
    assert dict(shares) == pytest.approx(dict(BALANCED))
    assert 0.2 <= shares["long rewrite"] <= 0.25


def test_shares_of_missing_parts_go_to_the_others() -> None:
    weights = balanced_weights([KINDS["label"], KINDS["long rewrite"], KINDS["long rewrite"]])
    assert sum(weights) == pytest.approx(1)
    assert weights[0] / (weights[1] + weights[2]) == pytest.approx(
        BALANCED["label"] / BALANCED["long rewrite"]
    )
