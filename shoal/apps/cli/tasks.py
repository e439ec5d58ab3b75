"""The tasks of a command: which flags name them, and from where they are read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel, ConfigDict, Field

from shoal.apps.cli.settings import Output, check_extra
from shoal.config import MANY_EXAMPLES, MIN_EXAMPLES
from shoal.errors import UsageError, shorten

if TYPE_CHECKING:
    from shoal.tasks.forms import Columns
    from shoal.tasks.loading import Example, Split, Task

log = logging.getLogger(__name__)

TEST_SIZE = 60  # where a source has no test part
TASKS_HELP = (
    "data directory with splits.json, folder of task JSON files, one such file, solved "
    "examples with --definition (JSON Lines or array, CSV, TSV, Parquet; see `shoal data check`); "
    "hub:ORG/NAME?input=COLUMN&output=COLUMN with --definition, sni:DIR of Super-NaturalInstructions, or "
    "gym:NAME of reasoning-gym (the last three need the extra `data`)"
)
SHOWN_ROWS, SHOWN_CHARACTERS = 3, 400
DEFINITION_HELP = "for files of examples and hub: the instruction that the examples follow"


class ExampleColumns(BaseModel):
    """Columns of solved examples, where they are not those of a known form."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_column: tuple[str, ...] = Field(
        (), description="columns of the request, joined; none means those of a known form"
    )
    output_column: str | None = Field(
        None, description="column of the answer; none means that of a known form"
    )
    ignore_column: tuple[str, ...] = Field((), description="columns of text to leave out on purpose")

    @property
    def columns(self) -> Columns:
        """As the loaders take them."""
        from shoal.tasks.forms import Columns

        return Columns(self.input_column, self.output_column, self.ignore_column)


class Data(ExampleColumns):
    """Tasks to train on, the adapter to start from, and the target."""

    tasks: str | None = Field(None, description=TASKS_HELP)
    definition: str | None = Field(None, description=DEFINITION_HELP)
    test_size: int = Field(
        TEST_SIZE,
        ge=0,
        description="where the source has no test part: examples that are not trained on, at most half",
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
    source: str,
    definition: str | None,
    names: Sequence[str] = (),
    test_size: int = TEST_SIZE,
    columns: Columns | None = None,
) -> Split:
    """The tasks of a source; those without a splits.json are all training tasks.

    Raises:
        UsageError: there is nothing of that kind there, or a name is not among the tasks.
        ShoalError: a file is malformed, or what reads the source is not installed.
    """
    from shoal.tasks.loading import Split, load_tasks
    from shoal.tasks.tables import holds_rows

    if definition is None and (source.startswith("hub:") or holds_rows(Path(source))):
        raise UsageError(f"--tasks {source} holds no instruction; add --definition TEXT")
    log.info("reading the tasks of %s", source)
    split = load_tasks(source, definition=definition, test_size=test_size, columns=columns)
    return Split(*_named((split.train, split.validation, split.validation_2), names))


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
    from shoal.tasks.procedural.derived import derived_tasks

    filed: tuple[Task, ...] = ()
    held_out: tuple[Task, ...] = ()
    procedural: tuple[Task, ...] = ()
    if data.tasks is not None:
        split = read_tasks(data.tasks, data.definition, test_size=data.test_size, columns=data.columns)
        filed = split.train
        held_out = (*split.validation, *split.validation_2)
    if data.procedural:
        procedural = tuple(procedural_tasks(size=data.procedural, test_size=data.procedural // 8))
    filed, held_out, procedural = _named((filed, held_out, procedural), data.task)
    own = (*filed, *procedural)
    made = derived_tasks(own, copies=data.relabelled, sets=data.label_sets, texts=data.rewrites)
    return remove_leaks((*own, *made), held_out) if procedural or made else filed, held_out


def solved_examples(path: Path, description: str, least: int = MIN_EXAMPLES) -> Sequence[Example]:
    """The solved examples of a JSONL file, at least so many, for an adapter of this description.

    Raises:
        UsageError: there is no such file, or as `shoal.tasks.records.check_examples`.
        ShoalError: it is malformed, or what trains on them is not installed.
    """
    from shoal.tasks.files import load_jsonl
    from shoal.tasks.records import check_examples

    check_extra("examples", "train", "accelerate", "tensorboard", "tqdm")
    examples = load_jsonl(path, definition=description, test_size=0).train
    try:
        return check_examples(examples, least)
    except UsageError as error:
        raise UsageError(f"--examples {path}: {error}") from None


def better(examples: int, *, uncalibrated: bool = False) -> str | None:
    """Advice that makes a generated adapter better; None for none.

    Args:
        examples: solved ones that it got.
        uncalibrated: it has labels, and got no inputs to calibrate them on.
    """
    if examples == 0:
        inputs = "; inputs without answers too: --inputs FILE, or --sample-inputs" if uncalibrated else ""
        solved = f"{MIN_EXAMPLES} to 16 solved examples help: --examples FILE"
        return f"a sentence is a quick look; {solved}{inputs}"
    if examples >= MANY_EXAMPLES:
        return f"{examples} examples are enough to train a LoRA of their own: shoal train lora --tasks FILE"
    return None


class Reading(ExampleColumns):
    """How solved examples are read."""

    definition: str | None = Field(None, description="instruction that the examples follow, left out of them")


def check_data(
    file: Annotated[Path, typer.Argument(help="solved examples: JSON Lines or array, CSV, TSV, Parquet")],
    reading: Reading,
) -> Output:
    """Say how a file of solved examples is understood, with three of them."""
    from shoal.tasks.forms import understand
    from shoal.tasks.tables import read_table

    table = read_table(file)
    known = understand(table.rows, columns=reading.columns, definition=reading.definition, source=file)
    record = {
        "file": str(file),
        "format": table.form,
        "form": known.form,
        "request": known.inputs,
        "answer": known.output or "the last turn",
        "left_out": known.left_out,
        "rows": known.rows,
        "examples": len(known.examples),
        "first": [{"input": e.input, "outputs": e.outputs} for e in known.examples[:SHOWN_ROWS]],
    }
    lines = [
        f"{file}: {table.form}, {known.form}; {known.rows} rows, {len(known.examples)} examples",
        f"request: {', '.join(known.inputs)}; answer: {known.output or 'the last turn'}; "
        f"left out: {', '.join(known.left_out) or 'nothing'}",
    ]
    for number, example in enumerate(known.examples[:SHOWN_ROWS], start=1):
        request, answers = example.input, " | ".join(example.outputs)
        lines += [
            f"{number}. {shorten(request, SHOWN_CHARACTERS)}",
            f"   -> {shorten(answers, SHOWN_CHARACTERS)}",
        ]
    return Output(record, "\n".join(lines))
