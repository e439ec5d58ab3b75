"""Conversations as rows: roles and texts of every make, and nothing of a turn dropped in silence."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.errors import ShoalError, UsageError
from shoal.tasks.forms import Columns, Row, understand
from shoal.tasks.records import Example

QUESTION = {"role": "user", "content": "Hot?"}
ANSWER = {"role": "assistant", "content": "No."}
OLD = [{"from": "human", "value": "Hot?"}, {"from": "gpt", "value": "No."}]


def read(row: dict[str, Any], *ignored: str) -> tuple[Example, ...]:
    return understand([Row("line 4", row)], columns=Columns(ignored=ignored)).examples


TAKEN: dict[str, dict[str, Any]] = {
    "both spellings": {"messages": [{**QUESTION, "value": "Hot?"}, ANSWER]},
    "a name and an id": {"messages": [{**QUESTION, "name": "Ada", "id": "q1"}, ANSWER]},
    "empty keys": {"messages": [{**QUESTION, "images": []}, {**ANSWER, "tool_calls": None, "refusal": None}]},
    "numbers": {"conversations": [OLD[0], {**OLD[1], "score": 0.5, "weight": 1}]},
    "an answer not learned before": {"messages": [{**QUESTION}, ANSWER | {"weight": 1.0}], "tools": []},
    "roles in capitals": {
        "conversation": [{"role": "User", "content": "Hot?"}, {"role": "BOT", "content": "No."}]
    },
    "a column beside a talk that is empty": {"system": " ", "messages": [QUESTION, ANSWER], "tools": None},
}


@pytest.mark.parametrize("kind", TAKEN)
def test_keys_that_say_nothing_are_taken(kind: str) -> None:
    assert read(TAKEN[kind]) == (Example("Hot?", ("No.",)),)


# name -> (row, the key that would be dropped)
KEYS: dict[str, tuple[dict[str, Any], str]] = {
    "a context": ({"messages": [{**QUESTION, "context": "In May."}, ANSWER]}, "context"),
    "thoughts": ({"messages": [QUESTION, {**ANSWER, "reasoning_content": "It rains."}]}, "reasoning_content"),
    "images": ({"messages": [{**QUESTION, "images": ["a.png"]}, ANSWER]}, "images"),
    "a language": ({"conversations": [OLD[0], {**OLD[1], "lang": "en"}]}, "lang"),
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_text_of_a_turn_that_would_be_dropped_is_named(kind: str) -> None:
    row, key = KEYS[kind]
    with pytest.raises(ShoalError, match=f"line 4: a turn's '{key}', .*--ignore-column {key}") as caught:
        read(row)
    assert "\n" not in str(caught.value)
    assert read(row, key) == (Example("Hot?", ("No.",)),)


def test_a_key_that_no_turn_has_cannot_be_left_out() -> None:
    with pytest.raises(UsageError, match="column 'mood'"):
        read({"messages": [QUESTION, ANSWER]}, "mood")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "two texts": ({"messages": [{**QUESTION, "value": "Cold?"}, ANSWER]}, "the content 'Hot.' and the value"),
    "a text of null": (
        {"messages": [QUESTION, {"role": "assistant", "content": [{"type": "text", "text": None}]}]},
        "turns of text alone",
    ),
    "a text of null alone": ({"messages": [QUESTION, {"role": "assistant", "content": None}]}, "holds None"),
    "a part without a text": (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}, ANSWER]},
        "turns of text alone",
    ),
    "a function": ({"messages": [{"role": "function", "content": "1"}, ANSWER]}, "the role 'function'"),
    "what a function saw": (
        {"conversations": [OLD[0], {"from": "observation", "value": "1"}, OLD[1]]},
        "the role 'observation'",
    ),
    "no role": ({"messages": [{"content": "Hot?"}, ANSWER]}, "the role ''"),
    "pairs": (
        {"messages": [["user", "Hot?"], ["assistant", "No."]]},
        "is of type list; write a list of turns",
    ),
    "one turn alone": ({"messages": QUESTION}, "is of type dict; write a list of turns"),
    "an answer of weight 0": ({"messages": [QUESTION, {**ANSWER, "weight": 0}]}, "the weight 0"),
    "a blank answer": ({"messages": [QUESTION, {"role": "assistant", "content": " "}]}, "is blank"),
    "instructions last": (
        {"messages": [QUESTION, {"role": "system", "content": "Be."}, ANSWER]},
        "not the user's",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_conversation_that_cannot_be_read_is_named_by_its_place(kind: str) -> None:
    row, message = WRONG[kind]
    with pytest.raises(ShoalError, match=f"line 4: .*{message}") as caught:
        read(row)
    assert "\n" not in str(caught.value)


def test_an_answer_that_is_said_to_be_wrong_is_not_learned() -> None:
    rows = [Row(f"line {i}", {"prompt": "a", "completion": c, "label": c == "x"}) for i, c in enumerate("xy")]
    with pytest.raises(ShoalError, match="line 1: label is false, .*--ignore-column label"):
        understand(rows)
    assert understand(rows[:1]).examples == (Example("a", ("x",)),)
    assert understand(rows, columns=Columns(ignored=("label",))).examples == (Example("a", ("x", "y")),)


@pytest.mark.parametrize("beside", [{"label": 1}, {"label": "1"}, {"target": 0.5}])
def test_the_word_for_a_label_is_taken_and_not_its_number(beside: dict[str, Any]) -> None:
    assert read({"text": "a", **beside, "label_text": "good"}) == (Example("a", ("good",)),)
    with pytest.raises(ShoalError, match="the fields are"):
        read({"text": "a", "label": "bad", "label_text": "good"})
