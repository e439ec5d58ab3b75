"""Tasks over the texts of others: answers follow from the text and from what every description says."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable

import pytest

from shoal.tasks.procedural.catalogue import procedural_tasks
from shoal.tasks.procedural.relabel import is_copy
from shoal.tasks.procedural.rewrite_wording import WORDING
from shoal.tasks.procedural.rewrites import LEAST_TEXTS, MOST_TEXTS, OPERATIONS, Draw, Operation, rewrites
from shoal.tasks.records import Example, Task

SOURCES = procedural_tasks(
    ["upper-case", "phrase-language", "news-topic", "list-json"], size=300, test_size=8
)
DRAWN = rewrites(SOURCES, 60)

TEXTS = [
    "The dog slept under the lamp.",
    "Has the dog seen the lamp?",
    "A cat, the small one, ate well!",
    "It's the cat that ran home before the rain",
    "Was that the dog of Anna?",
    "She saw it twice (or so).",
    "They asked for the well-known key, and for the map of the house.",
    "Was it the dog, or the cat?",
    "We ate it all.",
]
COUNT = {"two": 2, "three": 3, "four": 4, "five": 5}
PLACE = {"first": 0, "second": 1, "third": 2, "fourth": 3, "last": -1}

Names = dict[str, str]


def plain(text: str) -> list[str]:
    """The words of a text without signs, but for those inside a word."""
    return re.findall(r"\w+(?:['-]\w+)*", text)


def says(holds: Callable[[Names, str], bool]) -> Callable[[Names, str], str]:
    return lambda names, text: names["yes"] if holds(names, text) else names["no"]


def exchanged(names: Names, text: str) -> str:
    return re.sub(r"[\w'-]+", lambda m: names["new"] if m[0].lower() == names["word"] else m[0], text)


RIGHT: dict[str, Callable[[Names, str], str]] = {
    "always": lambda names, text: names["label"],
    "contains": says(lambda names, text: names["word"] in plain(text.lower())),
    "long": says(lambda names, text: text.count(" ") >= int(names["count"])),
    "ends": says(lambda names, text: text[-1] == names["sign"]),
    "starts": says(lambda names, text: plain(text.lower())[0] == names["word"]),
    "copy": lambda names, text: text,
    "wrap": lambda names, text: names["left"] + text + names["right"],
    "before": lambda names, text: names["label"] + ": " + text,
    "after": lambda names, text: text + " " + names["label"],
    "replace": exchanged,
    "remove": lambda names, text: re.sub(rf"(?i)(?<!\S){names['word']}(?!\S) ?", "", text).strip(),
    "word at": lambda names, text: plain(text)[PLACE[names["place"]]],
    "head": lambda names, text: " ".join(text.split()[: COUNT[names["count"]]]),
    "tail": lambda names, text: " ".join(text.split()[-COUNT[names["count"]] :]),
    "without head": lambda names, text: text.split(" ", COUNT[names["count"]])[-1],
    "case": lambda names, text: (
        text.upper() if names["way"] in ("in capital letters", "in upper case") else text.lower()
    ),
    "join": lambda names, text: text.replace(" ", names["sign"]),
    "twice": lambda names, text: text + names["sign"] + text,
    "object": lambda names, text: json.dumps({names["key"]: text}),
    "starting with": lambda names, text: ", ".join(
        word for word in plain(text) if word[0].lower() == names["letter"]
    ),
    "longest": lambda names, text: max(plain(text), key=len),
    "without signs": lambda names, text: re.sub(r"[^\w ]", "", text),
}
LEFT_OUT = {"replace", "remove", "head", "tail", "twice", "starting with", "longest", "without signs"}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_an_operation_does_what_it_says(operation: Operation) -> None:
    given, checked, left_out = 0, 0, 0
    for seed in range(80):
        drawn = operation.draw(Draw(random.Random(seed), TEXTS, ["copper", "Violin", "marsh"]))
        if drawn is None:
            continue
        given += 1
        names, answer = drawn
        for text in TEXTS:
            reply = answer(text)
            left_out += not reply
            if reply:
                assert reply == RIGHT[operation.name](dict(names), text), names
                checked += 1
    assert given >= 40 and checked > 40
    assert bool(left_out) == (operation.name in LEFT_OUT)


def test_what_would_leave_loose_signs_or_is_undecided_is_left_out() -> None:
    draws = {operation.name: operation.draw for operation in OPERATIONS}

    def answer(name: str, texts: list[str], text: str) -> str:
        drawn = draws[name](Draw(random.Random(0), texts, ["copper", "marsh"]))
        assert drawn is not None
        return drawn[1](text)

    assert answer("remove", ["it"], "I saw it fall") == "I saw fall"
    assert answer("remove", ["it"], "I saw it (it fell).") == ""
    assert answer("remove", ["it"], "It's here") == answer("replace", ["it"], "It's here") == ""
    assert answer("longest", ["x"], "two longer longest ones") == "longest"
    assert answer("longest", ["x"], "first words tie here") == ""
    assert answer("without signs", ["x"], "a well-known man") == ""
    assert draws["contains"](Draw(random.Random(0), ["a b", "a b"], ["copper", "marsh"])) is None


def test_every_description_says_all_that_was_drawn() -> None:
    assert set(WORDING) == {operation.name for operation in OPERATIONS}
    for name, descriptions in WORDING.items():
        blanks = {frozenset(re.findall(r"(?<!\{)\{(\w+)\}", text)) for text in descriptions}
        assert len(blanks) == 1, (name, blanks)
        assert len(set(descriptions)) == len(descriptions) >= 7


@pytest.mark.parametrize("task", DRAWN, ids=lambda task: task.name)
def test_tasks_are_whole(task: Task) -> None:
    texts = {example.input for source in SOURCES for example in source.train}
    assert {example.input for example in task.train} <= texts
    assert LEAST_TEXTS <= len(task.train) <= MOST_TEXTS and not task.test and is_copy(task)
    assert len(task.descriptions) >= 7
    answers = Counter(example.outputs[0] for example in task.train)
    if task.category == "classification":
        first, second = answers
        assert answers[first] == answers[second] and first.casefold() != second.casefold()
        assert all(label in text for label in answers for text in task.descriptions)


def test_operations_and_words_vary() -> None:
    assert len(DRAWN) == 60 and len({task.category for task in DRAWN}) == 5
    assert len({text for task in DRAWN for text in task.descriptions}) > 300
    constants = [task.train[0].outputs[0] for task in rewrites(SOURCES, 300) if task.category == "constant"]
    assert len(constants) > 5 and len(set(constants)) > 0.8 * len(constants)


def test_they_depend_on_seed_and_tasks_alone() -> None:
    assert rewrites(SOURCES, 60) == DRAWN
    assert rewrites(SOURCES, 5, seed=1) != DRAWN[:5]
    assert len({task.name for task in (*DRAWN, *rewrites(SOURCES, 5, seed=1))}) == 65


def test_tasks_that_give_no_texts() -> None:
    def source(texts: list[str]) -> Task:
        return Task("given", "x", "Do it.", ("Do it.",), tuple(Example(text, ("a",)) for text in texts), ())

    fitting = [f"Word number {n} is the{'' if n % 2 else ' very'} last." for n in range(LEAST_TEXTS)]
    assert rewrites([source(fitting)], 20)
    assert rewrites([source(fitting[1:])], 20) == []
    for other in (
        "too short",
        "one more\nwith two lines",
        "signs - by themselves",
        "two  spaces here",
        "long " * 26,
    ):
        assert rewrites([source([*fitting[1:], other])], 20) == []
    assert rewrites([], 20) == []
