"""The report as Markdown and as one self-contained HTML page: no script, no font, nothing fetched."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from shoal.evaluation.benchmark.plots import Plot, colour_of
from shoal.evaluation.benchmark.summary import BenchmarkReport, MethodSummary
from shoal.evaluation.grading import COMPONENTS, CURVES, LETTERS, shown
from shoal.tasks.metrics import Interval

TEMPLATE = Path(__file__).with_name("page.html.j2")
HEADER = (
    "method",
    "grade",
    "score",
    "ROUGE-L",
    "exact match",
    "task to adapter",
    "peak memory",
    "success",
    "duration of a task",
    "throughput",
)


def render_markdown(report: BenchmarkReport) -> str:
    """The table that the documentation quotes, with what a reader needs to judge it."""
    lines = ["# Benchmark, " + report.base_model, "", summary_table(report), ""]
    lines += [f"* {m.title}: {m.note}." for m in report.methods if m.note]
    for m in report.methods:
        lines += [f"* {m.title} on {task} failed: {why}" for task, why in m.failures.items()]
        lines += [f"* {m.title}, not graded: {fault}" for fault in m.faults]
    lines += ["", "## Grades by component", "", _component_table(report), ""]
    lines += ["## Every metric, its curve and its values", "", _metric_table(report), "", _about(report), ""]
    return "\n".join(lines)


def summary_table(report: BenchmarkReport) -> str:
    """One row a method, as Markdown."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---|---" + "|---:" * (len(HEADER) - 2) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row_of(m)) + " |" for m in report.methods)])


def row_of(m: MethodSummary) -> list[str]:
    """A method's cells of the summary."""
    return [
        m.title,
        m.grade.letter or "missing",
        shown(m.grade.score),
        _interval(m.intervals.get("rouge_l"), 100, 1),
        _interval(m.intervals.get("exact_match"), 100, 1),
        _seconds(m.intervals.get("adaptation_seconds")),
        _value("peak_memory", m.metrics.get("peak_memory")),
        f"{100 * m.success_rate:.0f}%",
        _seconds(m.intervals.get("seconds")),
        _interval(m.intervals.get("throughput"), 1, 0, " tokens/s"),
    ]


def render_html(report: BenchmarkReport, plots: Sequence[Plot]) -> str:
    """The whole page."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    pictures = [(p, base64.b64encode(p.svg.encode()).decode()) for p in plots]
    return environment.from_string(TEMPLATE.read_text("utf-8")).render(
        report=report,
        header=HEADER,
        rows=[(m, row_of(m)) for m in report.methods],
        pictures=pictures,
        colour=colour_of,
        shown=shown,
        curves=CURVES,
        letters=LETTERS,
        about=_about(report),
        measured={m.name: {n: _value(n, v) for n, v in m.metrics.items()} for m in report.methods},
        kept={m.name: kept_of(m) for m in report.methods},
    )


def kept_of(m: MethodSummary) -> list[str]:
    """A method's accuracy and perplexity on general questions, before and after adapting."""
    accuracy, perplexity = m.kept.get("accuracy"), m.kept.get("perplexity")
    return [
        "missing" if accuracy is None else f"{100 * accuracy[0]:.1f}% → {100 * accuracy[1]:.1f}%",
        "missing" if perplexity is None else " → ".join(_value("perplexity", p) for p in perplexity),
    ]


def _metric_table(report: BenchmarkReport) -> str:
    """One row for each metric that a grade is made of, whether or not it was measured."""
    titles = [m.title for m in report.methods]
    lines = ["| metric | component | unit | value → score | " + " | ".join(titles) + " |"]
    lines.append("|---|---|---|---|" + "---:|" * len(titles))
    for name, curve in CURVES.items():
        points = "; ".join(f"{value:g} → {score:g}" for value, score in curve.points)
        how = f"{points}{' (logarithmic)' if curve.logarithmic else ''}. {curve.why}."
        values = [_value(name, m.metrics.get(name)) for m in report.methods]
        lines.append("| " + " | ".join([name, curve.component, curve.unit, how, *values]) + " |")
    return "\n".join(lines)


def _component_table(report: BenchmarkReport) -> str:
    names = [*COMPONENTS, "accuracy on general questions", "perplexity of their right choices"]
    lines = ["| method | " + " | ".join(names) + " |", "|---" + "|---" * len(names) + "|"]
    for m in report.methods:
        cells = [
            f"{shown(c.score)} {c.letter or ''}".strip()
            + (f" ({len(c.scores)} of {len(c.scores) + len(c.missing)} metrics)" if c.missing else "")
            for c in m.grade.components
        ]
        lines.append("| " + " | ".join([m.title, *cells, *kept_of(m)]) + " |")
    return "\n".join(lines)


def _about(report: BenchmarkReport) -> str:
    e, settings = report.environment, report.settings
    versions = ", ".join(f"{name} {version}" for name, version in e["versions"].items())
    return (
        f"{len(report.tasks)} tasks, at most {settings['examples']} test examples each, mean over tasks with "
        f"its 95% bootstrap interval; seed {settings['seed']}; {e['processor']}, {e['cores']} cores, "
        f"{e['threads']} threads{', ' + e['device'] if e['device'] else ''}; Python {e['python']}; "
        f"{versions}; commit {e['commit'] or 'unknown'}; measuring took "
        f"{math.fsum(m.seconds for m in report.methods) / 60:.0f} minutes in all, the last sitting with its "
        f"report {report.sitting_seconds / 60:.0f}. BLEU: {report.signatures['BLEU']}; "
        f"chrF: {report.signatures['chrF']}. Command: `{report.command}`"
    )


def _interval(interval: Interval | None, scale: float, digits: int, unit: str = "") -> str:
    if interval is None:
        return "missing"
    text = f"{interval.mean * scale:.{digits}f}"
    if interval.low is not None and interval.high is not None:
        text += f" ({interval.low * scale:.{digits}f} to {interval.high * scale:.{digits}f})"
    return text + unit


def _seconds(interval: Interval | None) -> str:
    if interval is None:
        return "none"
    return _interval(interval, 1e3, 0, " ms") if interval.mean < 1 else _interval(interval, 1, 1, " s")


def _value(name: str, value: float | None) -> str:
    if value is None:
        return "missing"
    if name.endswith("_memory"):
        return f"{value / 1e9:.2f} GB"
    return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
