"""The tasks of a command: which flags name them, and from where they are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from shoal.errors import UsageError

if TYPE_CHECKING:
    from shoal.tasks.loading import Split, Task

TEST_SIZE = 60  # of JSONL
TASKS_HELP = (
    "data directory with splits.json, folder of task JSON files, one such file, or JSONL with --definition"
)


class Data(BaseModel):
    """Which tasks, from which adapter on, and where results go."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: Path | None = Field(None, description=TASKS_HELP)
    definition: str | None = Field(None, description="for JSONL: the instruction that its examples follow")
    test_size: int = Field(
        TEST_SIZE, ge=0, description="for JSONL: examples that are not trained on, at most half of them"
    )
    task: tuple[str, ...] = Field((), description="take only the tasks of these names")
    procedural: int = Field(
        0, ge=0, description="examples of every procedural task to add, 0 for none; these need no --tasks"
    )
    relabelled: int = Field(
        0, ge=0, description="copies with other label names to add of every task with a closed label set"
    )
    label_sets: int = Field(
        0, ge=0, description="tasks to add that have a few of the labels of others, and name them"
    )
    rewrites: int = Field(
        0, ge=0, description="tasks to add that change the texts of others, or label them by simple rules"
    )
    start: Path | None = Field(
        None,
        description="directory of the LoRA to start from, or of a hypernetwork",
    )
    out: Path = Field(description="directory to write the result to")
    run: Path | None = Field(
        None, description="folder of checkpoints, from which a run resumes; none means OUT.run"
    )

    @property
    def run_folder(self) -> Path:
        """Beside the result, which is replaced as a whole."""
        return self.run or self.out.with_name(self.out.name + ".run")


def read_tasks(
    data: Path, definition: str | None, names: Sequence[str] = (), test_size: int = TEST_SIZE
) -> Split:
    """The tasks of a path; those without a splits.json are all training tasks.

    Raises:
        UsageError: there is nothing of that kind there, or a name is not among the tasks.
        ShoalError: a file is malformed.
    """
    from shoal.tasks.loading import Split, load_jsonl, load_split, load_task_directory, load_task_json

    if data.suffix == ".jsonl":
        if definition is None:
            raise UsageError(f"--tasks {data} is JSONL, which holds no instruction; add --definition TEXT")
        split = Split((load_jsonl(data, definition=definition, test_size=test_size),), ())
    elif definition is not None:
        raise UsageError(f"--definition is for JSONL, but --tasks is {data}; leave it out")
    elif data.is_file():
        split = Split((load_task_json(data),), ())
    elif (data / "splits.json").is_file():
        split = load_split(data)
    else:
        split = Split(tuple(load_task_directory(data)), ())
    return Split(*_named((split.train, split.validation), names))


def _named(parts: Sequence[Sequence[Task]], names: Sequence[str]) -> tuple[tuple[Task, ...], ...]:
    """Every part with only the tasks of these names; all of them where none are given."""
    known = {task.name for part in parts for task in part}
    for name in names:
        if name not in known:
            raise UsageError(f"--task {name}: not among the {len(known)} tasks; check the name")
    return tuple(tuple(t for t in part if not names or t.name in names) for part in parts)


def divided(data: Data) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    """(training tasks, held-out tasks): those of the files, then procedural ones, then those made of both.

    Where tasks are made, training examples that are evaluation data of another task are left out; among files
    alone such a leak is an error of the training that follows.
    """
    if data.tasks is None and not data.procedural:
        raise UsageError("there is nothing to train on: give --tasks, or --procedural for tasks made in code")
    from shoal.tasks.loading import remove_leaks
    from shoal.tasks.procedural.catalogue import procedural_tasks
    from shoal.tasks.procedural.derived import made_of

    filed: tuple[Task, ...] = ()
    held_out: tuple[Task, ...] = ()
    procedural: tuple[Task, ...] = ()
    if data.tasks is not None:
        split = read_tasks(data.tasks, data.definition, test_size=data.test_size)
        filed, held_out = split.train, split.validation
    if data.procedural:
        procedural = tuple(procedural_tasks(size=data.procedural, test_size=data.procedural // 8))
    filed, held_out, procedural = _named((filed, held_out, procedural), data.task)
    own = (*filed, *procedural)
    made = made_of(own, copies=data.relabelled, sets=data.label_sets, texts=data.rewrites)
    return remove_leaks((*own, *made), held_out) if procedural or made else filed, held_out
