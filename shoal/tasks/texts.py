"""Texts of tasks: what may be one, when two are the same, and how a request is worded.

Knows strings alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

from shoal.errors import UsageError, check_unicode, shorten

TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def prompted_input(description: str, text: str) -> str:
    """A request for a model that has no adapter: the description of the task, then the input."""
    return f"{description}\n\n{text}"


def normalise(text: str) -> str:
    """NFKC, case folded, each run of whitespace one space: the form in which examples are compared."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def joined(texts: Sequence[str], definition: str | None) -> str:
    """One request of several texts, without the instruction that the adapter replaces."""
    kept = [text for text in texts if text.strip()]
    if definition is not None and len(kept) > 1 and normalise(kept[0]) == normalise(definition):
        kept = kept[1:]
    return "\n\n".join(kept) if len(kept) > 1 else "".join(kept or texts)


def has_text(value: object) -> bool:
    """True where a value holds visible text that is no number, or bytes, which may be text or an image."""
    if isinstance(value, str):
        return bool(value.strip()) and not value.strip().replace(".", "", 1).lstrip("+-").isdigit()
    if isinstance(value, bytes):
        return bool(value)
    if isinstance(value, Mapping):
        return any(map(has_text, value.values()))
    return isinstance(value, Sequence) and any(map(has_text, value))


def check_task_name(name: object) -> str:
    """Return `name` if it is a task name (`TASK_NAME`); names never hold a path separator.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(name, str) or not TASK_NAME.fullmatch(name):
        raise UsageError(
            f"task name {shorten(name)}: must be 1 to 128 letters, digits, dots, hyphens or underscores and "
            "start with a letter or digit; rename the task"
        )
    return name


def check_text(value: object, field: str) -> str:
    """Return `value` if it is valid Unicode with something in it.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(value, str):
        raise UsageError(
            f"{field}: {shorten(value)} is of type {type(value).__name__}; it must be a string, quote it"
        )
    if not value or value.isspace():
        raise UsageError(
            f"{field}: {shorten(value)} is blank; at least 1 visible character is needed, fill it in"
        )
    check_unicode(value, field)
    return value


def check_texts(values: object, field: str) -> tuple[str, ...]:
    """Return `values` if it is a tuple of at least one string, none of them blank.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(values, tuple):
        raise UsageError(
            f"{field}: {shorten(values)} is of type {type(values).__name__}; it must be a tuple of strings"
        )
    if not values:
        raise UsageError(f"{field}: 0 entries; at least 1 is needed, add one")
    for index, value in enumerate(values):
        check_text(value, f"{field}[{index}]")
    return values
