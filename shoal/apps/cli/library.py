"""`shoal learn` and `shoal library`: skills that are learnt one after another, each as a transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, Field

from shoal.apps.cli.generate import OPEN
from shoal.apps.cli.model import HYPERNETWORK_HELP, Place, load, shape_of, usable_place
from shoal.apps.cli.settings import Output, check_extra
from shoal.apps.cli.tasks import ExampleColumns
from shoal.errors import UsageError

if TYPE_CHECKING:
    from shoal.library.gate import Verdict
    from shoal.library.library import Library
    from shoal.library.steps import Learnt
    from shoal.tasks.loading import Example

BOUND_HELP = "points of ROUGE-L that an older skill may lose"


class InLibrary(BaseModel):
    """The library of a command."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    library: Path = Field(description="directory of the library")


class Learning(ExampleColumns, InLibrary):
    """Examples and sentence of a skill, and what others may lose by it."""

    examples: Path = Field(description="8 or more solved examples: JSON Lines or array, CSV, TSV, Parquet")
    describe: str = Field(description="the sentence that the skill starts from, in English")
    labels: tuple[str, ...] | None = Field(
        None,
        description="all answers that there are, separated by commas; by default read from the sentence or "
        "the examples; none lets it answer freely",
    )
    keep: int = Field(64, description="exemplars that are held out and kept, 0 to 64; 0 leaves it unguarded")
    bound: float = Field(2.0, description=BOUND_HELP)
    allow_loss: tuple[str, ...] = Field((), description="skills that may lose more")
    hypernetwork: Path | None = Field(None, description=HYPERNETWORK_HELP)


class Checking(InLibrary):
    """The check of a library."""

    bound: float = Field(2.0, description=BOUND_HELP)


class Consolidating(InLibrary):
    """The adapter that a library becomes."""

    rank: int = Field(16, ge=1, description="of the adapter at most")
    least: float = Field(
        0.5, description="share of its gain that every skill must keep, 0 to 1; 0 sets no limit"
    )
    replay: int = Field(0, ge=0, description="steps of training on half of the exemplars after the merge")
    out: Path = Field(description="directory to write")


def learn(
    name: Annotated[str, typer.Argument(help="name of the skill")], place: Place, learning: Learning
) -> Output:
    """Learn a skill into a library, and commit it if no older skill loses by it.

    The library is made at its first skill. A name that is taken gets a new version.
    """
    check_extra("learning", "train", "accelerate", "tensorboard", "tqdm")
    check_extra("learning", "evaluate", "rouge_score")
    from shoal.adapters.files import check_name
    from shoal.library.lessons import prepare

    check_name(name)  # before the file is read
    examples = _examples(learning)
    labels = () if learning.labels == OPEN else learning.labels
    prepare(name, learning.describe, examples, learning.keep, labels)
    library = _opened_or_made(place, learning)
    found = library.learn(
        name,
        examples,
        learning.describe,
        labels=labels,
        keep=learning.keep,
        bound=learning.bound,
        allow_loss=learning.allow_loss,
    )
    return _learnt(found, learning.library)


def list_skills(place: InLibrary) -> Output:
    """List the skills of a library with their scores."""
    from shoal.library.report import skill_rows

    library = opened(place.library)
    rows = skill_rows(library)
    lines = [f"version {library.version.number}, {len(rows)} skills, for {library.base_model}"]
    lines += [f"{'skill':20}{'named':>8}{'by input':>10}  description" for _ in rows[:1]]
    lines += [
        f"{row['skill']:20}{_shown(row['named']):>8}{_shown(row['by_input']):>10}  {row['description']}"
        for row in rows
    ]
    record = {"version": library.version.number, "base_model": library.base_model, "skills": rows}
    return Output(record, "\n".join(lines))


def show(place: InLibrary) -> Output:
    """Show the versions of a library, and scores over time."""
    from shoal.library.report import library_record, step_rows

    library = opened(place.library)
    steps = step_rows(library)
    lines = []
    for step in steps:
        of = step["skill"] or (f"to version {step['to']}" if step["to"] else "")
        lines.append(f"{step['version']:4} {step['kind']:9}{of:20}{step['seconds']:8.1f} s")
    lines += ["", library.history().table()]
    lines += [f"{pair}: name one of them with requests" for pair in library.version.confused]
    return Output(library_record(library), "\n".join(lines))


def check(place: Place, checking: Checking) -> Output:
    """Ask the exemplars of every skill again, end to end."""
    check_extra("checking", "evaluate", "rouge_score")
    library = opened(checking.library, place)
    verdicts = library.check(bound=checking.bound)
    lost = [v.skill for v in verdicts if v.loses]
    lines = [f"{'LOST ' if v.loses else 'kept '} {v}" for v in verdicts]
    record = {"skills": [_verdict(v) for v in verdicts], "lost": lost}
    return Output(record, "\n".join(lines) or "no skill has exemplars")


def rollback(
    version: Annotated[int, typer.Argument(help="number of the version to restore")], place: InLibrary
) -> Output:
    """Restore an older version of a library, as a new one."""
    found = opened(place.library).rollback(version)
    skills = ", ".join(found.skills) or "no skills"
    record = {"version": found.number, "restored": version, "skills": sorted(found.skills)}
    return Output(record, f"version {found.number} is equal to version {version}: {skills}")


def forget(
    name: Annotated[str, typer.Argument(help="name of the skill")], place: Place, library: InLibrary
) -> Output:
    """Remove a skill and every file of it, for good."""
    found = opened(library.library, place).forget(name)
    skills = ", ".join(found.skills) or "no skills"
    record = {"version": found.number, "forgotten": name, "skills": sorted(found.skills)}
    return Output(record, f"{name} is forgotten; version {found.number} has {skills}")


def consolidate(place: Place, settings: Consolidating) -> Output:
    """Make one adapter of all skills of a library, and say what each of them keeps."""
    from shoal.adapters.files import ADAPTER_FILES
    from shoal.files import check_place
    from shoal.library.consolidation import REPORT_FILE, save_consolidated
    from shoal.models.shapes import load_shape

    check_extra("consolidating", "evaluate", "rouge_score")
    check_place(settings.out, (*ADAPTER_FILES, REPORT_FILE))
    library = opened(settings.library, place)
    found = library.consolidate(settings.rank, least=settings.least, replay=settings.replay)
    save_consolidated(settings.out, found, load_shape(library.base_model))
    lines = [*map(str, found.retentions), f"rank {found.lora.rank}, written to {settings.out}"]
    return Output({**found.report, "out": str(settings.out)}, "\n".join(lines))


def opened(folder: Path, place: Place | None = None) -> Library:
    """The library of a directory, with the base model of the flags where they name a place for it."""
    from shoal.library.library import Library

    library = Library.open(folder)
    if place is None or not place.model_fields_set:
        return library
    return Library.open(folder, load(place, _base_of(folder, place)))


def _base_of(folder: Path, place: Place) -> str:
    """The base model of a library, as the flags name it; it is seen to before it is loaded."""
    from shoal.library.store import Store

    own = Store(folder).facts.base_model
    if place.base is not None and shape_of(place).base_model != own:
        raise UsageError(f"--base {place.base}: {folder} is for {own}; leave it out, or make another")
    usable_place(place)
    return place.base or own


def _opened_or_made(place: Place, learning: Learning) -> Library:
    from shoal.library.library import Library
    from shoal.library.store import LIBRARY_FILE
    from shoal.text_to_lora.generator import TextToLoRA

    made = (learning.library / LIBRARY_FILE).is_file()
    backbone = load(place, _base_of(learning.library, place) if made else None)
    generator = TextToLoRA(backbone=backbone, hypernetwork=learning.hypernetwork)
    make = Library.open if made else Library.create
    return make(learning.library, backbone, generator=generator)


def _examples(learning: Learning) -> Sequence[Example]:
    from shoal.tasks.files import load_jsonl

    own = learning.columns
    return load_jsonl(
        learning.examples,
        definition=learning.describe,
        test_size=0,
        input_field=own.input,
        output_field=own.output,
        ignored=own.ignored,
    ).train


def _learnt(found: Learnt, folder: Path) -> Output:
    facts = found.facts
    record: dict[str, Any] = {
        "library": str(folder),
        "version": found.version,
        "skill": facts.name,
        "replaced": found.replaced,
        "way": facts.way,
        "start": facts.start,
        "examples": facts.examples,
        "exemplars": len(facts.own_scores),
        "labels": facts.label_set.labels if facts.label_set else None,
        "scores": {of: facts.points(of) for of in facts.scores},
        "kept": facts.kept,
        "losses": facts.losses,
        "routed": found.routed,
        "older": [_verdict(v) for v in found.verdicts],
        "confused": [pair.model_dump(mode="json") for pair in found.confused],
        "gate_seconds": found.gate_seconds,
        "seconds": found.seconds,
    }
    scores = ", ".join(f"{of} {_shown(points)}" for of, points in record["scores"].items())
    routed = "unknown" if found.routed is None else f"{found.routed:.0%}"
    again = "a new version of it, " if found.replaced else ""
    lines = [
        f"{facts.name}: {again}{facts.way} on {facts.examples} examples, version {found.version}",
        f"{len(facts.own_scores)} exemplars: {scores}; the router gives it {routed} of them",
        facts.why,
        *(f"older: {verdict}" for verdict in found.verdicts),
        *(f"{pair}: name one of them with requests" for pair in found.confused),
    ]
    return Output(record, "\n".join(lines))


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {**asdict(verdict), "loses": verdict.loses}


def _shown(points: float | None) -> str:
    return "-" if points is None else f"{points:.1f}"
