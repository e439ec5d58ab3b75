"""Whether settings are better than the defaults on fresh seeds and divisions; else the defaults stay.

The best of many noisy trials owes part of its score to chance. Here the two best settings and the defaults
are trained anew, each pair on the same seed and the same division of the examples, and settings are
recommended only where the 95% interval of the paired gain is above 0. The interval is Student's over the
seeds, as examples of one run share its luck and count as one, and simultaneous for both settings
(Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from optuna.trial import TrialState

from shoal.errors import ShoalError
from shoal.tasks.metrics import Interval
from shoal.training.loop import Diverged
from shoal.tuning.limits import broken, front_of
from shoal.tuning.samplers import seed_of
from shoal.tuning.study import CONFIRMATIONS, DEFAULTS, Study
from shoal.tuning.workloads import Division

BEST = 2  # settings that are confirmed beside the defaults
# By number of seeds: Student's quantile at 1 - 0.025 / BEST, so that 95% holds for both settings together.
_STUDENT = {2: 25.452, 3: 6.205, 4: 4.177, 5: 3.495}


@dataclass(frozen=True)
class Confirmed:
    """Settings beside the defaults.

    Attributes:
        trial: that found them.
        settings: all that they set.
        selection_loss: of the search, which chose them by it.
        loss: mean over fresh seeds.
        gain: loss of the defaults minus theirs, paired by seed, with its 95% interval.
        optimism: confirmed loss minus that of the search: what chance lent them.
    """

    trial: int
    settings: Mapping[str, Any]
    selection_loss: float
    loss: float
    gain: Interval
    optimism: float


@dataclass(frozen=True)
class Verdict:
    """The end of a study.

    Attributes:
        recommended: settings that are better; None where the defaults stay.
        candidates: the best settings of the search, best on fresh seeds first.
        defaults_loss: of the defaults on the fresh seeds, the mean.
        defaults_spread: its standard deviation over the seeds.
        defaults_selection_loss: of the defaults in the search.
        trials: number of trials by their state.
        tokens: that search and confirmation trained on.
        seconds: that training them took, with the losses on the way.
        overhead: seconds that went to proposing, noting and copying runs besides.
        front: trials that no other one beats in both aims, by the search's loss; empty with one aim.
    """

    recommended: Mapping[str, Any] | None
    candidates: tuple[Confirmed, ...]
    defaults_loss: float
    defaults_spread: float
    defaults_selection_loss: float | None
    trials: Mapping[str, int]
    tokens: int
    seconds: float
    overhead: float
    front: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As a file and the study's attribute have it."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [
            f"trial {c.trial}: {c.loss:.4f}, {_signed(c.gain)} better than the defaults; the search had said "
            f"{c.selection_loss:.4f} (optimism {c.optimism:+.4f})"
            for c in self.candidates
        ]
        first = (
            f"defaults on {CONFIRMATIONS} fresh seeds: {self.defaults_loss:.4f} +- {self.defaults_spread:.4f}"
        )
        last = "the defaults stay"
        if self.recommended is not None:
            last = "recommended: " + ", ".join(f"{name} {_plain(v)}" for name, v in self.recommended.items())
        time = f"training {self.seconds:.1f} s, the tuner itself {self.overhead:.1f} s"
        front = [
            ", ".join(f"{n} {_plain(v)}" for n, v in row.items() if n != "settings") for row in self.front
        ]
        return "\n".join([first, *rows, *(f"on the front: {line}" for line in front), time, last])


def confirm(study: Study, on_run: Callable[[str], None] = lambda line: None) -> Verdict:
    """Train the best settings and the defaults anew, and judge; what is there already is not trained again.

    Raises:
        ShoalError: every trial failed or diverged.
        Interrupted: Ctrl-C; the same call goes on.
    """
    started = study.runs.clock()
    rows = study.optuna.get_trials(deepcopy=False)
    if not any(row.state == TrialState.COMPLETE for row in rows):
        why = next(
            (r.user_attrs.get("failed") or r.user_attrs.get("diverged") for r in rows if r.user_attrs), None
        )
        raise ShoalError(
            f"each of the {len(rows)} trials failed or diverged; the first one: {why or 'no word'}"
        )
    best = study.best(BEST)
    divisions = [Division(n, seed_of(study.plan.seed, "confirm", n)) for n in range(1, CONFIRMATIONS + 1)]
    cost = [0, 0.0]

    def losses_of(settings: Mapping[str, Any], name: str) -> tuple[list[float], bool]:
        losses, keeps = [], True
        for division in divisions:
            observed = [
                study.runs.observe(settings, division, look, None) for look in study.workload.looks(settings)
            ]
            cost[0] += observed[-1].tokens
            cost[1] += sum(o.seconds for o in observed)
            losses.append(observed[-1].loss)
            keeps &= not broken(study.plan.limits, observed[-1].measured)
            on_run(f"{name} on fresh seed {division.number}: {losses[-1]:.4f}")
        return losses, keeps

    base, _ = losses_of(dict(study.workload.defaults), "the defaults")
    found = []
    for row in best:
        settings = row.user_attrs["settings"]
        try:
            losses, keeps = losses_of(settings, f"trial {row.number}")
        except Diverged:  # on a fresh seed: not to be recommended
            continue
        if keeps:
            found.append(compared(row.number, settings, row.values[0], losses, base))
    found.sort(key=lambda c: (c.loss, c.trial))
    states = [row.state.name.lower() for row in rows]
    own = next((r.values[0] for r in rows if r.user_attrs.get("origin") == DEFAULTS and r.values), None)
    return Verdict(
        recommended(found),
        tuple(found),
        fmean(base),
        stdev(base),
        own,
        {state: states.count(state) for state in sorted(set(states))},
        sum(row.user_attrs.get("tokens", 0) for row in rows) + int(cost[0]),
        sum(row.user_attrs.get("seconds", 0.0) for row in rows) + cost[1],
        sum(row.user_attrs.get("overhead", 0.0) for row in rows) + study.runs.clock() - started,
        tuple(front_of(study.within_limits(), second)) if (second := study.plan.second) else (),
    )


def compared(
    trial: int,
    settings: Mapping[str, Any],
    selection_loss: float,
    losses: Sequence[float],
    base: Sequence[float],
) -> Confirmed:
    """Settings beside the defaults, from their losses on the same fresh seeds."""
    gain = student([b - own for b, own in zip(base, losses, strict=True)])
    mean = fmean(losses)
    return Confirmed(trial, settings, selection_loss, mean, gain, mean - selection_loss)


def recommended(candidates: Sequence[Confirmed]) -> Mapping[str, Any] | None:
    """The first of the candidates whose gain's interval is above 0."""
    better = (c.settings for c in candidates if c.gain.low is not None and c.gain.low > 0)
    return next(better, None)


def student(values: Sequence[float]) -> Interval:
    """The mean of a few values with Student's 95% interval, simultaneous for `BEST` such means."""
    mean, half = fmean(values), _STUDENT[len(values)] * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, len(values))


def _signed(interval: Interval) -> str:
    return f"{interval.mean:+.4f} ({interval.low:+.4f} to {interval.high:+.4f})"


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
