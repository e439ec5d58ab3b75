"""Limits that settings must keep, such as adapter_rank<=16 for vLLM or bytes<=2e6, and the front of two aims.

A limit on a setting is seen before a run; one on what only a run shows, after it. Optuna's samplers learn
from both. Knows nothing of how anything is measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, Trial

from shoal.errors import UsageError

# Of a whole run: bytes of the adapter's tensors in float32, seconds of one request, and the share of general
# questions answered by the base model that are still answered.
MEASURED = ("bytes", "seconds", "general_kept")
SMALL = MEASURED[:2]  # that may be a second aim
OVER = "over_limits"  # attribute of a trial: names of the limits that it breaks
_FORM = re.compile(r"\s*([a-z_-]+)\s*(<=|>=)\s*([0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*")


@dataclass(frozen=True)
class Limit:
    """A bound that a setting or a measured value must keep.

    Attributes:
        name: of a field, or one of `MEASURED`.
        bound: that it may reach.
        at_least: the value must not be below it; else not above.
    """

    name: str
    bound: float
    at_least: bool = False

    def excess(self, value: float) -> float:
        """By how much a value breaks it; 0 or less where it does not."""
        return self.bound - value if self.at_least else value - self.bound

    def __str__(self) -> str:
        return f"{self.name}{'>=' if self.at_least else '<='}{self.bound:g}"


def read_limit(text: str, known: Sequence[str]) -> Limit:
    """A limit as people write it.

    Args:
        text: such as adapter_rank<=16.
        known: settings and measured values that may have one.

    Raises:
        UsageError: it has another form, or another name.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise UsageError(f"limit {text}: write NAME<=NUMBER or NAME>=NUMBER, such as adapter_rank<=16")
    name = match[1].replace("-", "_")
    if name not in known:
        raise UsageError(f"limit {text}: {name} has no limit; choose from {', '.join(known)}")
    return Limit(name, float(match[3]), match[2] == ">=")


def check_second(second: str | None, sampler: str, pruner: str) -> None:
    """See that a second aim can be pursued.

    Raises:
        UsageError: it is not measured as something to keep small, or sampler or pruner knows one aim alone.
    """
    if second is None:
        return
    if second not in SMALL:
        raise UsageError(f"second aim {second}: choose from {', '.join(SMALL)}")
    if sampler == "cmaes":
        raise UsageError("sampler cmaes has one aim; with a second one give tpe, random, qmc or gp")
    if pruner != "none":
        raise UsageError(f"pruner {pruner} compares one aim; with a second one give none")


def check_defaults(limits: Sequence[Limit], defaults: Mapping[str, Any]) -> None:
    """See that the defaults keep all limits, as there is no verdict without them.

    Raises:
        UsageError: they break one.
    """
    if over := broken(limits, defaults):
        raise UsageError(
            f"the defaults break the limit {over[0]}: theirs is {float(defaults[over[0].name]):g}; loosen "
            "it, or fix a setting that keeps it"
        )


def broken(limits: Sequence[Limit], values: Mapping[str, Any]) -> list[Limit]:
    """The limits that values break; those without a value here are kept."""
    return [n for n in limits if values.get(n.name) is not None and n.excess(float(values[n.name])) > 0]


def note_limits(trial: Trial, limits: Sequence[Limit], values: Mapping[str, Any]) -> bool:
    """Tell Optuna how far values are from their limits; True where all are kept."""
    known = [limit for limit in limits if values.get(limit.name) is not None]
    for limit in known:
        if str(limit) not in trial.constraints:  # else a run that goes on has it
            trial.set_constraint(str(limit), limit.excess(float(values[limit.name])))
    over = broken(known, values)
    if over:
        trial.set_user_attr(OVER, [str(limit) for limit in over])
    return not over


def front_of(rows: Sequence[FrozenTrial], second: str) -> list[dict[str, Any]]:
    """The trials that no other one beats in loss and in a second aim, by their loss."""
    found, least = [], float("inf")
    for row in sorted(rows, key=lambda t: (t.values, t.number)):
        if row.values[1] < least:
            least = row.values[1]
            about = {"trial": row.number, "loss": row.values[0], second: row.values[1]}
            found.append({**about, "settings": row.user_attrs["settings"]})
    return found
