"""Tasks from every source, by one function; and whole directories of them.

The loaders of one source each are in `shoal.tasks.files` (JSON, Super-NaturalInstructions, JSONL),
`shoal.tasks.hub` and `shoal.tasks.puzzles`; the records and the rule against leaks are in
`shoal.tasks.records`. Knows nothing of tokens, prompts or models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from shoal.errors import ShoalError, UsageError, shorten
from shoal.tasks.files import (
    load_jsonl,
    load_super_natural_instructions,
    load_task_json,
    read_object,
    strings,
)
from shoal.tasks.forms import Columns
from shoal.tasks.hub import load_hub_dataset
from shoal.tasks.puzzles import load_reasoning_gym
from shoal.tasks.records import Example, LeakageError, Split, Task, check_no_leakage, remove_leaks
from shoal.tasks.tables import holds_rows
from shoal.tasks.texts import check_task_name, check_texts

__all__ = [
    "Example",
    "LeakageError",
    "Split",
    "Task",
    "check_no_leakage",
    "load_hub_dataset",
    "load_jsonl",
    "load_reasoning_gym",
    "load_split",
    "load_super_natural_instructions",
    "load_task_directory",
    "load_task_json",
    "load_tasks",
    "remove_leaks",
]

SPLIT_LISTS = ("train", "validation", "validation_2")  # of splits.json; the last one may be missing


def load_task_directory(directory: str | Path, names: Iterable[str] | None = None) -> list[Task]:
    """Read `<name>.json` of `directory` for each of `names`, or every `*.json` there in order of name.

    Raises:
        UsageError: there is no such directory, a name is not a task name, is given twice, or has no file.
        ShoalError: a file is malformed, leads out of the directory, or holds a task of another name.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UsageError(f"task directory {directory}: not a directory; give a folder of task JSON files")
    if names is None:
        chosen = sorted(path.stem for path in directory.glob("*.json"))
        if not chosen:
            raise UsageError(
                f"task directory {directory}: 0 *.json files; at least 1 task is needed, add one"
            )
    else:
        chosen = list(names)
    if len(set(chosen)) < len(chosen):
        twice = next(name for name in chosen if chosen.count(name) > 1)
        raise UsageError(
            f"task {shorten(twice)}: named {chosen.count(twice)} times; 1 is the limit, name it once"
        )
    return [_load_named(directory, name) for name in chosen]


def load_split(directory: str | Path) -> Split:
    """Read `splits.json`, lists of task names under `SPLIT_LISTS`, and the tasks from `tasks/`.

    Training examples that give evaluation data away are left out and counted in the log.

    Raises:
        UsageError: there is no `splits.json`.
        ShoalError: a file is malformed or missing, a name is listed twice, or its file leads out of `tasks/`.
        LeakageError: a task is in two lists.
    """
    directory = Path(directory)
    path = directory / "splits.json"
    record = read_object(path, ("train", "validation"))
    try:
        names = {
            part: check_texts(strings(record[part], part), part) for part in SPLIT_LISTS if part in record
        }
    except UsageError as error:
        raise ShoalError(f"{path}: {error}") from None
    for one, other in combinations(names, 2):
        both = sorted(set(names[one]) & set(names[other]))
        if both:
            raise LeakageError(
                f"{path}: {len(both)} tasks are in {one} and in {other}, the first is {shorten(both[0])}; "
                "0 are allowed, take them out of one list"
            )
    try:
        tasks = {part: tuple(load_task_directory(directory / "tasks", own)) for part, own in names.items()}
    except UsageError as error:
        raise ShoalError(f"{path}: {error}") from None
    train = tasks.pop("train")
    held_out = [task for part in tasks.values() for task in part]
    return Split(train=remove_leaks(train, held_out), **tasks)


def load_tasks(
    source: str | Path,
    *,
    definition: str | None = None,
    test_size: int = 60,
    columns: Columns | None = None,
) -> Split:
    """The tasks of any source; those without a `splits.json` are all training tasks.

    Args:
        source: one of

            - a path: a directory with `splits.json`, a folder of task JSON files, one such file, or solved
              examples as JSON Lines, JSON array, CSV, TSV or Parquet (`shoal.tasks.tables`);
            - `hub:ORG/NAME?input=COLUMN&output=COLUMN`: a data set of the Hugging Face hub, or a folder of
              tables; more options are `ignore`, `config`, `revision`, `train` and `test` (splits);
            - `sni:PATH`: a folder of Super-NaturalInstructions task files, or one of them;
            - `gym:GENERATOR`: puzzles of reasoning-gym; options are the generator's, `gym:NAME?min_digits=2`.
        definition: the instruction that the examples follow; needed for files of rows and for `hub:`, which
            hold none, optional for `gym:`.
        test_size: examples at most that are not trained on, for sources without parts of their own.
        columns: of files of rows and of `hub:`; None for those of a form (`shoal.tasks.forms`).

    Raises:
        UsageError: there is nothing of that kind, a definition is missing or in the way, or an unknown
            option.
        ShoalError: a file is malformed, or what reads the source is not installed.
    """
    kind, colon, rest = str(source).partition(":")
    if colon and kind in _SOURCES:
        place, _, query = rest.partition("?")
        if not place:
            raise UsageError(f"task source {source}: nothing follows {kind}:; give {_SOURCES[kind].form}")
        options = dict(parse_qsl(query, keep_blank_values=True))
        if kind == "hub" and columns is not None:
            named = {
                "input": ",".join(columns.input),
                "output": columns.output,
                "ignore": ",".join(columns.ignored),
            }
            options = {name: text for name, text in named.items() if text} | options
        return Split(_SOURCES[kind].load(place, options, definition, test_size), ())
    path = Path(source)
    if holds_rows(path):
        wanted, own = _needed(definition, path), columns or Columns()
        fields: dict[str, Any] = {
            "input_field": own.input,
            "output_field": own.output,
            "ignored": own.ignored,
        }
        return Split((load_jsonl(path, definition=wanted, test_size=test_size, **fields),), ())
    _not_wanted(definition, path)
    if path.is_file():
        return Split((load_task_json(path),), ())
    if (path / "splits.json").is_file():
        return load_split(path)
    return Split(tuple(load_task_directory(path)), ())


def _of_hub(
    place: str, options: Mapping[str, str], definition: str | None, test_size: int
) -> tuple[Task, ...]:
    unknown = sorted(set(options) - {"input", "output", "ignore", "config", "revision", "train", "test"})
    if unknown:
        raise UsageError(
            f"hub:{place}: unknown option {unknown[0]}; use input, output, ignore, config, revision, train "
            "and test"
        )
    task = load_hub_dataset(
        place,
        name=place.rstrip("/").rsplit("/", 1)[-1],
        definition=_needed(definition, f"hub:{place}"),
        input_column=_names(options.get("input")),
        output_column=options.get("output"),
        ignored=_names(options.get("ignore")),
        config=options.get("config"),
        revision=options.get("revision"),
        train_split=options.get("train", "train"),
        test_split=options.get("test"),
        test_size=test_size,
    )
    return (task,)


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name for name in (text or "").split(",") if name)


def _of_super_natural_instructions(
    place: str, options: Mapping[str, str], definition: str | None, test_size: int
) -> tuple[Task, ...]:
    _not_wanted(definition, f"sni:{place}")
    if options:
        raise UsageError(f"sni:{place}: unknown option {min(options)}; there are none, leave it out")
    path = Path(place)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise UsageError(f"sni:{place}: 0 *.json files; give a folder of task files, or one of them")
    return tuple(load_super_natural_instructions(file, test_size=test_size) for file in files)


def _of_reasoning_gym(
    place: str, options: Mapping[str, str], definition: str | None, test_size: int
) -> tuple[Task, ...]:
    config = {name: _number_or_text(value) for name, value in options.items()}
    own = sorted({"name", "definition", "descriptions", "test_size"} & set(config))
    if own:
        raise UsageError(f"gym:{place}: {own[0]} is no option of a generator; leave it out")
    return (load_reasoning_gym(place, definition=definition, test_size=test_size, **config),)


class _Source(NamedTuple):
    """One kind of source besides paths: what follows its colon, and what loads it."""

    form: str
    load: Callable[[str, Mapping[str, str], str | None, int], tuple[Task, ...]]


_SOURCES = {
    "hub": _Source("hub:ORG/NAME", _of_hub),
    "sni": _Source("sni:DIR", _of_super_natural_instructions),
    "gym": _Source("gym:NAME", _of_reasoning_gym),
}


def _needed(definition: str | None, source: object) -> str:
    if definition is None:
        raise UsageError(f"{source} holds no instruction; give the definition that its examples follow")
    return definition


def _not_wanted(definition: str | None, source: object) -> None:
    if definition is not None:
        raise UsageError(f"{source} holds its own definition; leave the other one out")


def _number_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _load_named(directory: Path, name: str) -> Task:
    path = directory / f"{check_task_name(name)}.json"
    if not path.resolve().is_relative_to(directory.resolve()):
        raise ShoalError(
            f"{path}: leads to {path.resolve()}, outside the task directory; put the file itself there"
        )
    task = load_task_json(path)
    if task.name != name:
        raise ShoalError(f"{path}: holds the task {task.name}, not {name}; rename the file or the task")
    return task
