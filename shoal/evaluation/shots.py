"""The curve over numbers of solved examples: every method at every number, paired over tasks and draws.

A draw orders the `train` list of every task; its first examples are the shots, so that more shots contain
fewer. Each cell (method, task, number, draw) is a file of its own, whole or absent: a run that was stopped
goes on. Knows methods as functions of shots; nothing of how adapters come about.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shoal.adapters.base import Adapter
from shoal.errors import ShoalError, UsageError
from shoal.evaluation.evaluate import score
from shoal.evaluation.reports import METRICS
from shoal.evaluation.shots_report import Cell, ShotsReport
from shoal.file_formats import read_json
from shoal.files import write_file
from shoal.models.backbone import Backbone
from shoal.tasks.loading import Example, Task


@dataclass(frozen=True)
class Shots:
    """Solved examples of a task in one draw.

    Attributes:
        task: whose `train` list they are from.
        examples: the first so many of the draw.
        draw: its number, from 0.
    """

    task: Task
    examples: tuple[Example, ...]
    draw: int


@dataclass(frozen=True, eq=False)
class Prepared:
    """Whatever answers after some shots.

    Attributes:
        adapter: that is attached; None for the bare model.
        seconds: from description and shots to the adapter.
        tokens: that training read on the way.
    """

    adapter: Adapter | None = None
    seconds: float = 0.0
    tokens: int = 0


@dataclass(frozen=True)
class ShotsMethod:
    """One row of the curve.

    Attributes:
        name: of the row.
        prepare: shots -> the adapter.
        request: shots and example -> what the model is asked; by default the input alone.
        uses_shots: False where all numbers of shots give the same, which is then measured once.
        depends_on: whatever else decides its cells, such as hashes of networks.
    """

    name: str
    prepare: Callable[[Shots], Prepared] = lambda shots: Prepared()
    request: Callable[[Shots, Example], str] = lambda shots, example: example.input
    uses_shots: bool = True
    depends_on: str = ""


def measure_shots(
    backbone: Backbone,
    tasks: Sequence[Task],
    methods: Sequence[ShotsMethod],
    counts: Sequence[int],
    folder: Path,
    *,
    draws: int = 1,
    examples: int = 20,
    max_new_tokens: int = 40,
    seed: int = 0,
    notes: dict[str, Any] | None = None,
    on_cell: Callable[[str], None] = lambda about: None,
) -> ShotsReport:
    """Score every method with every number of shots, cell by cell.

    Args:
        backbone: the frozen model.
        tasks: whose `train` lists give shots and whose `test` lists are asked.
        methods: rows of the report.
        counts: numbers of shots, 0 for none.
        folder: of the cells; those that are there already are not measured again.
        draws: of shots for each task.
        examples: test examples per task, at most.
        max_new_tokens: limit of an answer.
        seed: of the draws.
        notes: recorded in the report.
        on_cell: called with a line about every cell, once it is there.

    Raises:
        UsageError: no tasks, methods or numbers, one of them twice, or a task with too few examples.
        ShoalError: a cell's file is damaged or cannot be written.
    """
    counts = _checked(tasks, methods, counts, draws, examples)
    found: dict[str, dict[int, dict[str, list[Cell]]]] = {
        m.name: {n: {task.name: [] for task in tasks} for n in counts} for m in methods
    }
    limits = (backbone.shape.base_model, str(backbone.dtype), max_new_tokens)
    for draw in range(draws):
        for task in tasks:
            order = random.Random(f"{seed}/{draw}/{task.name}").sample(task.train, max(counts))
            for count in counts:
                for method in methods:
                    alike = not method.uses_shots or count == 0
                    shots = Shots(task, () if alike else tuple(order[:count]), 0 if alike else draw)
                    path = (
                        folder
                        / f"{_slug(method.name)}-{task.name}-{_digest(method, shots, examples, limits)}.json"
                    )
                    known = path.is_file()
                    own = (
                        _read(path) if known else _measure(backbone, method, shots, examples, max_new_tokens)
                    )
                    if not known:
                        folder.mkdir(parents=True, exist_ok=True)
                        write_file(path, json.dumps(asdict(own)))
                    found[method.name][count][task.name].append(own)
                    rouge = own.scores["rouge_l"] * 100
                    on_cell(f"{method.name}, {task.name}, {count} shots, draw {draw}: ROUGE-L {rouge:.1f}")
    names = tuple(task.name for task in tasks)
    return ShotsReport(backbone.shape.base_model, names, counts, draws, examples, found, notes or {})


def _measure(
    backbone: Backbone, method: ShotsMethod, shots: Shots, examples: int, max_new_tokens: int
) -> Cell:
    prepared = method.prepare(shots)
    asked = shots.task.test[:examples]
    requests = [method.request(shots, e) for e in asked]
    answers = score(backbone, asked, requests, prepared.adapter, max_new_tokens=max_new_tokens)
    scores = {metric: statistics.mean(getattr(a, metric) for a in answers) for metric in METRICS}
    tokens = statistics.mean(map(len, backbone.encode_prompts(requests)))
    return Cell(scores, prepared.seconds, prepared.tokens, tokens)


def _read(path: Path) -> Cell:
    try:
        return Cell(**read_json(path))
    except TypeError:
        raise ShoalError(f"{path} is no cell of a curve; remove it, it is measured again") from None


def _checked(
    tasks: Sequence[Task], methods: Sequence[ShotsMethod], counts: Sequence[int], draws: int, examples: int
) -> tuple[int, ...]:
    """The numbers of shots in order, after a look at all that is measured."""
    named = {
        "tasks": [t.name for t in tasks],
        "methods": [m.name for m in methods],
        "shots": list(map(str, counts)),
    }
    for kind, names in named.items():
        if not names or len(set(names)) < len(names):
            raise UsageError(f"the curve needs at least one of {kind}, each once, got {names}; correct them")
    if min(counts) < 0 or draws < 1 or examples < 1:
        raise UsageError(
            f"shots {min(counts)} must be at least 0, draws {draws} and examples {examples} at least 1; "
            "raise them"
        )
    for task in tasks:
        if len(task.train) < max(counts) or not task.test:
            raise UsageError(
                f"task {task.name} has {len(task.train)} training and {len(task.test)} test examples; "
                f"{max(counts)} shots and 1 test example are needed, leave it out or take fewer shots"
            )
    return tuple(sorted(counts))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _digest(method: ShotsMethod, shots: Shots, examples: int, limits: tuple[object, ...]) -> str:
    """12 hexadecimal digits of all that decides a cell."""
    asked = [(e.input, e.outputs) for e in shots.task.test[:examples]]
    given = [(e.input, e.outputs) for e in shots.examples]
    described = shots.task.descriptions[0]
    whole = (method.name, method.depends_on, described, given, shots.draw, asked, limits)
    return hashlib.sha256(repr(whole).encode()).hexdigest()[:12]
