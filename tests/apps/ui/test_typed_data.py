"""Examples and inputs as people type and paste them."""

from __future__ import annotations

import pytest

from shoal.apps.ui.typed_data import parse_examples, parse_inputs
from shoal.errors import UsageError


def test_examples_are_arrows_tabs_or_json() -> None:
    text = 'a joy => positive\n\n  a bore → negative\ncat\tcats\n{"input": "x => y", "output": "z"}'
    assert parse_examples(text) == [
        ("a joy", ("positive",)),
        ("a bore", ("negative",)),
        ("cat", ("cats",)),
        ("x => y", ("z",)),
    ]


def test_an_example_may_have_several_right_outputs() -> None:
    assert parse_examples('{"input": "cat", "output": ["cats", "felines"]}') == [("cat", ("cats", "felines"))]


def test_an_output_may_hold_an_arrow() -> None:
    assert parse_examples("f => x => y") == [("f", ("x => y",))]


@pytest.mark.parametrize("text", ["", "\n  \n"])
def test_nothing_is_no_example(text: str) -> None:
    assert parse_examples(text) == [] and parse_inputs(text) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a => b\nno arrow", "line 2 of the examples"),
        ("=> b", "has no input and output"),
        ("a =>", "has no input and output"),
        ('{"input": "a"}', "input and one of output, outputs are needed"),
        ('{"input": 1, "output": "b"}', "must be a string"),
        ('{"input": "a"', "is not JSON"),
    ],
)
def test_what_is_no_example_is_named(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        parse_examples(text)
    assert "\n" not in str(caught.value)


def test_inputs_are_lines_or_json() -> None:
    assert parse_inputs('one thing\n{"input": "another", "output": "left out"}') == ["one thing", "another"]
    assert parse_inputs('{"text": "a third"}\n{"prompt": "a fourth"}') == ["a third", "a fourth"]
    with pytest.raises(UsageError, match="line 1 of the inputs"):
        parse_inputs('{"output": "b"}')
