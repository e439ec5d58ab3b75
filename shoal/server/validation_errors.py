"""Faults of a request's fields, in plain words: the field, what was given, what is allowed.

Pydantic's own messages name no value, and say of a union what each of its branches would have wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shoal.errors import shorten
from shoal.server.neutral import unsupported

MAX_MESSAGE, MAX_FIELD, MAX_VALUE = 500, 200, 40
Error = Mapping[str, Any]

_TYPES = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": "an object",
    "model": "an object",
    "model_attributes": "an object",
    "finite_number": "a finite number",
}
_LIMITS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than": lambda c: f"above {_number(c['gt'])}",
    "greater_than_equal": lambda c: f"at least {_number(c['ge'])}",
    "less_than": lambda c: f"below {_number(c['lt'])}",
    "less_than_equal": lambda c: f"at most {_number(c['le'])}",
    "string_too_short": lambda c: f"at least {_count(c['min_length'], 'character')} long",
    "string_too_long": lambda c: f"at most {_count(c['max_length'], 'character')} long",
    "too_short": lambda c: f"at least {_count(c['min_length'], 'entry')} long",
    "too_long": lambda c: f"at most {_count(c['max_length'], 'entry')} long",
    "literal_error": lambda c: str(c["expected"]),
    "finite_number": lambda c: "a finite number",
}


def describe(errors: Sequence[Error], body: Any) -> tuple[str, str | None]:
    """(one sentence, the field or None) for the errors that FastAPI found in a request.

    Args:
        errors: as `RequestValidationError.errors()` gives them.
        body: the request's parsed body.
    """
    if errors[0]["type"] == "json_invalid":
        where = errors[0]["loc"][-1]
        return f"the body is not JSON: {errors[0]['ctx']['error']} at character {where}; correct it", None
    places = [_field(error, body) for error in errors]
    field = max(places, key=lambda place: place.count(".") + place.count("["))
    about = [error for error, place in zip(errors, places, strict=True) if place == field]
    shown = field if len(field) <= MAX_FIELD else field[: MAX_FIELD - 3] + "..."
    return _sentence(shown, about)[:MAX_MESSAGE], shown or None


def _sentence(field: str, errors: Sequence[Error]) -> str:
    name, first = f"`{field}`" if field else "the body", errors[0]
    if all(error["type"] == "missing" for error in errors):
        return f"{name} is missing; give it"
    if any(error["type"] == "string_unicode" for error in errors):
        return f"{name} is {shorten(first.get('input'), MAX_VALUE)}, which is not valid Unicode; correct it"
    if first["type"] == "unsupported":
        return f"{name} {first['msg']}"
    if first["type"] == "extra_forbidden":
        known = unsupported(str(first["loc"][-1]), first.get("input"))
        if known is not None:
            return f"{name} {known}"
        return f"{name} is no field of this request; leave it out"
    wanted = list(dict.fromkeys(filter(None, map(_wanted, errors))))
    if not wanted:
        return f"{name}: {first['msg'].removeprefix('Value error, ')}"
    given: Any = first.get("input")
    if first["type"].endswith(("too_long", "too_short")):
        unit = "character" if isinstance(given, str) else "entry"
        value = f"has {_count(len(given), unit)}" if hasattr(given, "__len__") else "has another length"
    else:
        value = f"is {shorten(given, MAX_VALUE)}"
    return f"{name} {value}; it must be {' or '.join(wanted)}"


def _wanted(error: Error) -> str | None:
    kind = error["type"]
    if kind in _LIMITS:
        return _LIMITS[kind](error.get("ctx", {}))
    for suffix in ("_type", "_parsing", "_from_float"):
        if kind.endswith(suffix):
            return _TYPES.get(kind.removesuffix(suffix))
    return None


def _field(error: Error, body: Any) -> str:
    """The place of an error as the user wrote it: `messages[0].role`, without the names of union branches."""
    source, *parts = error["loc"]
    at: Any = body if source == "body" else None
    field = ""
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if isinstance(part, int):
            field += f"[{part}]"
            at = at[part] if isinstance(at, list) and part < len(at) else None
        elif source != "body" or _has(at, part) or (last and error["type"] == "missing"):
            field += f".{part}" if field else str(part)
            at = at[part] if _has(at, part) else None
    return field


def _has(at: Any, part: str) -> bool:
    return isinstance(at, Mapping) and part in at


def _count(number: int, unit: str) -> str:
    plural = {"entry": "entries"}.get(unit, f"{unit}s")
    return f"{number} {unit if number == 1 else plural}"


def _number(limit: float) -> str:
    return f"{limit:g}" if isinstance(limit, float) else str(limit)
