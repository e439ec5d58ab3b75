"""The additive router: a shrunken linear discriminant of hidden states, from sums alone.

The covariance within classes is pooled over the skills and `none`, each with the same weight, scaled to
correlations and shrunk towards the identity. `none` is as many rows as there are kinds of its texts. Knows
sums; nothing of models, adapters or files.

Sources: Fisher 1936, "The use of multiple measurements in taxonomic problems"; the shrinkage is that of Chen,
Wiesel, Eldar and Hero, "Shrinkage Algorithms for MMSE Covariance Estimation", arXiv 0907.4698, equation 23.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.errors import UsageError
from shoal.library.moments import Moments
from shoal.transformer2.router import Decision, decision_of

LEAST_SCALE = 1e-6  # of a state's number within classes


@dataclass(frozen=True, eq=False)
class Discriminant:
    """A linear classifier of hidden states, some of whose classes have several rows.

    Attributes:
        skills: its classes but the last, which is `NONE`, in the order of their names.
        kinds: of the rows of `NONE`.
        layer: decoder layer whose input it reads, from 0.
        weight: of the skills' rows, then of the kinds', float64.
        bias: one number per row.
    """

    skills: tuple[str, ...]
    kinds: tuple[str, ...]
    layer: int
    weight: Float[Tensor, "rows width"]
    bias: Float[Tensor, " rows"]

    def rows(self, states: Float[Tensor, "batch width"]) -> Float[Tensor, "batch rows"]:
        """The probability of every row, float64."""
        return (states.double() @ self.weight.T + self.bias).softmax(-1)

    def probabilities(self, states: Float[Tensor, "batch width"]) -> Float[Tensor, "batch classes"]:
        """The probability of every skill and, last, of `NONE`, float64."""
        rows, skills = self.rows(states), len(self.skills)
        return torch.cat([rows[:, :skills], rows[:, skills:].sum(-1, keepdim=True)], -1)

    def decide(self, states: Float[Tensor, "batch width"]) -> list[Decision]:
        """One decision for each state."""
        return [decision_of(self.skills, row) for row in self.probabilities(states)]

    def routes(self, states: Float[Tensor, "batch width"]) -> tuple[str, ...]:
        """The likeliest skill, or `NONE`, for each state."""
        return tuple(decision.skill for decision in self.decide(states))

    def kinds_of(self, states: Float[Tensor, "batch width"]) -> list[str | None]:
        """For each state the kind of `NONE` whose row is the likeliest; None where that of a skill is."""
        names = (*[None] * len(self.skills), *self.kinds)
        return [names[i] for i in self.rows(states).argmax(-1).tolist()]


def fit_discriminant(
    skills: Mapping[str, Moments],
    none: Moments,
    layer: int,
    *,
    without: Collection[str] = (),
    shrinkage: float | None = None,
) -> Discriminant:
    """The discriminant of some sums; whatever the order of the skills, the same bits.

    Args:
        skills: name -> sums over its requests.
        none: sums over texts of no skill.
        layer: whose input the states are.
        without: kinds of `none` that get no row.
        shrinkage: share of the identity in the correlations, in [0, 1]; None for that of `oas`.

    Raises:
        UsageError: states of different widths, or a shrinkage out of range.
    """
    names, width = sorted(skills), none.second.shape[-1]
    odd = next((name for name in names if skills[name].totals.shape != (1, width)), None)
    if odd is not None:
        raise UsageError(
            f"the states of {odd} have {skills[odd].totals.numel()} numbers, those of no skill {width}; "
            "learn it again with this library's model"
        )
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise UsageError(f"shrinkage {shrinkage:g} is outside 0 to 1; choose a value in that range")
    share = 1 / (len(names) + 1)
    within = none.covariance
    for name in names:
        within = within + skills[name].covariance
    within = within * share
    scale = within.diagonal().clamp(min=LEAST_SCALE**2).sqrt()
    correlations = within / torch.outer(scale, scale)
    if shrinkage is None:
        shrinkage = oas(correlations, none.count + sum(skills[name].count for name in names))
    level = correlations.trace() / width
    shrunk = (1 - shrinkage) * correlations + shrinkage * level * torch.eye(width, dtype=torch.float64)
    kept = [i for i, kind in enumerate(none.kinds) if kind not in without]
    means = torch.cat([*(skills[name].means for name in names), none.means[kept]]) / scale
    weight = torch.linalg.lstsq(shrunk, means.T, driver="gelsd").solution.T
    logs = [math.log(share)] * len(names) + [math.log(share / len(kept)) for _ in kept]
    bias = torch.tensor(logs, dtype=torch.float64) - (means * weight).sum(-1) / 2
    return Discriminant(tuple(names), tuple(none.kinds[i] for i in kept), layer, weight / scale, bias)


def oas(covariance: Float[Tensor, "width width"], count: int) -> float:
    """The oracle-approximating shrinkage of a covariance of so many samples, in [0, 1]."""
    width = covariance.shape[0]
    level = float(covariance.trace()) / width
    square = float(covariance.square().mean())
    rest = (count + 1) * (square - level**2 / width)
    return 1.0 if rest <= 0 else min(1.0, (square + level**2) / rest)


def kinds_like(
    moments: Moments,
    none: Moments,
    states: Float[Tensor, "requests width"],
    layer: int,
    most: float = 0.1,
) -> tuple[str, ...]:
    """The kinds of texts that one skill's own requests cannot be told from, in the order of `none`.

    Those that take more than a share of its requests, none of which is in its sums, while there is no other
    skill; so it depends on this skill alone.

    Args:
        moments: of the skill.
        none: of the kinds.
        states: of requests that are not in `moments`; without any, there are no such kinds.
        layer: whose input they are.
        most: share of the requests.
    """
    without: set[str] = set()
    while len(states):
        found = fit_discriminant({"skill": moments}, none, layer, without=without).kinds_of(states)
        taken = {kind for kind in found if kind is not None and found.count(kind) > most * len(found)}
        if not taken:
            break
        without |= taken
    return tuple(kind for kind in none.kinds if kind in without)
