"""Tasks from every source under one name, and whole directories of them.

The loaders of one source each are in `shoal.tasks.files` (JSON, Super-NaturalInstructions, JSONL),
`shoal.tasks.hub` and `shoal.tasks.puzzles`; the records and the rule against leaks are in
`shoal.tasks.records`. Knows nothing of tokens, prompts or models.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from shoal.errors import ShoalError, UsageError, shorten
from shoal.tasks.files import (
    load_jsonl,
    load_super_natural_instructions,
    load_task_json,
    read_object,
    strings,
)
from shoal.tasks.hub import load_hub_dataset
from shoal.tasks.puzzles import load_reasoning_gym, reasoning_gym_scorer
from shoal.tasks.records import (
    Example,
    LeakageError,
    Split,
    Task,
    check_no_leakage,
    check_task_name,
    check_texts,
    remove_leaks,
)

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
    "reasoning_gym_scorer",
    "remove_leaks",
]


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
    """Read `splits.json` (`{"train": [name, ...], "validation": [name, ...]}`) and its tasks from `tasks/`.

    Training examples that give evaluation data away are left out and counted in the log.

    Raises:
        UsageError: there is no `splits.json`.
        ShoalError: a file is malformed or missing, a name is listed twice, or its file leads out of `tasks/`.
        LeakageError: a task is in both lists.
    """
    directory = Path(directory)
    path = directory / "splits.json"
    record = read_object(path, ("train", "validation"))
    try:
        train_names = check_texts(strings(record["train"], "train"), "train")
        validation_names = check_texts(strings(record["validation"], "validation"), "validation")
    except UsageError as error:
        raise ShoalError(f"{path}: {error}") from None
    both = sorted(set(train_names) & set(validation_names))
    if both:
        raise LeakageError(
            f"{path}: {len(both)} tasks are in train and in validation, the first is {shorten(both[0])}; "
            "0 are allowed, take them out of one list"
        )
    try:
        train = load_task_directory(directory / "tasks", train_names)
        validation = load_task_directory(directory / "tasks", validation_names)
    except UsageError as error:
        raise ShoalError(f"{path}: {error}") from None
    return Split(train=remove_leaks(train, validation), validation=tuple(validation))


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
