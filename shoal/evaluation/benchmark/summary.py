"""From cells to one graded row a method. Pure: reads numbers and answers, measures nothing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shoal.errors import UsageError
from shoal.evaluation.benchmark.cells import Cell
from shoal.evaluation.benchmark.methods import method
from shoal.evaluation.grading import Grade, grade, score
from shoal.evaluation.reports import Answer
from shoal.evaluation.scaling import ShapeCost
from shoal.tasks.metrics import Interval, bleu, bootstrap_interval, chrf, perplexity, rouge

SHOWN_ANSWERS = 1  # a task that the report keeps


@dataclass(frozen=True)
class MethodSummary:
    """One method's row.

    Attributes:
        name: of the table of methods.
        title: for people.
        note: what a reader must know.
        grade: scores and letters.
        metrics: everything of `shoal.evaluation.grading.CURVES` that was measured.
        intervals: mean over tasks with its 95% interval, of some metrics.
        task_scores: task -> ROUGE-L with its 95% interval over examples.
        losses: mean training loss of every step over tasks; empty without training.
        kept: general ability before and after adapting, of what was measured: `accuracy` in [0, 1] and
            `perplexity`, means over tasks.
        success_rate: share of the tasks that were adapted to and scored, in [0, 1].
        failures: task -> why it was not.
        faults: metrics that were measured but are no finite number of their range.
        seconds: that all cells took.
        answers: task -> its first answers.
    """

    name: str
    title: str
    note: str
    grade: Grade
    metrics: Mapping[str, float]
    intervals: Mapping[str, Interval]
    task_scores: Mapping[str, Interval]
    losses: tuple[float, ...]
    kept: Mapping[str, tuple[float, float]]
    success_rate: float
    failures: Mapping[str, str]
    faults: tuple[str, ...]
    seconds: float
    answers: Mapping[str, tuple[Answer, ...]]


@dataclass(frozen=True)
class BenchmarkReport:
    """Everything that a benchmark found.

    Attributes:
        base_model: as it was named.
        tasks: names.
        methods: one row each.
        shapes: costs of larger models' shapes.
        environment: machine, versions, commit.
        settings: of the run, seed included.
        command: that repeats it.
        signatures: of sacrebleu's scores.
        sitting_seconds: that this sitting took; cells of earlier ones are not in it.
    """

    base_model: str
    tasks: tuple[str, ...]
    methods: tuple[MethodSummary, ...]
    shapes: tuple[ShapeCost, ...]
    environment: Mapping[str, Any]
    settings: Mapping[str, Any]
    command: str
    signatures: Mapping[str, str]
    sitting_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values; null for what is no finite number."""
        return _finite(asdict(self))


def summarise_method(name: str, cells: Sequence[Cell], base: Mapping[str, Cell]) -> MethodSummary:
    """The row of a method from its cells; `base` has the base model's, for what was forgotten."""
    good = [cell for cell in cells if cell.failure is None]
    ratios, kept = _retention(good, base)
    measured, faults = _within_range({**_means(good), **_of_answers(good), **ratios})
    notes = list(dict.fromkeys(cell.note for cell in good if cell.note))
    return MethodSummary(
        name=name,
        title=method(name).title,
        note=notes[0] if notes else "",
        grade=grade(measured),
        metrics=measured,
        intervals=_intervals(good),
        task_scores={c.task: bootstrap_interval([a.rouge_l for a in c.answers]) for c in good},
        losses=_mean_losses(good),
        kept=kept,
        success_rate=len(good) / len(cells),
        failures={c.task: c.failure for c in cells if c.failure is not None},
        faults=faults,
        seconds=math.fsum(c.seconds for c in cells),
        answers={c.task: c.answers[:SHOWN_ANSWERS] for c in good},
    )


def _means(cells: Sequence[Cell]) -> dict[str, float]:
    """Of what each cell has: the mean over tasks, of memory the most."""
    values: dict[str, list[float]] = {}
    for cell in cells:
        for name, value in cell.metrics.items():
            values.setdefault(name, []).append(value)
    most = {"peak_memory", "device_memory"}
    return {n: max(found) if n in most else statistics.fmean(found) for n, found in values.items()}


def _of_answers(cells: Sequence[Cell]) -> dict[str, float]:
    """Quality over all answers, and latency over all requests that were timed singly."""
    answers = [a for cell in cells for a in cell.answers]
    if not answers:
        return {}
    said, references = [a.answer for a in answers], [a.references for a in answers]

    def mean(value: Any) -> float:
        return statistics.fmean(statistics.fmean(value(a) for a in c.answers) for c in cells)

    latencies = sorted(s for c in cells for s in c.latencies)
    found = {
        "rouge_1": mean(lambda a: rouge(a.answer, a.references, "rouge1")),
        "rouge_2": mean(lambda a: rouge(a.answer, a.references, "rouge2")),
        "rouge_l": mean(lambda a: a.rouge_l),
        "exact_match": mean(lambda a: a.exact_match),
        "bleu": min(100.0, bleu(said, references).score),  # sacrebleu's 100 is sometimes 100.00000000000004
        "answer_quality": min(100.0, chrf(said, references).score),
        "target_accuracy": statistics.fmean(
            c.target_accuracy for c in cells if c.target_accuracy is not None
        ),
    }
    losses = [a.nll for a in answers if a.nll is not None]
    found["perplexity"] = perplexity(losses) if all(x >= 0 for x in losses) else math.nan
    if latencies:
        found["latency_p50"] = statistics.median(latencies)
        found["latency_p95"] = latencies[min(len(latencies) - 1, math.ceil(0.95 * len(latencies)) - 1)]
    return found


def _retention(
    cells: Sequence[Cell], base: Mapping[str, Cell]
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """General questions after adapting over before, and (before, after); nothing without a base model."""
    pairs = [(base[c.task], c) for c in cells if c.task in base and base[c.task].failure is None]
    ratios: dict[str, float] = {}
    kept: dict[str, tuple[float, float]] = {}
    for name in ("accuracy", "perplexity"):
        both = [(getattr(b, f"base_{name}"), getattr(a, f"base_{name}")) for b, a in pairs]
        both = [(before, after) for before, after in both if before and after is not None]
        if both:
            ratios[f"retained_{name}"] = statistics.fmean(after / before for before, after in both)
            kept[name] = (statistics.fmean(b for b, _ in both), statistics.fmean(a for _, a in both))
    return ratios, kept


def _within_range(found: Mapping[str, float]) -> tuple[dict[str, float], tuple[str, ...]]:
    """(what can be graded, what cannot: a diverged loss, for example, with the reason)."""
    good, faults = {}, []
    for name, value in found.items():
        try:
            score(name, value)
            good[name] = value
        except UsageError as error:
            faults.append(str(error))
    return good, tuple(faults)


def _intervals(cells: Sequence[Cell]) -> dict[str, Interval]:
    """Means over tasks with intervals, of quality, times and speed."""
    values: dict[str, list[float]] = {
        "rouge_l": [statistics.fmean(a.rouge_l for a in c.answers) for c in cells],
        "exact_match": [statistics.fmean(a.exact_match for a in c.answers) for c in cells],
        "nll": [statistics.fmean(a.nll for a in c.answers if a.nll is not None) for c in cells],
        "seconds": [c.seconds for c in cells],
        "latency": [s for c in cells for s in c.latencies],
    }
    for name in ("adaptation_seconds", "throughput", "peak_memory"):
        values[name] = [c.metrics[name] for c in cells if name in c.metrics]
    usable = {n: found for n, found in values.items() if found and all(math.isfinite(x) for x in found)}
    return {name: bootstrap_interval(found) for name, found in usable.items()}


def _mean_losses(cells: Sequence[Cell]) -> tuple[float, ...]:
    curves = [cell.losses for cell in cells if cell.losses]
    return tuple(statistics.fmean(step) for step in zip(*curves, strict=False))


def _finite(value: Any) -> Any:
    """The same value with None for numbers that are not finite, which JSON has not."""
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
