"""A whole benchmark: every method in a process of its own, resumable cell by cell, then one report.

Knows the order of things; how a method is measured is `shoal.evaluation.benchmark.measuring`, what it is
worth `shoal.evaluation.benchmark.summary`, and what a report looks like `shoal.evaluation.benchmark.page`.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shoal.errors import ShoalError, UsageError, reason
from shoal.evaluation.benchmark.cells import CELLS, IDENTITY_FILE, Cell, CellFolder
from shoal.evaluation.benchmark.config import BenchmarkConfig
from shoal.evaluation.benchmark.methods import method
from shoal.evaluation.benchmark.page import render_html, render_markdown
from shoal.evaluation.benchmark.plots import draw
from shoal.evaluation.benchmark.summary import BenchmarkReport, summarise_method
from shoal.evaluation.benchmark.tasks import benchmark_tasks
from shoal.evaluation.environment import environment
from shoal.evaluation.scaling import GUIDE_SHAPES, ShapeCost, measure_shapes
from shoal.file_formats import read_json
from shoal.files import check_place, write_directory, write_file
from shoal.tasks.metrics import bleu, chrf

log = logging.getLogger(__name__)

SHAPES_FILE = "shapes.json"
# What is changed by `quick`, where nothing else was asked for.
QUICK: dict[str, Any] = {
    "num_tasks": 4,
    "examples": 8,
    "lora_steps": 12,
    "max_new_tokens": 24,
    "single_requests": 2,
    "base_questions": 8,
}


def run_benchmark(
    config: BenchmarkConfig,
    folder: Path,
    *,
    command: str = "",
    on_method: Callable[[str], None] = lambda title: None,
) -> BenchmarkReport:
    """Measure whatever is not measured yet, and write the report to `folder/report`.

    Args:
        config: what is compared.
        folder: of the run; finished cells in it are not measured again.
        command: that a reader can repeat, for the record.
        on_method: called with the title of each method that is begun.

    Raises:
        UsageError: an unknown method, base model or task directory, or the folder of another run.
        ShoalError: the folder cannot be written, or nothing at all could be measured. Interrupting a run
            keeps its finished cells.
    """
    for name in config.methods:
        method(name)
    if len(set(config.methods)) != len(config.methods):
        raise UsageError(f"methods {', '.join(config.methods)}: each is compared once; name it once")
    _check_packages()
    tasks = benchmark_tasks(config)
    cells = CellFolder(folder)
    leftovers = [path.name for path in folder.glob(".*.tmp")]  # of a killed writer
    check_place(folder, (IDENTITY_FILE, CELLS, SHAPES_FILE, "report", *leftovers))
    cells.claim(config)
    started, broken = time.perf_counter(), {}
    for name in config.methods:
        on_method(method(name).title)
        if not all(cells.is_finished(name, task.name) for task in tasks):
            failure = _measured_apart(folder, name, config)
            broken.update({name: failure} if failure else {})
    shapes = _shapes(folder) if config.shapes else []
    found = {
        name: [
            cells.read(name, task.name) or Cell(name, task.name, failure=broken.get(name, "was not measured"))
            for task in tasks
        ]
        for name in config.methods
    }
    if all(cell.failure is not None for row in found.values() for cell in row):
        first = next(iter(found.values()))[0]
        raise ShoalError(f"nothing could be measured; {first.method} on {first.task}: {first.failure}")
    base = {cell.task: cell for cell in found.get("base", [])}
    report = BenchmarkReport(
        base_model=config.base,
        tasks=tuple(task.name for task in tasks),
        methods=tuple(summarise_method(name, row, base) for name, row in found.items()),
        shapes=tuple(shapes),
        environment=environment(),
        settings=config.model_dump(mode="json"),
        command=command,
        signatures={"BLEU": bleu(["a"], [["a"]]).signature, "chrF": chrf(["a"], [["a"]]).signature},
        sitting_seconds=time.perf_counter() - started,
    )
    write_report(report, folder / "report")
    return report


def write_report(report: BenchmarkReport, folder: Path) -> None:
    """Write JSON, Markdown, the HTML page and its plots as PNG, all or none.

    Raises:
        ShoalError: the folder cannot be written.
    """
    plots = draw(report)

    def write(place: Path) -> None:
        (place / "report.json").write_text(
            json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n", "utf-8"
        )
        (place / "report.md").write_text(render_markdown(report), "utf-8")
        (place / "report.html").write_text(render_html(report, plots), "utf-8")
        for plot in plots:
            (place / f"{plot.name}.png").write_bytes(plot.png)

    write_directory(folder, write)


def _measured_apart(folder: Path, name: str, config: BenchmarkConfig) -> str | None:
    """Measure a method in a process of its own, which ends with this one; why that failed, if it did."""
    command = [
        sys.executable,
        "-m",
        "shoal.evaluation.benchmark.measuring",
        str(folder),
        name,
        config.model_dump_json(),
    ]
    lines: list[str] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line.strip())
            log.info("%s", line.rstrip())
    if process.returncode == 0:
        return None
    said = next((line for line in reversed(lines) if line), "")
    failure = reason(ShoalError(said.removeprefix("error: ") or f"ended with code {process.returncode}"))
    log.warning("%s could not be measured: %s", method(name).title, failure)
    return failure


def _shapes(folder: Path) -> list[ShapeCost]:
    """Costs of larger shapes, measured once."""
    path = folder / SHAPES_FILE
    if path.is_file():
        return [ShapeCost(**record) for record in read_json(path)["shapes"]]
    try:
        costs = measure_shapes(list(GUIDE_SHAPES.values()))
    except ShoalError as error:
        log.warning("the shapes of larger models could not be measured: %s", error)
        return []
    write_file(path, json.dumps({"shapes": [asdict(cost) for cost in costs]}, indent=1) + "\n")
    return costs


def _check_packages() -> None:
    """Find out before hours of work that a report could not be drawn or scored."""
    from importlib.util import find_spec

    for package, extra in (
        ("matplotlib", "reports"),
        ("sacrebleu", "evaluate"),
        ("rouge_score", "evaluate"),
        ("accelerate", "train"),
    ):
        if find_spec(package) is None:
            raise ShoalError(
                f"a benchmark needs {package}, which is not installed; pip install 'shoal[{extra}]'"
            )
