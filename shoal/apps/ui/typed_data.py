"""Solved examples and inputs as someone types or pastes them into a box, one a line."""

from __future__ import annotations

import json
import re

from shoal.errors import UsageError, shorten

_ARROW = re.compile(r"\s*(?:=>|→|\t)\s*")


def parse_examples(text: str) -> list[tuple[str, str]]:
    """(input, output) of every line: JSON with `input` and `output`, or `input => output`.

    Raises:
        UsageError: a line is neither, or one of its sides is blank.
    """
    return [_example(number, line) for number, line in _lines(text)]


def parse_inputs(text: str) -> list[str]:
    """The input of every line: JSON with `input`, or the line itself.

    Raises:
        UsageError: a line looks like JSON and has no `input`.
    """
    return [_input(number, line) for number, line in _lines(text)]


def _lines(text: str) -> list[tuple[int, str]]:
    stripped = ((number, line.strip()) for number, line in enumerate(text.splitlines(), start=1))
    return [(number, line) for number, line in stripped if line]


def _example(number: int, line: str) -> tuple[str, str]:
    if line.startswith("{"):
        fields = _fields(number, line)
        sides = [fields.get("input"), fields.get("output")]
    else:
        sides = list(_ARROW.split(line, maxsplit=1))
    if len(sides) != 2 or not all(isinstance(side, str) and side.strip() for side in sides):
        raise UsageError(
            f"line {number} of the examples, {shorten(line, 40)}, has no input and output; write it as "
            'input => output, or as {"input": "...", "output": "..."}'
        )
    return str(sides[0]), str(sides[1])


def _input(number: int, line: str) -> str:
    if not line.startswith("{"):
        return line
    text = _fields(number, line).get("input")
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f"line {number} of the inputs, {shorten(line, 40)}, has no `input`; add it")
    return text


def _fields(number: int, line: str) -> dict[str, object]:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise UsageError(f"line {number}, {shorten(line, 40)}, is not JSON ({error}); correct it") from None
    assert isinstance(fields, dict)  # it begins with a brace
    return fields
