"""How an adapter is refined on a few examples, as it was learned for one network: a value and its file.

A rate for each module type and group of layers, a decay towards the start, the steps for each number of
examples, and a rule that sets the steps by what the first ones show. The mean of the states of the second
half of the steps is kept. Knows nothing of how it was learned.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shoal.errors import ShoalError, UsageError, reason
from shoal.file_formats import read_json
from shoal.models.modules import TargetModule

log = logging.getLogger(__name__)

REFINING_FILE = "refining.json"
FORMAT = 1
GROUPS = 12  # rates, at most, where there are no more module types
LEAST_RATE, MOST_RATE = 1e-6, 1e-1
MOST_STEPS = 1000
LOOK = 4  # steps after which a stopping rule decides
FEATURES = ("log examples", "log loss", "log fall", "agreement")


@dataclass(frozen=True)
class Seen:
    """Observations of the first `LOOK` steps, none of them on held-out examples.

    Attributes:
        examples: that are trained on.
        losses: of those steps, nats per token.
        agreement: cosine of the gradients of two halves of the first batch, in [-1, 1].
    """

    examples: int
    losses: Sequence[float]
    agreement: float

    def features(self) -> list[float]:
        """The numbers that `FEATURES` names."""
        first, last = (max(loss, 1e-3) for loss in (self.losses[0], self.losses[-1]))
        return [math.log(self.examples), math.log(first), math.log(first / last), self.agreement]


@dataclass(frozen=True)
class StoppingRule:
    """Log of the steps as a linear function of what was seen.

    Attributes:
        weights: one for each of `FEATURES`.
        intercept: without features.
        least: steps, at least.
        most: steps, at most.
    """

    weights: tuple[float, ...]
    intercept: float
    least: int
    most: int

    def steps(self, seen: Seen) -> int:
        """Steps in all, those that were seen included."""
        value = self.intercept + sum(w * f for w, f in zip(self.weights, seen.features(), strict=True))
        return round(math.exp(min(max(value, math.log(self.least)), math.log(self.most))))


@dataclass(frozen=True)
class Refining:
    """Learned refining of the adapters of one network.

    Attributes:
        base_model: that the network is for.
        network: SHA-256 of the network's weights file, in hex.
        rates: group of modules, as `group_modules` names it -> learning rate.
        decay: share of the way back to the start after every step, in [0, 1).
        steps: number of examples -> optimiser steps.
        rule: where the first steps decide on their number; None takes it from `steps`.
        seed: of the episodes that it was learned from.
        tasks: of those episodes.
    """

    base_model: str
    network: str
    rates: Mapping[str, float]
    decay: float
    steps: Mapping[int, int]
    rule: StoppingRule | None = None
    seed: int = 0
    tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check every number; raises UsageError."""
        for name, rate in self.rates.items():
            if not (math.isfinite(rate) and LEAST_RATE <= rate <= MOST_RATE):
                raise UsageError(
                    f"rate {rate:g} of {name} is outside {LEAST_RATE:g}..{MOST_RATE:g}; learn it again"
                )
        if not self.rates or not 0 <= self.decay < 1:
            raise UsageError(
                f"{len(self.rates)} rates with decay {self.decay:g}; at least 1 and 0 to 1 are needed"
            )
        for count, steps in self.steps.items():
            if count < 1 or not 1 <= steps <= MOST_STEPS:
                raise UsageError(
                    f"{steps} steps for {count} examples; 1..{MOST_STEPS} for 1 or more are allowed"
                )
        if not self.steps:
            raise UsageError("steps are known for 0 numbers of examples; at least 1 is needed, learn them")
        if self.rule is not None:
            numbers = (*self.rule.weights, self.rule.intercept)
            if len(self.rule.weights) != len(FEATURES) or not all(map(math.isfinite, numbers)):
                raise UsageError(f"the stopping rule needs {len(FEATURES)} finite weights; learn it again")
            if not 1 <= self.rule.least <= self.rule.most <= MOST_STEPS:
                raise UsageError(
                    f"the stopping rule allows {self.rule.least}..{self.rule.most} steps, the limits are "
                    f"1..{MOST_STEPS}; learn it again"
                )

    @property
    def sha256(self) -> str:
        """Of its numbers, in hex."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    @property
    def most_steps(self) -> int:
        """Steps, at most."""
        return max([*self.steps.values(), self.rule.most if self.rule else 0])

    def module_rates(self, targets: Sequence[TargetModule]) -> dict[str, float]:
        """Module name -> learning rate.

        Raises:
            UsageError: it has no rate for a module.
        """
        groups = group_modules(targets)
        missing = sorted(set(groups.values()) - self.rates.keys())
        if missing:
            raise UsageError(
                f"there is no refining rate for {missing[0]}; learn it for this network's modules"
            )
        return {name: self.rates[group] for name, group in groups.items()}

    def steps_for(self, examples: int) -> int:
        """Steps for a number of examples: between two known numbers in proportion to its logarithm.

        Beyond them the nearest known one counts, which is logged.
        """
        known = sorted(self.steps)
        if not known[0] <= examples <= known[-1]:
            nearest = known[0] if examples < known[0] else known[-1]
            log.warning(
                "refining was learned for %d to %d examples, there are %d: it takes the %d steps of %d",
                *(known[0], known[-1], examples, self.steps[nearest], nearest),
            )
            return self.steps[nearest]
        above = next(count for count in known if count >= examples)
        below = max(count for count in known if count <= examples)
        if above == below:
            return self.steps[above]
        share = math.log(examples / below) / math.log(above / below)
        return round(self.steps[below] + share * (self.steps[above] - self.steps[below]))

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "format": FORMAT,
            **asdict(self),
            "steps": {str(count): steps for count, steps in self.steps.items()},
            "tasks": list(self.tasks),
        }


def averaged_since(steps: int) -> int:
    """The step after which states are averaged, of so many: the mean of the second half is kept."""
    return steps // 2


def group_modules(targets: Sequence[TargetModule]) -> dict[str, str]:
    """Module name -> group that shares a rate: its type, and where in the stack of layers it is.

    The layers are cut into as many parts as `GROUPS` allows, the same for every type.
    """
    types = dict.fromkeys(t.type for t in targets)
    layers = sorted({t.layer for t in targets})
    parts = min(max(1, GROUPS // len(types)), len(layers))
    part = {layer: place * parts // len(layers) + 1 for place, layer in enumerate(layers)}
    return {t.name: f"{t.type} {part[t.layer]}/{parts}" for t in targets}


def read_refining(path: Path, *, base_model: str, network: str, targets: Sequence[TargetModule]) -> Refining:
    """The refining of a file, for this network and no other.

    Raises:
        ShoalError: the file is missing or damaged, of another format, base model or network, or holds a
            number outside its limits.
    """
    record = read_json(path, format=FORMAT)
    try:
        rule = record["rule"]
        found = Refining(
            base_model=str(record["base_model"]),
            network=str(record["network"]),
            rates={str(name): float(rate) for name, rate in record["rates"].items()},
            decay=float(record["decay"]),
            steps={int(count): int(steps) for count, steps in record["steps"].items()},
            rule=None
            if rule is None
            else StoppingRule(
                tuple(map(float, rule["weights"])),
                float(rule["intercept"]),
                int(rule["least"]),
                int(rule["most"]),
            ),
            seed=int(record["seed"]),
            tasks=tuple(map(str, record["tasks"])),
        )
        found.module_rates(targets)
    except (UsageError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ShoalError(
            f"{path} does not say how to refine ({reason(error)}); copy or learn it again"
        ) from None
    for what, has, wanted in (
        ("base model", found.base_model, base_model),
        ("network", found.network, network),
    ):
        if has != wanted:
            raise ShoalError(
                f"{path} was learned for the {what} {has:.60}, not {wanted:.60}; remove it, or learn "
                "it again with: shoal train refining"
            )
    return found
