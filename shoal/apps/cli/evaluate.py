"""`shoal evaluate`: the base model, adapters and Text-to-LoRA side by side on the same test examples."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from shoal.apps.cli.model import (
    HYPERNETWORK_HELP,
    Place,
    check_directories,
    load,
    shape_of,
    usable_place,
    warn_of_another_base,
)
from shoal.apps.cli.settings import Output, check_extra
from shoal.apps.cli.tasks import DEFINITION_HELP, TASKS_HELP, ExampleColumns, read_tasks
from shoal.config import DEFAULT_MODEL, MIN_EXAMPLES
from shoal.errors import UsageError

if TYPE_CHECKING:
    from shoal.adapters.lora import LoRA
    from shoal.evaluation.evaluate import Method, Report
    from shoal.models.backbone import Backbone
    from shoal.tasks.loading import Task
    from shoal.text_to_lora.emission import Emitter
    from shoal.text_to_lora.generator import TextToLoRA

log = logging.getLogger(__name__)

REPORT_FILE = "report.json"
TABLE_FILE = "report.md"


class Scoring(ExampleColumns):
    """Rows of the report, and the examples that they are scored on."""

    tasks: str = Field(
        description=TASKS_HELP + "; with splits.json its validation tasks are used, or those of --task"
    )
    definition: str | None = Field(None, description=DEFINITION_HELP)
    task: tuple[str, ...] = Field((), description="take only the tasks of these names")
    adapter: Mapping[str, Path] = Field(
        default_factory=dict,
        description="row for an adapter directory, or for a folder with an adapter directory per task",
    )
    hypernetwork: Path | None = Field(None, description=HYPERNETWORK_HELP)
    examples: int = Field(60, ge=1, description="test examples per task, at most")
    shots: int = Field(
        3, ge=0, description="solved examples in the prompt of the few-shot row; 0 leaves it out"
    )
    shots_curve: tuple[int, ...] = Field(
        (),
        description="numbers of solved examples, such as 0,4,8,16,32: instead of the report, every way to "
        "use so many of them, which takes long and resumes from OUT.run",
    )
    draws: int = Field(1, ge=1, description="with --shots-curve: draws of examples for each task")
    labels: bool = Field(
        False,
        description="a second row for every method, in which tasks whose first description names all answers "
        "are answered by calibrated likelihood of these labels",
    )
    max_new_tokens: int = Field(48, ge=1, description="limit of an answer, in tokens")
    batch_size: int = Field(32, ge=1, description="requests that run together")
    seed: int = Field(0, ge=0, description="of the few-shot examples and of the gibberish description")
    out: Path | None = Field(None, description=f"directory to write {REPORT_FILE} and {TABLE_FILE} to")

    @property
    def cells(self) -> Path:
        """Folder of the cells of a curve, beside the report, which is replaced as a whole."""
        if self.out is None:
            raise UsageError("--shots-curve takes long and is kept cell by cell; add --out DIR to resume it")
        return self.out.with_name(self.out.name + ".run")


def evaluate(place: Place, scoring: Scoring) -> Output:
    """Score the model, adapters and Text-to-LoRA.

    Every row has ROUGE-L, exact match and NLL per token, with 95% intervals over tasks.
    """
    if scoring.shots_curve:
        _check_curve(scoring)
        log.info("the curve is kept in %s", scoring.cells)
    if scoring.out is not None:
        from shoal.files import check_place

        check_place(scoring.out, (REPORT_FILE, TABLE_FILE))
    check_directories(hypernetwork=scoring.hypernetwork)
    split = read_tasks(scoring.tasks, scoring.definition, scoring.task, columns=scoring.columns)
    named = (*split.train, *split.validation, *split.validation_2) if scoring.task else ()
    tasks = named or split.validation or split.train
    check_extra("evaluation", "evaluate", "rouge_score")
    shape_of(place)
    base = place.base or DEFAULT_MODEL
    adapters = [_adapter_row(name, directory, base, tasks) for name, directory in scoring.adapter.items()]
    from rich.console import Console
    from rich.progress import Progress

    from shoal.evaluation.baselines import far_tasks
    from shoal.evaluation.evaluate import evaluate as compare
    from shoal.evaluation.label_sets import described_label_sets
    from shoal.text_to_lora.encoders.sentence import TaskEncoder
    from shoal.text_to_lora.label_similarity import LabelSimilarity

    label_sets = described_label_sets(tasks) if scoring.labels else None
    if label_sets is not None and not label_sets:
        log.warning("no task's first description names all answers: --labels adds no rows")
    generator = _generator(place, scoring)
    backbone = generator.backbone if generator else load(place)
    if scoring.shots_curve:
        return _curve(backbone, generator, tasks, scoring)
    descriptions = _description_rows(generator.emitter, scoring, tasks) if generator else []
    methods = [*_base_rows(scoring), *adapters, *descriptions]
    far = far_tasks(generator.emitter, tasks) if generator else []
    notes: dict[str, Any] = {
        "seed": scoring.seed,
        "max_new_tokens": scoring.max_new_tokens,
        "far_from_training": far,
    }
    if label_sets:
        notes["label_sets"] = {name: list(labels) for name, labels in label_sets.items()}
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        row = bar.add_task("methods", total=len(methods))
        report = compare(
            backbone,
            tasks,
            methods,
            label_sets=label_sets,
            similarity=LabelSimilarity(TaskEncoder) if label_sets else None,
            examples=scoring.examples,
            max_new_tokens=scoring.max_new_tokens,
            batch_size=scoring.batch_size,
            notes=notes,
            on_method=lambda result: bar.advance(row),
        )
    return _output(report, scoring, far)


def _check_curve(scoring: Scoring) -> None:
    """Raise UsageError for what a curve has no rows for."""
    for name in ("adapter", "labels", "shots"):
        if name in scoring.model_fields_set:
            raise UsageError(f"--{name} has no rows in a curve; leave it out, or --shots-curve")


def _curve(
    backbone: Backbone, generator: TextToLoRA | None, tasks: Sequence[Task], scoring: Scoring
) -> Output:
    """Every way to use a number of solved examples, at every number."""
    from shoal.evaluation.shots import measure_shots
    from shoal.evaluation.shots_methods import IN_PROMPT, REFINED, curve_methods, in_prompt

    if generator is None:
        rows = {IN_PROMPT: in_prompt(IN_PROMPT, backbone)}
    else:
        rows = curve_methods(backbone, generator.emitter, tasks)
    report = measure_shots(
        backbone,
        tasks,
        list(rows.values()),
        scoring.shots_curve,
        scoring.cells,
        draws=scoring.draws,
        examples=scoring.examples,
        max_new_tokens=scoring.max_new_tokens,
        seed=scoring.seed,
        notes={"seed": scoring.seed, "max_new_tokens": scoring.max_new_tokens},
        on_cell=lambda about: log.info("%s", about),
    )
    table = report.to_markdown(REFINED if REFINED in rows else None)
    return _written(report.to_json(), table, report.base_model, scoring.out)


def _base_rows(scoring: Scoring) -> list[Method]:
    from shoal.evaluation.evaluate import Method, described, echo, with_shots

    rows = [echo(), Method("base"), Method("base + description", request=described)]
    if scoring.shots:
        rows.append(
            Method(f"base + {scoring.shots} examples", request=with_shots(scoring.shots, scoring.seed))
        )
    return rows


def _adapter_row(name: str, directory: Path, base: str, tasks: Sequence[Task]) -> Method:
    """The row of one adapter for all tasks or of one each, read before anything is scored."""
    from shoal.adapters.files import CONFIG_FILE
    from shoal.evaluation.evaluate import Method

    if directory.is_dir() and not (directory / CONFIG_FILE).is_file():
        loras = {task.name: _fitting_lora(directory / task.name, base) for task in tasks}
        return Method(name, adapter=lambda task: loras[task.name])
    lora = _fitting_lora(directory, base)
    return Method(name, adapter=lambda task: lora)


def _fitting_lora(directory: Path, base: str) -> LoRA:
    from shoal.adapters.files import load_adapter
    from shoal.adapters.matching import check_targets
    from shoal.models.backbone import load_shape

    stored = load_adapter(directory)
    warn_of_another_base(stored.base_model, base, directory)
    check_targets(load_shape(base), stored.lora)
    return stored.lora


def _generator(place: Place, scoring: Scoring) -> TextToLoRA | None:
    """The generator of the Text-to-LoRA rows; None where no hypernetwork is trained for the base model."""
    from shoal.text_to_lora.generator import TextToLoRA

    try:
        chosen = usable_place(place)
        generator = TextToLoRA(
            place.base, device=chosen.device, dtype=chosen.dtype, hypernetwork=scoring.hypernetwork
        )
    except UsageError:
        if scoring.hypernetwork is not None:
            raise
        generator = None  # not even the default sizes fit this base model
    if generator is None or not generator.trained:
        base = place.base or DEFAULT_MODEL
        log.warning("no hypernetwork is trained for %s: the report has no Text-to-LoRA rows", base)
        return None
    return generator


def _description_rows(emitter: Emitter, scoring: Scoring, tasks: Sequence[Task]) -> list[Method]:
    """Text-to-LoRA with its controls."""
    from shoal.evaluation.baselines import (
        gibberish_description,
        no_description,
        other_description,
        right_description,
    )

    rows = [right_description(emitter)]
    if len(tasks) > 1:
        rows.append(other_description(emitter, tasks))
    return [*rows, gibberish_description(emitter, scoring.seed), no_description(emitter)]


def _output(report: Report, scoring: Scoring, far: Sequence[str]) -> Output:
    from shoal.evaluation.baselines import OTHER, RIGHT
    from shoal.evaluation.reports import cell

    record = report.to_json()
    table = report.to_markdown()
    if {RIGHT, OTHER} <= {result.name for result in report.results}:
        margin = report.difference(OTHER, RIGHT, "nll")
        record["steering_margin"] = asdict(margin)
        table += (
            f"\n\nSteering margin, NLL with another task's description minus its own: {cell(margin, 'nll')}"
        )
    if far:
        table += (
            f"\n\nFar from every training task, so a description alone may help little: {', '.join(far)}. "
            f"Give {MIN_EXAMPLES} or more solved examples of them: shoal generate --examples FILE"
        )
    return _written(record, table, report.base_model, scoring.out)


def _written(record: dict[str, Any], table: str, base_model: str, out: Path | None) -> Output:
    """The output of an evaluation, which is also written to a directory if one is given."""
    if out is None:
        return Output(record, table)
    from shoal.files import write_directory

    def write(folder: Path) -> None:
        (folder / REPORT_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (folder / TABLE_FILE).write_text(f"# {base_model}\n\n{table}\n", encoding="utf-8")

    write_directory(out, write)
    return Output(record, f"{table}\n\nwritten to {out}")
