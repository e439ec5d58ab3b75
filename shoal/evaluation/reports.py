"""Results of an evaluation: scores of methods side by side, as values, JSON and a Markdown table.

Knows numbers and names; nothing of models, tasks' contents or how a score came about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from shoal.errors import ShoalError, UsageError
from shoal.tasks.metrics import Interval, bootstrap_difference, bootstrap_interval

METRICS = {"rouge_l": "ROUGE-L", "exact_match": "exact match", "nll": "NLL per token"}
LOWER_IS_BETTER = {"nll"}


@dataclass(frozen=True)
class Answer:
    """One scored answer.

    Attributes:
        input: the example's input.
        answer: what was generated.
        references: right answers.
        rouge_l: against the best reference, in [0, 1].
        exact_match: 0 or 1.
        nll: cross-entropy of the first reference, nats per token; None where no model answered.
    """

    input: str
    answer: str
    references: tuple[str, ...]
    rouge_l: float
    exact_match: float
    nll: float | None


@dataclass(frozen=True)
class MethodResult:
    """A method's scores.

    Attributes:
        name: of the method.
        scores: metric -> task -> mean over its examples; without a metric that its answers lack.
        intervals: metric -> mean over tasks with its 95% bootstrap interval.
        samples: for every task, its first answers, to be read.
    """

    name: str
    scores: dict[str, dict[str, float]]
    intervals: dict[str, Interval]
    samples: dict[str, list[Answer]]


def summarise(name: str, answers: Mapping[str, Sequence[Answer]], samples: int) -> MethodResult:
    """The result of a method from its answers, by task; `samples` answers per task are kept."""
    scores = {
        metric: {task: sum(getattr(a, metric) for a in rows) / len(rows) for task, rows in answers.items()}
        for metric in METRICS
        if all(getattr(a, metric) is not None for rows in answers.values() for a in rows)
    }
    return MethodResult(
        name, scores, _intervals(scores), {task: list(rows[:samples]) for task, rows in answers.items()}
    )


def mean_result(name: str, results: Sequence[MethodResult]) -> MethodResult:
    """One row for repetitions of a method, such as several descriptions or seeds: the mean of their scores.

    The interval is over tasks, as in every row; the samples are the first repetition's.

    Raises:
        UsageError: there is no result, or two are of different tasks.
    """
    if not results or any(r.scores["rouge_l"].keys() != results[0].scores["rouge_l"].keys() for r in results):
        raise UsageError(f"{name}: a mean needs at least one result, and all of the same tasks; check them")
    scores = {
        metric: {task: sum(r.scores[metric][task] for r in results) / len(results) for task in by_task}
        for metric, by_task in results[0].scores.items()
    }
    return MethodResult(name, scores, _intervals(scores), results[0].samples)


@dataclass(frozen=True)
class Report:
    """Methods side by side on the same examples.

    Attributes:
        base_model: hub id or path.
        tasks: names.
        examples: test examples per task, at most.
        results: one a method, in the order given.
        notes: whatever a reader must know: seeds, training tokens, commands.
    """

    base_model: str
    tasks: tuple[str, ...]
    examples: int
    results: tuple[MethodResult, ...]
    notes: dict[str, Any] = field(default_factory=dict)

    def result(self, name: str) -> MethodResult:
        """The result of one method.

        Raises:
            UsageError: it is not in the report.
        """
        for result in self.results:
            if result.name == name:
                return result
        known = ", ".join(repr(r.name) for r in self.results)
        raise UsageError(f"the report has no method {name!r}; choose from {known}")

    def difference(self, one: str, other: str, metric: str) -> Interval:
        """Mean over tasks of one method's score minus another's, with a paired 95% bootstrap interval.

        Raises:
            UsageError: a method or metric is not in the report.
        """
        if metric not in METRICS:
            raise UsageError(f"unknown metric {metric!r}; choose from {', '.join(METRICS)}")
        left, right = self.result(one).scores[metric], self.result(other).scores[metric]
        return bootstrap_difference([left[t] for t in self.tasks], [right[t] for t in self.tasks])

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Report:
        """The report that `to_json` wrote.

        Raises:
            ShoalError: it is something else.
        """
        try:
            results = [
                MethodResult(
                    r["name"],
                    r["scores"],
                    {metric: Interval(**interval) for metric, interval in r["intervals"].items()},
                    {
                        task: [Answer(**{**a, "references": tuple(a["references"])}) for a in answers]
                        for task, answers in r["samples"].items()
                    },
                )
                for r in record["results"]
            ]
            tasks, notes = tuple(record["tasks"]), dict(record["notes"])
            return cls(record["base_model"], tasks, record["examples"], tuple(results), notes)
        except (KeyError, TypeError, AttributeError) as error:
            raise ShoalError(f"this is not an evaluation report ({error!r}); evaluate again") from None

    def to_markdown(self, compared_with: str | None = None) -> str:
        """A table with a row a method; ROUGE-L and exact match in percent.

        Args:
            compared_with: a method; each other row then also shows that method's lead over it in ROUGE-L.
        """
        columns = list(METRICS)
        header = ["", *(METRICS[m] for m in columns)]
        header += [f"{compared_with} leads by"] if compared_with else []
        lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
        for r in self.results:
            cells = [r.name, *(cell(r.intervals[m], m) if m in r.intervals else "-" for m in columns)]
            if compared_with:
                lead = self.difference(compared_with, r.name, "rouge_l")
                cells.append("" if r.name == compared_with else cell(lead, "rouge_l"))
            lines.append("| " + " | ".join(cells) + " |")
        lines.append(
            f"\n{len(self.tasks)} tasks, at most {self.examples} test examples each; mean over tasks with "
            "its 95% bootstrap interval. ROUGE-L and exact match in percent, NLL in nats."
        )
        return "\n".join(lines)


def cell(interval: Interval, metric: str) -> str:
    """An interval as a table shows it, `mean (low to high)`: nats for NLL, percent for the others."""
    scale, digits = (1, 2) if metric in LOWER_IS_BETTER else (100, 1)
    text = f"{interval.mean * scale:.{digits}f}"
    if interval.low is None or interval.high is None:
        return text
    return f"{text} ({interval.low * scale:.{digits}f} to {interval.high * scale:.{digits}f})"


def _intervals(scores: Mapping[str, Mapping[str, float]]) -> dict[str, Interval]:
    return {metric: bootstrap_interval(list(by_task.values())) for metric, by_task in scores.items()}
