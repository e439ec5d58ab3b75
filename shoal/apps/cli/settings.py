"""One schema for flags and YAML files: the fields of pydantic models.

A command is a function whose parameters are settings models. Each field of them becomes a flag, whose help is
the field's description, and a key of the YAML file that `--config` names; flags win. Knows nothing of what
settings mean.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from shoal.config import first_mistake
from shoal.errors import ShoalError, UsageError, reason

_METAVARS = {int: "INTEGER", float: "NUMBER", Path: "PATH"}
CONFIG_HELP = "YAML file with these settings, under the names of the flags (`batch_size: 16`); flags win"


@dataclass(frozen=True)
class Only:
    """In `Annotated[Model, Only("rank", "alpha")]`: the fields of a model that a command takes.

    Attributes:
        names: of the fields.
        unset: what holds where none is given, for their help; None where it is the model's own default.
    """

    names: tuple[str, ...]
    unset: str | None

    def __init__(self, *names: str, unset: str | None = None) -> None:
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "unset", unset)


@dataclass(frozen=True)
class Output:
    """Results that a command prints on standard output.

    Attributes:
        record: for machines, one JSON object.
        text: for people.
    """

    record: Mapping[str, Any]
    text: str


@dataclass(frozen=True)
class _Part:
    """A parameter of a command that is a settings model, and the fields of it that are asked for."""

    model: type[BaseModel]
    fields: Mapping[str, FieldInfo]
    unset: str | None = None


def command(function: Callable[..., Output]) -> Callable[..., None]:
    """The function as typer takes it: with a flag for every setting, `--config` and `--json`, and printing.

    Parameters that are not settings models are left as they are; they must be annotated for typer.
    """
    hints = get_type_hints(function, include_extras=True)
    plain = {n: p for n, p in inspect.signature(function).parameters.items() if _part(hints[n]) is None}
    parts = {n: part for n, hint in hints.items() if n != "return" and (part := _part(hint))}

    def run(**given: Any) -> None:
        path = given.pop("config", None)
        as_json = given.pop("json")
        arguments = {name: given.pop(name) for name in plain}
        flags = {name: value for name, value in given.items() if value is not None}
        output = function(**arguments, **_build(parts, flags, path))
        if os.environ.get("RANK", "0") == "0":  # of several processes, as torchrun numbers them
            typer.echo(json.dumps(output.record) if as_json else output.text)

    parameters = [p.replace(annotation=hints[n], kind=p.KEYWORD_ONLY) for n, p in plain.items()]
    parameters += [
        _flag(name, info, part.unset) for part in parts.values() for name, info in part.fields.items()
    ]
    if parts:
        parameters.append(
            _keyword("config", Path | None, typer.Option(None, help=CONFIG_HELP, metavar="FILE"))
        )
    parameters.append(_keyword("json", bool, typer.Option(False, "--json", help="print one JSON object")))
    run.__name__ = function.__name__
    run.__doc__ = function.__doc__
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def check_extra(work: str, extra: str, *modules: str) -> None:
    """See that what an extra installs is there, before long work that needs it.

    Raises:
        ShoalError: a module is not installed.
    """
    for name in modules:
        if importlib.util.find_spec(name) is None:
            raise ShoalError(f"{work} needs {name}, which is not installed; pip install 'shoal[{extra}]'")


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of the file that --config names; errors as `read_mapping`."""
    return {key.replace("-", "_"): value for key, value in read_mapping(path, "--config").items()}


def read_mapping(path: Path, flag: str) -> dict[str, Any]:
    """The values of a YAML file, or of a JSON file whose name ends so, by name.

    Raises:
        UsageError: there is no such file, or it is no mapping.
        ShoalError: it cannot be read.
    """
    where = f"{flag} {path}"
    try:
        text = path.read_text(encoding="utf-8")
        # JSON is not quite YAML, which takes half of a surrogate pair for a whole character.
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UsageError(f"{where}: not a file; check the path") from None
    except OSError as error:
        raise ShoalError(f"{where}: cannot be read ({error.strerror}); check its permissions") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise UsageError(f"{where}: not valid {kind} ({reason(error, 120)}); repair the file") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{where}: holds no `name: value` lines; write some, such as `steps: 300`")
    return content


def _build(parts: Mapping[str, _Part], flags: Mapping[str, Any], path: Path | None) -> dict[str, BaseModel]:
    """Every part from flags and file; fields that are set nowhere are left to the model's own defaults."""
    known = {name for part in parts.values() for name in part.fields}
    filed = read_settings(path) if path else {}
    for name in filed:
        if name not in known:
            raise UsageError(f"--config {path}: {_unknown(name, known)}")
    values = {**filed, **flags}
    built = {}
    for parameter, part in parts.items():
        own = {n: _plain(values[n], info.annotation) for n, info in part.fields.items() if n in values}
        try:
            built[parameter] = part.model.model_validate(own)
        except ValidationError as error:
            raise UsageError(_explained(error, part, flags, path)) from None
    return built


def _unknown(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    fix = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(sorted(known))}"
    return f"unknown setting {name}; {fix}"


def _explained(error: ValidationError, part: _Part, flags: Mapping[str, Any], path: Path | None) -> str:
    """The first mistake in one line: setting, value, limit, and what the setting is."""
    name, mistake = first_mistake(error)
    flag = f"--{name.replace('_', '-')}"
    about = part.fields[name].description
    if error.errors()[0]["type"] == "missing":
        return f"{flag} is missing; give it: {about}"
    where = flag if name in flags or path is None else f"--config {path}: {name}"
    return f"{where} {mistake}; change it ({about})"


def _part(hint: Any) -> _Part | None:
    """The settings model of an annotation, if it is one."""
    only = next((m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Only)), None)
    model = hint.__origin__ if only else hint
    if not (inspect.isclass(model) and issubclass(model, BaseModel)):
        return None
    fields = model.model_fields
    if only is None:
        return _Part(model, fields)
    return _Part(model, {n: fields[n] for n in only.names}, only.unset)


def _flag(name: str, info: FieldInfo, unset: str | None) -> inspect.Parameter:
    """The flag of a field: None where it is not given, else text that the model parses."""
    kind = _without_none(info.annotation)
    spelled = f"--{name.replace('_', '-')}"
    help = f"{info.description} {f'[{unset}]' if unset else _default(info)}".rstrip()
    if kind is bool:
        option = typer.Option(None, f"{spelled}/--no-{spelled[2:]}", help=help, show_default=False)
        return _keyword(name, bool | None, option)
    option = typer.Option(None, spelled, help=help, show_default=False, metavar=_metavar(kind))
    return _keyword(name, list[str] | None if _is_many(kind) else str | None, option)


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "[required]"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, bool):
        return "[on]" if value else "[off]"
    if value is None or value == () or value == {}:
        return ""
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    return f"[{value:g}]" if isinstance(value, float) else f"[{value}]"


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _plain(value: Any, annotation: Any) -> Any:
    """A value as pydantic takes it: a list for `a,b`, a mapping for NAME=DIR, None for `none`."""
    kind = _without_none(annotation)
    if value == "none" and NoneType in get_args(annotation):
        return None
    if get_origin(kind) is tuple:
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
            return tuple(word.strip() for text in texts for word in text.split(",") if word.strip())
    if _is_mapping(kind) and isinstance(value, list):
        pairs = [str(text).partition("=") for text in value]
        wrong = next(
            (text for text, pair in zip(value, pairs, strict=True) if not (pair[0] and pair[2])), None
        )
        if wrong is not None:
            raise UsageError(f"{wrong!r} is no NAME=DIR; write for example mine=adapters/mine")
        return {name: rest for name, _, rest in pairs}
    return value


def _without_none(annotation: Any) -> Any:
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    is_union = get_origin(annotation) in (Union, UnionType)
    return kinds[0] if is_union and len(kinds) == 1 else annotation


def _is_mapping(kind: Any) -> bool:
    return inspect.isclass(get_origin(kind)) and issubclass(get_origin(kind), Mapping)


def _is_many(kind: Any) -> bool:
    return get_origin(kind) is tuple or _is_mapping(kind)


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if _is_mapping(kind):
        return "NAME=DIR"
    if get_origin(kind) is tuple:
        one = "NAME" if get_args(kind)[0] is str else _metavar(get_args(kind)[0])
        return f"{one},{one}"
    return _METAVARS.get(kind, "TEXT")
