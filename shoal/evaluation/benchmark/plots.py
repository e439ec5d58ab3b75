"""The pictures of a benchmark's report, as SVG for the page and as PNG. Knows a report's numbers."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shoal.evaluation.benchmark.summary import BenchmarkReport, MethodSummary
from shoal.tasks.metrics import Interval

# One colour a method wherever it is drawn; people who see few colours tell them apart (Okabe and Ito 2008).
COLOURS = {"base": "#7a8594", "lora": "#d55e00", "text-to-lora": "#0072b2", "transformer2": "#009e73"}
INK, FAINT, GRID = "#1d2733", "#5b6675", "#e3e8ee"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "svg.hashsalt": "shoal",
    "svg.fonttype": "path",
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Plot:
    """One picture.

    Attributes:
        name: of its file.
        title: what it shows.
        caption: how to read it.
        svg: the picture.
        png: the same.
    """

    name: str
    title: str
    caption: str
    svg: str
    png: bytes


def draw(report: BenchmarkReport) -> list[Plot]:
    """Every picture that the report has numbers for."""
    plots = [
        _drawn(
            "quality_and_time",
            "Quality against adaptation time",
            "ROUGE-L, mean over tasks with its 95% interval. Dashed: methods that adapt nothing.",
            lambda axes: _against(
                axes, report, "adaptation_seconds", 1, "seconds from a task to its adapter"
            ),
        ),
        _drawn(
            "quality_and_memory",
            "Quality against memory",
            "ROUGE-L against the most memory that the method's own process held.",
            lambda axes: _against(axes, report, "peak_memory", 1e-9, "peak memory, GB"),
        ),
        _drawn(
            "tasks",
            "Task by task",
            "ROUGE-L on each task with its 95% interval over test examples.",
            lambda axes: _by_task(axes, report),
            height=0.9 + 0.19 * len(report.tasks) * len(report.methods),
        ),
    ]
    if any(m.losses for m in report.methods):
        caption = "Training loss of the classic LoRA, mean over tasks. The other methods take no step here."
        plots.append(_drawn("learning", "Learning curves", caption, lambda axes: _learning(axes, report)))
    if report.shapes:
        caption = (
            "A description to its adapter, and the process's peak memory, by the size of the base model. "
            "Shapes alone; no weights are loaded."
        )
        plots.append(
            _drawn("scaling", "Scaling with model size", caption, lambda axes: _scaling(axes, report))
        )
    return plots


def _drawn(name: str, title: str, caption: str, fill: Callable[[Any], None], height: float = 3.6) -> Plot:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, height), layout="constrained")
        fill(figure.subplots())
        vector, raster = io.StringIO(), io.BytesIO()
        figure.savefig(vector, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
        figure.savefig(raster, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return Plot(name, title, caption, vector.getvalue(), raster.getvalue())


def _against(axes: Any, report: BenchmarkReport, metric: str, unit: float, label: str) -> None:
    """Each method a point with the interval of its quality; a line where it has no such metric."""
    for m in report.methods:
        if "rouge_l" not in m.intervals:
            continue
        quality, colour = m.intervals["rouge_l"], COLOURS[m.name]
        value = m.metrics.get(metric)
        if value is None:
            axes.axhline(100 * quality.mean, color=colour, linestyle="--", linewidth=1.4, label=m.title)
            continue
        axes.errorbar(
            [value * unit],
            [100 * quality.mean],
            yerr=_bars([quality], 100),
            fmt="o",
            markersize=9,
            capsize=4,
            color=colour,
            label=m.title,
        )
    if metric == "adaptation_seconds":
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
        axes.margins(x=0.15)
    axes.set_ylim(0, 100)
    axes.set_xlabel(label)
    axes.set_ylabel("ROUGE-L")
    axes.legend(loc="best", fontsize=9)


def _by_task(axes: Any, report: BenchmarkReport) -> None:
    methods = [m for m in report.methods if m.task_scores]
    thickness = 0.8 / max(1, len(methods))
    for number, m in enumerate(methods):
        rows = [i for i, task in enumerate(report.tasks) if task in m.task_scores]
        scores = [m.task_scores[report.tasks[i]] for i in rows]
        axes.barh(
            [i + (number - (len(methods) - 1) / 2) * thickness for i in rows],
            [100 * s.mean for s in scores],
            height=thickness * 0.9,
            xerr=_bars(scores, 100),
            color=COLOURS[m.name],
            error_kw={"ecolor": INK, "elinewidth": 0.8, "capsize": 1.5},
            label=m.title,
        )
    axes.set_yticks(range(len(report.tasks)), report.tasks, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("ROUGE-L")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, fontsize=8)


def _learning(axes: Any, report: BenchmarkReport) -> None:
    for m in report.methods:
        if m.losses:
            steps = range(1, len(m.losses) + 1)
            axes.plot(steps, m.losses, color=COLOURS[m.name], linewidth=2, label=m.title)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss, nats per token")
    axes.legend(fontsize=9)


def _scaling(axes: Any, report: BenchmarkReport) -> None:
    sizes = [shape.base_parameters for shape in report.shapes]
    times = [1e3 * shape.generation_seconds for shape in report.shapes]
    line = axes.plot(sizes, times, "o-", color=COLOURS["text-to-lora"], label="time, ms")
    memory = axes.twinx()
    held = [shape.peak_bytes / 1e9 for shape in report.shapes]
    line += memory.plot(sizes, held, "s--", color=COLOURS["lora"], label="memory, GB")
    axes.set_xscale("log")
    axes.set_xticks(sizes, [_size(n) for n in sizes])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    memory.set_ylim(bottom=0)
    memory.grid(visible=False)
    axes.set_xlabel("parameters of the base model")
    axes.set_ylabel("description to adapter, ms")
    memory.set_ylabel("peak memory, GB")
    axes.legend(handles=line, fontsize=9)


def _size(parameters: int) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"


def _bars(intervals: list[Interval], scale: float) -> list[list[float]]:
    """Lengths below and above each mean; none where one value has no interval."""
    return [
        [scale * (i.mean - i.low) if i.low is not None else math.nan for i in intervals],
        [scale * (i.high - i.mean) if i.high is not None else math.nan for i in intervals],
    ]


def colour_of(summary: MethodSummary) -> str:
    """The colour in which a method is drawn."""
    return COLOURS[summary.name]
