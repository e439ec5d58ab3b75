"""From metrics to component scores, an overall score and a letter; pure arithmetic on numbers.

Every metric has one monotone curve in `CURVES`, the only place where a number becomes a score. A component's
score is the mean of its metrics' scores, the overall score the mean of its components'. A metric that was
not measured is named as missing and counts for nothing: neither zero nor full marks. Curves of times and
memory are logarithmic: a tenth more or less in all of them at once moves the overall score by less than half
a point (a test sees to it). A score nearer than that to a bound may get either letter in another run. Knows
nothing of models, tasks or how a metric was measured.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from shoal.errors import UsageError

Component = Literal["training performance", "model quality", "system performance", "knowledge integration"]
COMPONENTS: tuple[Component, ...] = (
    "training performance",
    "model quality",
    "system performance",
    "knowledge integration",
)
# The lowest score of each letter; whatever is below the last one that has a bound above 0 is an F.
LETTERS: Mapping[str, float] = {"A+": 95, "A": 90, "B+": 85, "B": 80, "C": 70, "D": 60, "F": 0}

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Curve:
    """A metric's way to a score.

    Attributes:
        component: where it counts.
        unit: of the metric.
        points: (value, score) reference points, by ascending value; beyond the first and the last the score
            stays, between two it is a straight line.
        why: what the reference points are.
        logarithmic: the line is straight over the logarithm of the value.
        low: smallest possible value.
        high: largest possible value.
    """

    component: Component
    unit: str
    points: Points
    why: str
    logarithmic: bool = False
    low: float = 0.0
    high: float = math.inf

    def score(self, value: float) -> float:
        """The score of a value within the range, in [0, 100]."""
        if value <= self.points[0][0]:
            return self.points[0][1]
        for (x0, y0), (x1, y1) in zip(self.points, self.points[1:], strict=False):
            if value <= x1:
                share = (
                    math.log(value / x0) / math.log(x1 / x0) if self.logarithmic else (value - x0) / (x1 - x0)
                )
                return y0 + share * (y1 - y0)
        return self.points[-1][1]


_LOSS: Points = ((0, 100), (0.5, 95), (1, 85), (2, 65), (3, 45), (5, 15), (8, 0))
_OVERLAP: Points = ((0, 0), (0.2, 40), (0.4, 65), (0.6, 82), (0.8, 93), (1, 100))
_MEMORY: Points = ((0.25e9, 100), (1e9, 90), (4e9, 72), (16e9, 50), (80e9, 20), (1e12, 0))

CURVES: Mapping[str, Curve] = {
    "final_loss": Curve(
        "training performance",
        "nats per token",
        _LOSS,
        "1 nat is a perplexity of 2.7; guessing among 3,000 tokens is 8",
    ),
    "best_loss": Curve("training performance", "nats per token", _LOSS, "as final_loss"),
    "convergence": Curve(
        "training performance",
        "share of the first loss that training removed",
        ((0, 0), (0.25, 50), (0.5, 80), (0.75, 95), (1, 100)),
        "nothing learnt, half of the loss gone, all of it",
        low=-math.inf,
        high=1,
    ),
    "adaptation_seconds": Curve(
        "training performance",
        "seconds from a task to its adapter",
        ((0.01, 100), (1, 95), (60, 75), (3600, 45), (86_400, 10), (1e6, 0)),
        "not felt, a moment, a minute, an hour, a day",
        logarithmic=True,
    ),
    "training_tokens_per_second": Curve(
        "training performance",
        "real tokens per second",
        ((1, 0), (10, 20), (100, 45), (1e3, 70), (1e4, 88), (1e5, 100)),
        "a laptop's core trains 100M parameters at hundreds, one accelerator at tens of thousands",
        logarithmic=True,
    ),
    "perplexity": Curve(
        "model quality",
        "e to the nats per token",
        ((1, 100), (2, 90), (5, 75), (10, 62), (30, 40), (100, 20), (1000, 0)),
        "1 is certainty, 2 a coin between two tokens, 1000 a guess among as many",
        logarithmic=True,
        low=1,
    ),
    "bleu": Curve(
        "model quality",
        "sacrebleu's points",
        ((0, 0), (10, 25), (20, 45), (30, 60), (40, 75), (50, 85), (60, 93), (100, 100)),
        "below 10 useless, 30 understandable, 50 fluent, 60 as people translate",
        high=100,
    ),
    "rouge_1": Curve("model quality", "F1 of words", _OVERLAP, "half of the words is fair", high=1),
    "rouge_2": Curve(
        "model quality",
        "F1 of pairs of words",
        ((0, 0), (0.1, 35), (0.25, 60), (0.45, 80), (0.7, 93), (1, 100)),
        "summaries by good systems have about 0.2 (Lin 2004)",
        high=1,
    ),
    "rouge_l": Curve("model quality", "F1 of the common subsequence", _OVERLAP, "as rouge_1", high=1),
    "exact_match": Curve(
        "model quality",
        "share of answers",
        ((0, 0), (0.3, 45), (0.6, 75), (0.9, 95), (1, 100)),
        "none, a third, most, all",
        high=1,
    ),
    "peak_memory": Curve(
        "system performance",
        "bytes of the process",
        _MEMORY,
        "a small board, a phone, a laptop, a workstation, one accelerator",
        logarithmic=True,
    ),
    "device_memory": Curve(
        "system performance", "bytes of the device", _MEMORY, "as peak_memory", logarithmic=True
    ),
    "device_utilisation": Curve(
        "system performance", "share of the time", ((0, 0), (0.5, 70), (1, 100)), "idle, half, busy", high=1
    ),
    "throughput": Curve(
        "system performance",
        "answer tokens per second, in batches",
        ((0.1, 0), (1, 15), (10, 40), (100, 65), (1e3, 85), (1e4, 100)),
        "a person reads about 5",
        logarithmic=True,
    ),
    "latency_p50": Curve(
        "system performance",
        "seconds to a whole answer, one at a time",
        ((0.05, 100), (0.2, 93), (1, 78), (5, 50), (30, 20), (300, 0)),
        "at once; 1 keeps a train of thought; 10 loses the reader's attention (Nielsen 1993)",
        logarithmic=True,
    ),
    "latency_p95": Curve(
        "system performance",
        "seconds to a whole answer, one at a time",
        ((0.1, 100), (0.4, 93), (2, 78), (10, 50), (60, 20), (600, 0)),
        "twice those of latency_p50",
        logarithmic=True,
    ),
    "retained_perplexity": Curve(
        "knowledge integration",
        "perplexity of base questions after over before",
        ((1, 100), (1.1, 92), (1.5, 75), (2, 60), (4, 30), (10, 0)),
        "as before, a tenth worse, twice, ten times",
        logarithmic=True,
    ),
    "retained_accuracy": Curve(
        "knowledge integration",
        "accuracy on base questions after over before",
        ((0, 0), (0.5, 40), (0.8, 70), (0.95, 92), (1, 100)),
        "all forgotten, half, a fifth, nothing",
    ),
    "target_accuracy": Curve(
        "knowledge integration",
        "share of answers whose first line is right",
        ((0, 0), (0.3, 45), (0.6, 75), (0.9, 95), (1, 100)),
        "as exact_match",
        high=1,
    ),
    "answer_quality": Curve(
        "knowledge integration",
        "chrF2 points",
        ((0, 0), (20, 40), (40, 65), (60, 82), (80, 93), (100, 100)),
        "n-grams of characters, which see what is nearly right",
        high=100,
    ),
}


@dataclass(frozen=True)
class ComponentGrade:
    """One component's share of a grade.

    Attributes:
        name: of the component.
        score: mean of its metrics' scores in [0, 100]; None where none was measured.
        letter: of the score.
        scores: metric -> score, of those that were measured.
        missing: metrics that were not.
    """

    name: Component
    score: float | None
    letter: str | None
    scores: Mapping[str, float]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Grade:
    """Scores and letter of a set of metrics.

    Attributes:
        score: mean of the components' scores in [0, 100]; None where nothing was measured.
        letter: of the score.
        components: in the order of `COMPONENTS`.
    """

    score: float | None
    letter: str | None
    components: tuple[ComponentGrade, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Every metric that was not measured."""
        return tuple(name for component in self.components for name in component.missing)


def score(metric: str, value: float) -> float:
    """The score of one metric, in [0, 100].

    Raises:
        UsageError: an unknown metric, or a value that is no finite number of its range.
    """
    curve = _curve(metric)
    if not math.isfinite(value) or not curve.low <= value <= curve.high:
        raise UsageError(
            f"{metric} {value}: must be a finite number from {curve.low:g} to {curve.high:g} "
            f"({curve.unit}); measure it again, or leave it out"
        )
    return curve.score(value)


def grade(metrics: Mapping[str, float | None]) -> Grade:
    """Scores and letters of whatever was measured; None, or no entry, means that a metric was not.

    Raises:
        UsageError: as `score`.
    """
    for name in metrics:
        _curve(name)
    measured = {name: value for name, value in metrics.items() if value is not None}
    parts = []
    for component in COMPONENTS:
        names = [name for name, curve in CURVES.items() if curve.component == component]
        scores = {name: score(name, measured[name]) for name in names if name in measured}
        missing = tuple(name for name in names if name not in measured)
        parts.append(ComponentGrade(component, *_mean(list(scores.values())), scores, missing))
    return Grade(*_mean([p.score for p in parts if p.score is not None]), tuple(parts))


def letter(value: float) -> str:
    """The letter of a score: the bounds hold for fractions, so 94.6 is an A, as nothing is rounded.

    Raises:
        UsageError: it is outside 0 to 100, or no number.
    """
    if not 0 <= value <= 100:
        raise UsageError(f"score {value}: must be from 0 to 100; see shoal.evaluation.grading.score")
    return next(name for name, bound in LETTERS.items() if value >= bound)


def lowest_score(name: str) -> float:
    """The least score that earns a letter.

    Raises:
        UsageError: there is no such letter.
    """
    if name not in LETTERS:
        raise UsageError(f"unknown grade {name!r}; choose from {', '.join(LETTERS)}")
    return LETTERS[name]


def shown(value: float | None) -> str:
    """A score as a table shows it: cut, not rounded, to a tenth, so that no `95.0` stands beside an A."""
    return "missing" if value is None else f"{math.floor(value * 10 + 1e-9) / 10:.1f}"


def _mean(scores: list[float]) -> tuple[float | None, str | None]:
    """(mean, its letter), or nothing of nothing."""
    if not scores:
        return None, None
    mean = min(100.0, math.fsum(scores) / len(scores))
    return mean, letter(mean)


def _curve(metric: str) -> Curve:
    if metric not in CURVES:
        near = difflib.get_close_matches(metric, CURVES, n=1)
        fix = f"did you mean {near[0]}?" if near else f"choose from {', '.join(CURVES)}"
        raise UsageError(f"unknown metric {metric!r}; {fix}")
    return CURVES[metric]
