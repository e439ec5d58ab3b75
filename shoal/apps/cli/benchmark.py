"""`shoal benchmark`: ways to adapt a model, side by side, graded, as one report."""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from shoal.apps.cli.settings import Output
from shoal.errors import ShoalError
from shoal.evaluation.benchmark.config import BenchmarkConfig

log = logging.getLogger(__name__)


class Reporting(BaseModel):
    """Directory of the run, and the grade that is asked of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Path = Field(Path("runs/benchmark"), description="directory of the run; its report is in report/")
    quick: bool = Field(
        False, description="few tasks and steps: two minutes instead of fifteen, wide intervals"
    )
    least: str | None = Field(
        None, description="grade that every method must reach, or the exit code is 1: A+, A, B+, B, C, D or F"
    )


def benchmark(comparison: BenchmarkConfig, reporting: Reporting) -> Output:
    """Compare classic LoRA, Text-to-LoRA and Transformer².

    All on the same tasks and base model, with grades; a run that was stopped goes on when the command is
    given again. Writes JSON, Markdown, a page with plots, and PNG files.
    """
    from shoal.evaluation.benchmark.page import summary_table
    from shoal.evaluation.benchmark.run import QUICK, run_benchmark
    from shoal.evaluation.grading import lowest_score

    bound = None if reporting.least is None else lowest_score(reporting.least)
    config = comparison
    if reporting.quick:
        unset = {n: value for n, value in QUICK.items() if n not in comparison.model_fields_set}
        config = comparison.model_copy(update=unset)
    command = shlex.join(["shoal", *sys.argv[1:]])
    try:
        report = run_benchmark(
            config,
            reporting.out,
            command=command,
            on_method=lambda title: log.info("measuring %s", title),
        )
    except KeyboardInterrupt:
        raise ShoalError(
            f"interrupted; finished tasks are kept in {reporting.out}, the same command goes on from there"
        ) from None
    below = [
        m.title
        for m in report.methods
        if bound is not None and (m.grade.score is None or m.grade.score < bound)
    ]
    if below:
        raise ShoalError(
            f"{', '.join(below)}: below the grade {reporting.least}; see {reporting.out / 'report'}"
        )
    place = reporting.out / "report" / "report.html"
    return Output(report.to_json(), f"{summary_table(report)}\n\nwritten to {place}")
