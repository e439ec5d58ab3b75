"""The page of measured streams, from the cells that are there."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from _library_growth_page import consolidation, gate, growth, rehearsal
from _library_stream import ROWS
from _machine import table
from _merging_bench import Cell

from shoal.library.history import Measures, measures
from shoal.tasks.metrics import Interval, bootstrap_interval

Cells = Mapping[str, Cell]
HEADER = [
    "ROUGE-L",
    "ACC",
    "BWT",
    "FWT",
    "forgetting",
    "learned",
    "general questions, %",
    "seconds",
    "kB a task",
]


def page(cells: Cells) -> str:
    """All of it, as Markdown."""
    facts = cells["facts"]
    parts = [
        "# Skills learnt one after another\n\n```console\n$ python benchmarks/library.py\n```",
        f"{facts['machine']}. Rows that are missing were not measured; the command goes on with them. "
        "Intervals are 95% bootstraps.",
        *growth(cells),
        *gate(cells),
        *consolidation(cells),
        *rehearsal(cells),
    ]
    if "start" not in cells:
        return "\n\n".join(parts) + "\n"
    parts += [
        "## One growing adapter",
        f"Six training tasks of different form, {facts['train']} examples, {facts['steps']} steps of "
        f"{facts['batch']} each, from the multi-task LoRA that ships. Scored are {facts['examples']} "
        "examples of every `test` list; intervals are over tasks. A library keeps each task's own "
        "adapter, so with the right route nothing is forgotten.",
    ]
    for key in sorted(key for key in cells if key.startswith("order/")):
        parts += _order(cells, int(key.split("/")[1]))
    return "\n\n".join(parts) + "\n"


def _order(cells: Cells, order: int) -> list[str]:
    tasks = list(cells[f"order/{order}"]["tasks"])
    base = [_means(cells["base"])[task] for task in tasks]
    rows = [
        [
            title,
            _interval(bootstrap_interval(_of(cells[key], tasks))),
            *[""] * 4,
            _general(cells, key),
            "",
            "",
        ]
        for title, key in (("base", "base"), ("base with description", "base, described"), ("S", "start"))
        if key in cells
    ]
    own = [cells.get(f"own/{task}") for task in tasks]
    if all(own):
        scores = [_means(cell)[task] for cell, task in zip(own, tasks, strict=True) if cell]
        before = _means(cells["start"])
        matrix = [[scores[j] if j <= i else None for j in range(len(tasks))] for i in range(len(tasks))]
        found = measures(matrix, base, [before[task] for task in tasks])
        routes = [statistics.mean(_means(cell)[task] for cell in own if cell) for task in tasks]
        rows.append(["library, right route", *_shown(found), "", "", ""])
        rows.append(["library, random route", _interval(bootstrap_interval(routes)), *[""] * 7])
    matrices = []
    for row in ROWS:
        stages = [cells.get(f"{row}/{order}/{number + 1}") for number in range(len(tasks))]
        learnt = [cell for n in range(len(tasks)) if (cell := cells.get(f"{row}/{order}/learnt {n + 1}"))]
        cost = [f"{sum(c['training_seconds'] for c in learnt):.0f}"] if learnt else [""]
        cost += [f"{learnt[-1]['bytes'] / 1000 / len(tasks):.0f}"] if learnt else [""]
        general = _general(cells, f"{row}/{order}")
        if row == "joint" and stages[0]:
            rows.append(
                [row, _interval(bootstrap_interval(_of(stages[0], tasks))), *[""] * 4, general, *cost]
            )
        elif all(stages):
            matrix = [_of(cell, tasks) for cell in stages if cell]
            before = [_means(cells["start"])[tasks[0]], *(matrix[j - 1][j] for j in range(1, len(tasks)))]
            rows.append([row, *_shown(measures(matrix, base, before)), general, *cost])
            matrices.append((row, matrix))
    blocks = [f"### Order {order}: {', '.join(tasks)}", table(HEADER, rows)]
    for row, matrix in matrices:
        cells_of = [[f"after {t}", *(f"{v:.0f}" for v in own)] for t, own in zip(tasks, matrix, strict=True)]
        blocks += [f"R of {row}:", table(["", *tasks], cells_of)]
    return blocks


def _shown(found: Measures) -> list[str]:
    return [
        "" if value is None else _interval(value)
        for value in (found.acc, found.bwt, found.fwt, found.forgetting, found.learned)
    ]


def _general(cells: Cells, prefix: str) -> str:
    cell = cells.get(f"{prefix}/general")
    return f"{100 * cell['accuracy']:.0f}" if cell else ""


def _means(cell: Cell) -> dict[str, float]:
    return {task: 100 * statistics.mean(of["rouge_l"]) for task, of in cell["scores"].items()}


def _of(cell: Cell, tasks: Sequence[str]) -> list[float]:
    return [_means(cell)[task] for task in tasks]


def _interval(found: Interval) -> str:
    if found.low is None or found.high is None:
        return f"{found.mean:.1f}"
    return f"{found.mean:.1f} ({found.low:.1f} to {found.high:.1f})"
