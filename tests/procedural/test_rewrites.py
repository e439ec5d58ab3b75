"""Tasks over the texts of others: answers follow from the text and from what every description says."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable

import pytest

from shoal.procedural.catalogue import procedural_tasks
from shoal.procedural.relabel import is_copy
from shoal.procedural.rewrites import LEAST_TEXTS, MOST_TEXTS, OPERATIONS, Draw, Operation, rewrites
from shoal.task_records import Example, Task

SOURCES = procedural_tasks(
    ["upper-case", "phrase-language", "news-topic", "list-json"], size=120, test_size=8
)
DRAWN = rewrites(SOURCES, 60)

TEXTS = [
    "The dog slept under the lamp.",
    "Has the dog seen the lamp?",
    "A cat, the small one, ate well!",
    "The cat ran home before the rain",
    "Was that the dog of Anna?",
    "She saw it twice.",
    "They asked for the key, and for the map of the house.",
]

Names = dict[str, str]
Right = Callable[[Names, str, str], bool]


def says(holds: Callable[[Names, str], bool]) -> Right:
    """The answer is one label where that holds, else the other one."""
    return lambda names, text, answer: answer == (names["yes"] if holds(names, text) else names["no"])


def place(names: Names, text: str, answer: str) -> bool:
    at = {"first": 0, "second": 1, "third": 2, "fourth": 3, "last": -1}[names["place"]]
    return answer == re.findall(r"\w+", text)[at]


def count(names: Names) -> int:
    return {"two": 2, "three": 3, "four": 4, "five": 5}[names["count"]]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


# By a description of each operation that needs no filling in, or whose blanks are told apart.
RIGHT: dict[str, Right] = {
    "Always answer {label}.": lambda names, text, answer: answer == names["label"],
    'Answer {yes} if the text has the word "{word}", otherwise {no}.': says(
        lambda names, text: names["word"] in words(text.lower())
    ),
    "Answer {yes} if the text has more than {count} words, otherwise {no}.": says(
        lambda names, text: text.count(" ") >= int(names["count"])
    ),
    'Answer {yes} if the text ends with "{sign}", otherwise {no}.': says(
        lambda names, text: text[-1] == names["sign"]
    ),
    'Answer {yes} if the text starts with the word "{word}", otherwise {no}.': says(
        lambda names, text: words(text.lower())[0] == names["word"]
    ),
    "Repeat the text as it is.": lambda names, text, answer: answer == text,
    "Repeat the text between {left} and {right}.": lambda names, text, answer: (
        (answer[0], answer[1:-1], answer[-1]) == (names["left"], text, names["right"])
    ),
    'Write "{label}:" before the text.': lambda names, text, answer: (
        answer.split(": ", 1) == [names["label"], text]
    ),
    "Write {label} after the text.": lambda names, text, answer: (
        answer.startswith(text + " ") and answer.endswith(" " + names["label"])
    ),
    'Replace the word "{word}" by "{new}".': lambda names, text, answer: (
        names["new"] in answer
        and names["word"] not in words(answer.lower().replace(names["new"].lower(), ""))
    ),
    'Remove the word "{word}".': lambda names, text, answer: (
        words(answer.lower()) == [word for word in words(text.lower()) if word != names["word"]]
    ),
    "Give the {place} word of the text.": place,
    "Give the first {count} words of the text.": lambda names, text, answer: (
        text.startswith(answer) and len(answer.split()) == min(count(names), len(text.split()))
    ),
    "Give the last {count} words of the text.": lambda names, text, answer: (
        text.endswith(answer) and len(answer.split()) == min(count(names), len(text.split()))
    ),
    "Leave out the first {count} words.": lambda names, text, answer: (
        text.endswith(" " + answer) and len(answer.split()) == len(text.split()) - count(names)
    ),
    "Write the text {way}.": lambda names, text, answer: (
        answer.lower() == text.lower()
        and (
            answer.isupper() if names["way"] in ("in capital letters", "in upper case") else answer.islower()
        )
    ),
    "Write the words with {sign} between them.": lambda names, text, answer: (
        answer.replace(names["sign"], " ").split() == words(text)
    ),
    'Give the text as JSON with the key "{key}".': lambda names, text, answer: (
        json.loads(answer) == {names["key"]: text}
    ),
    "List the words that start with the letter {letter}.": lambda names, text, answer: (
        answer.split(", ") == re.findall(rf"(?i)\b{names['letter']}\w*", text)
    ),
    "Give the longest word of the text.": lambda names, text, answer: (
        answer in words(text) and len(answer) == max(map(len, words(text)))
    ),
    "Remove all punctuation.": lambda names, text, answer: answer.split() == words(text),
    "Write the text twice with {sign} between.": lambda names, text, answer: (
        answer.startswith(text)
        and answer.endswith(text)
        and answer[len(text) : -len(text)].strip() == names["sign"]
    ),
}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.descriptions[0])
def test_an_operation_does_what_it_says(operation: Operation) -> None:
    right, checked, given = RIGHT[operation.descriptions[0]], 0, 0
    for seed in range(60):
        drawn = operation.draw(Draw(random.Random(seed), TEXTS, ["copper", "Violin", "marsh"]))
        if drawn is None:
            continue
        given += 1
        names, answer = drawn
        for text in TEXTS:
            if reply := answer(text):
                assert right(dict(names), text, reply), (names, text, reply)
                checked += 1
    assert given > 20 and checked > 40


def test_every_description_says_all_that_was_drawn() -> None:
    for operation in OPERATIONS:
        blanks = {frozenset(re.findall(r"(?<!\{)\{(\w+)\}", text)) for text in operation.descriptions}
        assert len(blanks) == 1, (operation.descriptions[0], blanks)
        assert len(set(operation.descriptions)) == len(operation.descriptions) >= 7


@pytest.mark.parametrize("task", DRAWN, ids=lambda task: task.name)
def test_tasks_are_whole(task: Task) -> None:
    texts = {example.input for source in SOURCES for example in source.train}
    assert {example.input for example in task.train} <= texts
    assert LEAST_TEXTS <= len(task.train) <= MOST_TEXTS and not task.test and is_copy(task)
    assert len(task.descriptions) >= 7 and not any(re.search(r"\{\w+\}", text) for text in task.descriptions)
    answers = Counter(example.outputs[0] for example in task.train)
    if task.category == "classification":
        first, second = answers.values()
        assert abs(first - second) <= 1
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
    assert rewrites([source([*fitting[1:], "too short"])], 20) == []
    assert rewrites([source([*fitting[1:], "one more\nwith two lines of words"])], 20) == []
    assert rewrites([source([*fitting[1:], "long " * 26])], 20) == []
    assert rewrites([], 20) == []
