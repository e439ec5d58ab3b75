"""YAML of strangers: read with bounds, so that a small file stays small, and nothing in it is run."""

from __future__ import annotations

from typing import Any

import yaml

from shoal.errors import UsageError, reason, shorten

MAX_EVENTS, MAX_DEPTH = 5_000, 32


def plain_yaml(text: str) -> Any:
    """The values of a YAML text without aliases, tags of Python or repeated keys.

    Raises:
        UsageError: it is no YAML, has one of these, or more than `MAX_EVENTS` values, or is nested deeply.
    """
    try:
        _check_events(text)
        _check_keys_once(yaml.compose(text, yaml.SafeLoader))
        return yaml.safe_load(text)
    except UsageError:
        raise
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UsageError(f"not valid YAML ({reason(error, 120)}); repair it") from None


def _check_events(text: str) -> None:
    """Stop at the first event that goes too far: deep nesting alone would cost the parser minutes."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            raise UsageError(
                "the recipe has YAML aliases (*name), which can grow without end; write them out"
            )
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise UsageError(f"the recipe is nested deeper than {MAX_DEPTH}; make it flatter")
        if count > MAX_EVENTS:
            raise UsageError(f"the recipe has more than {MAX_EVENTS} values; shorten it")


def _check_keys_once(root: yaml.Node | None) -> None:
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise UsageError(f"the key {shorten(twice)} is given twice; once is the limit, leave one out")
            waiting += [child for pair in node.value for child in pair]


def as_mapping(value: object, where: str) -> dict[str, Any]:
    """The value, which must be `name: value` lines.

    Raises:
        UsageError: it is something else.
    """
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UsageError(f"{where} is {shorten(value)}, not `name: value` lines; correct it")
    return value


def as_list(value: object, where: str) -> list[Any]:
    """The value, which must be a list of at least one value.

    Raises:
        UsageError: it is something else.
    """
    if not isinstance(value, list) or not value:
        raise UsageError(f"{where} is {shorten(value)}, not a list; give one")
    return value


def as_text(value: object, where: str) -> str:
    """The value, which must be a text that is not empty.

    Raises:
        UsageError: it is something else.
    """
    if not isinstance(value, str) or not value:
        raise UsageError(f"{where} {shorten(value)} is no text; give it")
    return value
