"""The curve over numbers of solved examples as a value: means, paired leads, costs, and its tables.

Knows numbers and names; nothing of how a cell came about.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from shoal.evaluation.reports import METRICS, cell
from shoal.tasks.metrics import Interval, bootstrap_difference, bootstrap_interval

POINT = 0.01  # of ROUGE-L


@dataclass(frozen=True)
class Cell:
    """Scores and costs of one method on one task with one number and draw of shots.

    Attributes:
        scores: metric -> mean over the test examples.
        seconds: from description and shots to the adapter.
        tokens: that training read on the way.
        request_tokens: of a request, mean over the test examples.
    """

    scores: Mapping[str, float]
    seconds: float
    tokens: int
    request_tokens: float


@dataclass(frozen=True)
class ShotsReport:
    """Methods over numbers of shots.

    Attributes:
        base_model: hub id or path.
        tasks: names.
        counts: numbers of shots.
        draws: of shots, for each task.
        examples: test examples per task, at most.
        cells: method -> number of shots -> task -> its draws' cells.
        notes: whatever a reader must know.
    """

    base_model: str
    tasks: tuple[str, ...]
    counts: tuple[int, ...]
    draws: int
    examples: int
    cells: Mapping[str, Mapping[int, Mapping[str, Sequence[Cell]]]]
    notes: dict[str, Any] = field(default_factory=dict)

    def by_task(self, method: str, count: int, metric: str) -> list[float]:
        """A score for every task: the mean over draws, in the order of `tasks`."""
        own = self.cells[method][count]
        return [statistics.mean(c.scores[metric] for c in own[task]) for task in self.tasks]

    def interval(self, method: str, count: int, metric: str) -> Interval:
        """Mean over tasks with its 95% bootstrap interval."""
        return bootstrap_interval(self.by_task(method, count, metric))

    def lead(self, method: str, over: str, count: int, metric: str = "rouge_l") -> Interval:
        """Mean over tasks of one method's score minus another's, paired, with its 95% bootstrap interval."""
        return bootstrap_difference(self.by_task(method, count, metric), self.by_task(over, count, metric))

    def worse_than_none(self, method: str, count: int) -> int | None:
        """Tasks on which so many shots are more than a point of ROUGE-L below none; None without a 0."""
        if 0 not in self.cells[method]:
            return None
        with_shots, without = (self.by_task(method, n, "rouge_l") for n in (count, 0))
        return sum(a < b - POINT for a, b in zip(with_shots, without, strict=True))

    def costs(self, method: str, count: int) -> tuple[float, float, float]:
        """Medians over tasks and draws: (seconds to the adapter, tokens to it, tokens per request)."""
        own = [c for cells in self.cells[method][count].values() for c in cells]
        numbers = [(c.seconds, c.tokens, c.request_tokens) for c in own]
        seconds, tokens, asked = (statistics.median(column) for column in zip(*numbers, strict=True))
        return seconds, tokens, asked

    def _mean(self, metric: str, method: str, count: int) -> str:
        return cell(self.interval(method, count, metric), metric)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return asdict(self)

    def to_markdown(self, compared_with: str | None = None) -> str:
        """A table of each metric, of leads over `compared_with`, and of costs; a column for each number."""
        parts = [self._table(title, partial(self._mean, metric)) for metric, title in METRICS.items()]
        if compared_with is not None:
            title = f"ROUGE-L minus that of {compared_with}"
            parts.append(
                self._table(
                    title, lambda name, n: cell(self.lead(name, compared_with, n), "rouge_l"), compared_with
                )
            )
        if 0 in self.counts:
            title = "Tasks that lose a point of ROUGE-L to no shots"
            parts.append(self._table(title, lambda name, n: str(self.worse_than_none(name, n))))
        parts.append(self._table("Seconds to the adapter", lambda name, n: f"{self.costs(name, n)[0]:.1f}"))
        parts.append(self._table("Tokens of training", lambda name, n: f"{self.costs(name, n)[1]:,.0f}"))
        parts.append(self._table("Tokens of a request", lambda name, n: f"{self.costs(name, n)[2]:.0f}"))
        parts.append(
            f"{len(self.tasks)} tasks, {self.draws} draws of shots, at most {self.examples} test examples "
            "each; "
            "mean over tasks of the mean over draws with its 95% bootstrap interval. ROUGE-L and exact match "
            "in percent, NLL in nats; seconds and tokens are medians."
        )
        return "\n\n".join(parts)

    def _table(self, title: str, value: Callable[[str, int], str], without: str | None = None) -> str:
        lines = [
            f"| {title} | " + " | ".join(map(str, self.counts)) + " |",
            "|---" * (len(self.counts) + 1) + "|",
        ]
        for name, own in self.cells.items():
            if name == without:
                continue
            known = (without is None or n in self.cells[without] for n in self.counts)
            cells = [
                value(name, n) if n in own and k else "-" for n, k in zip(self.counts, known, strict=True)
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        return "\n".join(lines)
