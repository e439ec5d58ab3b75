"""Formats that an answer can be held to: a JSON schema, some choices, a regular expression, or a grammar.

A format is a value: checked for its size when it is made, hashable, and compiled elsewhere
(`shoal.inference.grammar`). Knows no tokens and no models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from shoal.errors import UsageError, check_unicode, shorten

MAX_SCHEMA_BYTES = 32_768
MAX_GRAMMAR_BYTES = 8_192
MAX_REGEX_LENGTH = 1_024  # characters
MAX_EXPANSION = 4_096  # characters of a regular expression with its counts written out
MAX_CHOICES, MAX_CHOICE_LENGTH = 1_024, 1_024
_OBJECT = '{"type":"object"}'
# A count, an escaped character, a class of characters, or any one character.
_PART = re.compile(r"\{(\d+)(?:,(\d*))?\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.", re.DOTALL)

FormatKind = Literal["json_schema", "choice", "regex", "grammar"]


class OutputFormat(BaseModel):
    """A format that answers match from their first character to their last; made by its class methods."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: FormatKind = Field(description="of the text")
    text: str = Field(
        min_length=1,
        max_length=2 * MAX_CHOICES * MAX_CHOICE_LENGTH,
        description="a JSON schema, a JSON list of choices, a regular expression, or a grammar",
    )

    @classmethod
    def json_object(cls) -> OutputFormat:
        """Any JSON object."""
        return cls(kind="json_schema", text=_OBJECT)

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool | str) -> OutputFormat:
        """JSON that a schema (draft 2020-12) accepts; a string is the schema's text.

        Raises:
            UsageError: it is no JSON, too long, or refers to another document.
        """
        try:
            parsed = json.loads(schema) if isinstance(schema, str) else schema
            text = json.dumps(parsed, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        except (ValueError, TypeError, RecursionError) as error:
            raise UsageError(f"the JSON schema is no JSON: {shorten(str(error), 120)}; correct it") from None
        if not isinstance(parsed, dict | bool):
            raise UsageError(f"the JSON schema is {shorten(parsed)}; it must be an object, true or false")
        _check_size("the JSON schema", text, MAX_SCHEMA_BYTES)
        for key, value in _pairs(parsed):
            if key in ("$ref", "$dynamicRef") and isinstance(value, str) and not value.startswith("#"):
                raise UsageError(
                    f"the JSON schema refers to {shorten(value)}, and nothing is fetched; put it under "
                    "`$defs` and refer to it as `#/$defs/NAME`"
                )
            if key == "pattern" and isinstance(value, str):
                _check_regex("the pattern", value)
        return cls(kind="json_schema", text=text)

    @classmethod
    def choice(cls, choices: Sequence[str]) -> OutputFormat:
        """One of some texts, each at most once.

        Raises:
            UsageError: there are none or too many of them, or one is empty, too long or there twice.
        """
        if isinstance(choices, str) or not 1 <= len(choices) <= MAX_CHOICES:
            count = "one text" if isinstance(choices, str) else str(len(choices))
            raise UsageError(f"choice is a list of 1 to {MAX_CHOICES} texts, got {count}; give all there are")
        for text in choices:
            if not isinstance(text, str) or not 1 <= len(text) <= MAX_CHOICE_LENGTH:
                raise UsageError(
                    f"the choice {shorten(text)} must be a text of 1 to {MAX_CHOICE_LENGTH} characters; "
                    "word it so"
                )
            check_unicode(text, "choice")
        if len(set(choices)) < len(choices):
            twice = next(text for i, text in enumerate(choices) if text in choices[:i])
            raise UsageError(f"the choice {shorten(twice)} is given twice; give it once")
        text = json.dumps(list(choices), ensure_ascii=False)
        _check_size("all choices", text, MAX_SCHEMA_BYTES)
        return cls(kind="choice", text=text)

    @classmethod
    def regex(cls, pattern: str) -> OutputFormat:
        """A text that a regular expression (the syntax of Rust's `regex`) matches as a whole.

        Raises:
            UsageError: it is empty or too long, or its counts are too large.
        """
        _check_regex("regex", pattern)
        return cls(kind="regex", text=pattern)

    @classmethod
    def grammar(cls, text: str) -> OutputFormat:
        """A text of a context-free grammar, in the Lark variant of llguidance or in llama.cpp's GBNF.

        Raises:
            UsageError: it is empty or too long.
        """
        check_unicode(text, "grammar")
        if not text.strip():
            raise UsageError(
                "the grammar is blank; give its rules, from `start:` (Lark) or `root ::=` (GBNF)"
            )
        _check_size("the grammar", text, MAX_GRAMMAR_BYTES)
        _check_expansion("the grammar", text)
        return cls(kind="grammar", text=text)

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts of a choice; none of another kind."""
        return tuple(json.loads(self.text)) if self.kind == "choice" else ()


def _check_size(name: str, text: str, limit: int) -> None:
    check_unicode(text, name)
    size = len(text.encode())
    if size > limit:
        raise UsageError(f"{name} has {size} bytes, the limit is {limit}; make it smaller")


def _check_regex(name: str, pattern: str) -> None:
    check_unicode(pattern, name)
    if not 1 <= len(pattern) <= MAX_REGEX_LENGTH:
        raise UsageError(
            f"{name} has {len(pattern)} characters, 1 to {MAX_REGEX_LENGTH} are taken; word it otherwise"
        )
    _check_expansion(name, pattern)


def _check_expansion(name: str, pattern: str) -> None:
    """Refuse counts that, written out, are a large expression: compiling it would take long."""
    sizes, atom = [0], 0  # of the open groups, and of what a count would repeat
    for part in _PART.finditer(pattern):
        if part[1]:
            counts = [int(count[:9]) for count in part.groups() if count]
            sizes[-1] += atom * (max(counts) - 1)
            atom *= max(counts)
        elif part[0] == "(":
            sizes.append(0)
        elif part[0] == ")" and len(sizes) > 1:
            atom = sizes.pop()
            sizes[-1] += atom
        else:
            atom = 1
            sizes[-1] += 1
        if sum(sizes) > MAX_EXPANSION and part[1]:
            raise UsageError(
                f"{name} with its counts written out has over {MAX_EXPANSION} characters at "
                f"{shorten(part[0])}; use `*` or `+`, or smaller counts"
            )


def _pairs(schema: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a schema with its value, at any depth."""
    left = [schema]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            yield from part.items()
            left += part.values()
        elif isinstance(part, list):
            left += part
