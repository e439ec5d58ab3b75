"""Solved examples and inputs as someone types or pastes them into a box, one a line."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from shoal.errors import UsageError, shorten
from shoal.tasks.files import parse_example
from shoal.tasks.inputs import parse_input

T = TypeVar("T")
_ARROW = re.compile(r"\s*(?:=>|→|\t)\s*")


def parse_examples(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """(input, right outputs) of every line: JSON as in a file of solved examples, or `input => output`.

    Raises:
        UsageError: a line is neither, or one of its sides is blank.
    """
    return _of_lines(text, "examples", _example)


def parse_inputs(text: str) -> list[str]:
    """The input of every line: a JSON object as in a file of inputs, or the line itself.

    Raises:
        UsageError: a line begins like an object and holds no input.
    """
    return _of_lines(text, "inputs", lambda line: parse_input(line) if line.startswith("{") else line)


def _of_lines(text: str, what: str, parse: Callable[[str], T]) -> list[T]:
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            found += [parse(line.strip())] if line.strip() else []
        except UsageError as error:
            raise UsageError(f"line {number} of the {what}: {error}") from None
    return found


def _example(line: str) -> tuple[str, tuple[str, ...]]:
    if line.startswith("{"):
        example = parse_example(line)
        return example.input, example.outputs
    sides = _ARROW.split(line, maxsplit=1)
    if len(sides) != 2 or not all(sides):
        raise UsageError(
            f"{shorten(line, 40)} has no input and output; write it as input => output, or as "
            '{"input": "...", "output": "..."}'
        )
    return sides[0], (sides[1],)


def split_words(text: str) -> list[str]:
    """What stands between commas, without blanks around it; nothing of an empty line."""
    return [word.strip() for word in text.split(",") if word.strip()]
