"""The gate: what older skills would lose by a step, and when that is too much.

Exemplars are asked end to end: the route that the new router takes, the adapter there, its greedy answer, its
score. Where the route stays, so do adapter and answer, and the recorded score holds; only requests whose
route changed are asked again. Knows scores; nothing of models or files.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from shoal.errors import ShoalError
from shoal.library.versions import Asked, Confusion
from shoal.tasks.metrics import Interval, bootstrap_difference
from shoal.tasks.records import Example
from shoal.transformer2.router import NONE

BOUND = 2.0  # points of ROUGE-L
# Share and number of a skill's exemplars that another takes, from which inputs do not tell the two apart.
ALIKE, FEWEST = 0.2, 2

# Scores of the answers that a skill, or `NONE`, gives to examples.
Answering = Callable[[str, Sequence[Example]], list[float]]


@dataclass(frozen=True)
class Verdict:
    """The effect of a step on one older skill.

    Attributes:
        skill: its name.
        before: mean score that was accepted, in points.
        after: mean score after the step, in points.
        difference: after - before over its exemplars, in points.
        taken: skill or `none` -> exemplars that it would answer instead.
        bound: points that the skill may lose.
        allowed: it may lose more.
        alike: its inputs and those of the new skill look alike, so that its requests would need a name.
    """

    skill: str
    before: float
    after: float
    difference: Interval
    taken: Mapping[str, int]
    bound: float
    allowed: bool = False
    alike: bool = False

    @property
    def loses(self) -> bool:
        """True where the whole interval lies below the bound, or its requests would need a name."""
        high = self.difference.mean if self.difference.high is None else self.difference.high
        return self.alike or high < -self.bound

    def __str__(self) -> str:
        """One clause for an error or a table."""
        d = self.difference
        interval = "" if d.low is None else f" (95% {d.low:.1f} to {d.high:.1f})"
        taken = ", ".join(f"{count} to {name}" for name, count in self.taken.items())
        routes = f"; of {d.n} exemplars go {taken}" if taken else ""
        return f"{self.skill} {self.before:.1f} -> {self.after:.1f}, {d.mean:+.1f}{interval}{routes}"


class RefusedError(ShoalError):
    """A step that was not committed, since older skills would lose by it.

    Attributes:
        verdicts: on every older skill that has exemplars.
        seconds: that asking them took.
    """

    def __init__(
        self, name: str, verdicts: Sequence[Verdict], confused: Sequence[Confusion], seconds: float = 0.0
    ) -> None:
        """Name what would lose how much, and the way out."""
        self.verdicts, self.seconds = tuple(verdicts), seconds
        losers = [verdict for verdict in verdicts if verdict.loses and not verdict.allowed]
        alike = [f"; {pair}" for pair in confused]
        flags = " ".join(f"--allow-loss {verdict.skill}" for verdict in losers)
        super().__init__(
            f"{name} is not committed, since older skills would lose more than {losers[0].bound:g} points or "
            f"need a name: {'; '.join(map(str, losers))}{''.join(alike)}; give other examples, or {flags}"
        )


@dataclass(frozen=True, eq=False)
class Exam:
    """The exemplars of one skill, as they are routed now.

    Attributes:
        skill: whose they are.
        exemplars: solved examples.
        routes: of each, the skill that answers it, or `NONE`.
        own: the scores under the skill's own adapter; None where that is to be asked again.
    """

    skill: str
    exemplars: Sequence[Example]
    routes: Sequence[str]
    own: Sequence[float] | None


def ask_exams(
    exams: Sequence[Exam],
    known: Mapping[str, Asked],
    changed: Collection[str],
    answer: Answering,
) -> dict[str, Asked]:
    """The scores of every skill now.

    Args:
        exams: of the skills.
        known: skill -> what it scored before.
        changed: skills whose adapter is another than before.
        answer: scores of the answers of a skill.
    """
    scores = [[0.0] * len(exam.exemplars) for exam in exams]
    asked: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for number, exam in enumerate(exams):
        before = known.get(exam.skill)
        for place, route in enumerate(exam.routes):
            if route == exam.skill and exam.own is not None:
                scores[number][place] = exam.own[place]
            elif before is not None and route not in changed and _at(before.routes, place) == route:
                scores[number][place] = before.scores[place]
            else:
                asked[route].append((number, place))
    for route, places in asked.items():
        found = answer(route, [exams[number].exemplars[place] for number, place in places])
        for (number, place), score in zip(places, found, strict=True):
            scores[number][place] = score
    return {
        exam.skill: Asked(routes=tuple(exam.routes), scores=tuple(own))
        for exam, own in zip(exams, scores, strict=True)
    }


def judge(
    accepted: Mapping[str, Sequence[float]],
    asked: Mapping[str, Asked],
    *,
    bound: float = BOUND,
    allowed: Collection[str] = (),
    alike: Collection[str] = (),
) -> list[Verdict]:
    """A verdict on every skill that has exemplars and accepted scores, in the order of names."""
    found = []
    for skill in sorted(accepted.keys() & asked.keys()):
        before, now = [100 * s for s in accepted[skill]], [100 * s for s in asked[skill].scores]
        if not before:
            continue
        difference = bootstrap_difference(now, before)
        taken = Counter(route for route in asked[skill].routes if route != skill)
        means = sum(before) / len(before), sum(now) / len(now)
        found.append(Verdict(skill, *means, difference, dict(taken), bound, skill in allowed, skill in alike))
    return found


def confusions(routes: Mapping[str, Sequence[str]]) -> tuple[Confusion, ...]:
    """Pairs of skills that inputs do not tell apart, from the routes of every skill's exemplars."""
    found = []
    for skill in sorted(routes):
        own = routes[skill]
        for other, count in sorted(Counter(own).items()):
            if other not in (skill, NONE) and count >= max(FEWEST, ALIKE * len(own)):
                found.append(Confusion(skill=skill, other=other, share=count / len(own)))
    return tuple(found)


def _at(routes: Sequence[str], place: int) -> str | None:
    return routes[place] if place < len(routes) else None
