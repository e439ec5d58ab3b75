"""Scores over time: R[i, j] is the score on skill j after learning skill i; and the measures of it.

ACC, BWT and FWT: Lopez-Paz and Ranzato, "Gradient Episodic Memory", arXiv 1706.08840, equations 2 to 4.
Forgetting: Chaudhry et al., "Riemannian Walk", arXiv 1801.10112, section 3. Numbers alone; knows no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shoal.library.versions import Version, lineage
from shoal.tasks.metrics import Interval, bootstrap_interval


@dataclass(frozen=True)
class Measures:
    """Measures of one order of learning, in points; intervals are over skills. None where nothing is to say.

    Attributes:
        acc: mean score at the end.
        bwt: backward transfer: score at the end less that when learnt, over all but the last.
        fwt: forward transfer: score before a skill is learnt less the base model's, over all but the first.
        forgetting: best score before the end less that at the end, over all but the last.
        learned: mean score of each skill when it was learnt; without it the others say nothing.
    """

    acc: Interval | None
    bwt: Interval | None
    fwt: Interval | None
    forgetting: Interval | None
    learned: Interval | None


def measures(
    matrix: Sequence[Sequence[float | None]],
    base: Sequence[float | None],
    before: Sequence[float | None],
) -> Measures:
    """The measures of a square matrix R.

    Cells are None where a skill has no exemplars, or is not there yet.

    Args:
        matrix: row i after learning skill i, column j the score on skill j.
        base: score of the base model on every skill.
        before: score on every skill just before it was learnt, as under the adapter of its sentence.
    """
    count = len(matrix)
    last = matrix[-1] if matrix else ()
    learned = [matrix[j][j] for j in range(count)]
    best = [
        max((score for row in matrix[j:-1] if (score := row[j]) is not None), default=None)
        for j in range(count - 1)
    ]
    return Measures(
        _mean(last),
        _mean(_less(last[:-1], learned[:-1])),
        _mean(_less(before[1:], base[1:])),
        _mean(_less(best, last[:-1])),
        _mean(learned),
    )


@dataclass(frozen=True)
class History:
    """The steps that led to a library as it is.

    Attributes:
        skills: that it has, in the order of learning.
        versions: in which each was learnt.
        matrix: R, in points; None where a skill was not there, or has no exemplars.
        measures: of R.
    """

    skills: tuple[str, ...]
    versions: tuple[int, ...]
    matrix: tuple[tuple[float | None, ...], ...]
    measures: Measures

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def table(self) -> str:
        """R and the measures as text."""
        if not self.skills:
            return "no skills"
        width = max(12, *(len(name) + 2 for name in self.skills))
        lines = ["after learning".ljust(width + 8) + "".join(name.rjust(width) for name in self.skills)]
        for name, version, row in zip(self.skills, self.versions, self.matrix, strict=True):
            cells = "".join(("-" if value is None else f"{value:.1f}").rjust(width) for value in row)
            lines.append(f"{name} ({version})".ljust(width + 8) + cells)
        names = {"acc": "ACC", "bwt": "BWT", "fwt": "FWT"}
        for field, value in vars(self.measures).items():
            lines.append(f"{names.get(field, field)}: {_shown(value)}")
        return "\n".join(lines)


def history(
    versions: Sequence[Version], base: Mapping[str, float | None], before: Mapping[str, float | None]
) -> History:
    """The history of the newest version.

    Args:
        versions: all, oldest first.
        base: skill -> score of the base model in points; None without exemplars.
        before: skill -> score just before it was learnt, in points.
    """
    now = versions[-1].skills
    learnt = {
        v.step.skill: v for v in lineage(versions) if v.step.kind == "learn" and v.step.skill in now
    }  # the last time of each
    steps = sorted(learnt.values(), key=lambda v: v.number)
    skills = tuple(v.step.skill or "" for v in steps)
    rows = [[_points(v, name) for name in skills] for v in steps]
    if rows:
        rows[-1] = [_points(versions[-1], name) for name in skills]
    return History(
        skills,
        tuple(v.number for v in steps),
        tuple(map(tuple, rows)),
        measures(rows, [base.get(s) for s in skills], [before.get(s) for s in skills]),
    )


def _points(version: Version, skill: str) -> float | None:
    asked = version.asked.get(skill)
    return None if asked is None or asked.mean is None else 100 * asked.mean


def _less(one: Sequence[float | None], other: Sequence[float | None]) -> list[float | None]:
    return [a - b if a is not None and b is not None else None for a, b in zip(one, other, strict=True)]


def _mean(values: Sequence[float | None]) -> Interval | None:
    known = [value for value in values if value is not None]
    return bootstrap_interval(known) if known else None


def _shown(value: Interval | None) -> str:
    if value is None:
        return "-"
    spread = "" if value.low is None else f" ({value.low:.1f} to {value.high:.1f})"
    return f"{value.mean:.1f}{spread}"
