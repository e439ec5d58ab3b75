"""Conversations as rows of solved examples have them: what is said before the answer is the request.

A turn is an object with a role (`role` or `from`) and a text (`content` or `value`). Knows no columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal.errors import UsageError, shorten
from shoal.tasks.texts import has_text, joined

_USERS, _ASSISTANTS = ("user", "human"), ("assistant", "gpt", "model", "bot", "chatgpt")
_SYSTEMS = ("system", "developer")
_SPEAKERS = dict.fromkeys(_USERS, "User") | dict.fromkeys(_ASSISTANTS, "Assistant")
# Keys of a turn that are read, or whose text is no part of what is said.
_READ = frozenset({"role", "from", "content", "value", "tool_calls", "function_call", "name", "id"})


def are_turns(value: object) -> bool:
    """True for a list of objects."""
    return isinstance(value, list) and bool(value) and all(isinstance(turn, Mapping) for turn in value)


def turns_of(parts: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """The turns of a part after the system prompt.

    Raises:
        UsageError: the part holds no turns, or another part would be dropped.
    """
    for other, value in parts.items():
        if other not in ("system", name) and value not in (None, "", [], {}):
            raise UsageError(
                f"{other}: {shorten(value, 30)} would be dropped beside the turns of {name}; make it a turn"
            )
    system, turns = parts.get("system"), parts[name]
    first = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    if turns and not are_turns(turns):
        kind = "one text" if isinstance(turns, str) else f"of type {type(turns).__name__}"
        raise UsageError(
            f"{name}: {shorten(turns, 30)} is {kind}; write a list of turns, objects with a role"
        )
    return [*first, *(turns or [])]


def of_turns(
    turns: Sequence[Mapping[str, Any]],
    answers: tuple[str, ...] | None,
    definition: str | None,
    ignored: Sequence[str] = (),
) -> tuple[str, tuple[str, ...]]:
    """(request, right answers) of a conversation.

    Args:
        turns: in their order.
        answers: where they are known; else the last turn is the one.
        definition: an instruction that is no part of the request.
        ignored: keys of turns whose text is left out on purpose.

    Raises:
        UsageError: a turn holds anything but text of one of the known roles, or the order is another one.
    """
    said = [(_role(turn), _content(turn, ignored)) for turn in turns]
    if answers is None:
        if len(said) < 2 or said[-1][0] != "Assistant":
            raise UsageError(f"the last of {len(said)} turns is not the assistant's; it has to be the answer")
        if turns[-1].get("weight") == 0 and "weight" not in ignored:
            raise UsageError("the last turn has the weight 0, so it is not to be learned; leave the row out")
        answers = (said.pop()[1],)
    if not said or said[-1][0] != "User":
        raise UsageError("the turn before the answer is not the user's; it has to be the request")
    instructions = [text for role, text in said if role == "System"]
    talk = [(role, text) for role, text in said if role != "System"]
    lines = [text if len(talk) == 1 else f"{role}: {text}" for role, text in talk]
    return joined([*instructions, "\n\n".join(lines)], definition), answers


def _role(turn: Mapping[str, Any]) -> str:
    role = str(turn.get("role", turn.get("from", ""))).strip().casefold()
    if role in _SYSTEMS:
        return "System"
    if role not in _SPEAKERS:
        raise UsageError(f"a turn has the role {shorten(role)}; system, user and assistant are read")
    return _SPEAKERS[role]


def _content(turn: Mapping[str, Any], ignored: Sequence[str]) -> str:
    if turn.get("tool_calls") or turn.get("function_call"):
        raise UsageError("a turn calls tools; turns of text alone are read")
    content, other = turn.get("content"), turn.get("value")
    texts = [text for text in (content, other) if text is not None]
    if len(texts) > 1 and content != other:
        raise UsageError(
            f"a turn has the content {shorten(content)} and the value {shorten(other)}; keep one"
        )
    dropped = next((key for key in turn if key not in _READ and has_text(turn[key])), None)
    if dropped is not None and dropped not in ignored:
        raise UsageError(
            f"a turn's {shorten(dropped)}, {shorten(turn[dropped], 30)}, would be dropped; make it part of "
            f"the turn's text, or name it with --ignore-column {dropped}"
        )
    text = texts[0] if texts else None
    if isinstance(text, list) and all(isinstance(part, Mapping) and _is_text(part) for part in text):
        text = "".join(part["text"] for part in text)
    if not isinstance(text, str):
        raise UsageError(f"a turn holds {shorten(text)}; turns of text alone are read")
    return text


def _is_text(part: Mapping[str, Any]) -> bool:
    return part.get("type") == "text" and isinstance(part.get("text"), str)
