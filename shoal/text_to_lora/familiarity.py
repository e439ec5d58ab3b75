"""The distance of a description from a hypernetwork's training tasks, and a probe for nonsense.

Knows sentence vectors and names; nothing of encoders, texts or adapters. A hypernetwork gives an adapter for
any text, and a harmful one for nonsense. A probe separates nonsense from descriptions, as its distance does
not separate it from a sensible task of a new kind. Both are measured on the training tasks alone; the rules
are Shoal's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from shoal.errors import UsageError
from shoal.training.logistic import fit_logistic

SENSE_PENALTY = 1e-5  # of the probe's squared weights
NONSENSE_SHARE = 0.1  # of texts, as the probe takes it: to call a description nonsense is the worse mistake


@dataclass(frozen=True)
class Familiarity:
    """The familiarity of one description.

    Attributes:
        nearest: names of the nearest training tasks -> their distance, nearest first.
        distance: of the nearest one, 1 - cosine, from 0 to 2.
        confidence: share of a trained LoRA's score that is to be expected, see `KnownTasks.confidence`; 0 for
            nonsense.
        far: True where it is farther than descriptions of other tasks usually are.
        nonsense: True where it reads as random letters or words rather than as a description.
        hard: ROUGE-L, in [0, 1], that even a LoRA trained on the nearest task has there, where that is low;
            else None.
    """

    nearest: Mapping[str, float]
    distance: float
    confidence: float
    far: bool
    nonsense: bool
    hard: float | None = None

    def facts(self) -> dict[str, Any]:
        """The same as an adapter states it."""
        return {
            "nearest_tasks": dict(self.nearest),
            "distance": round(self.distance, 4),
            "confidence": round(self.confidence, 4),
            "far": self.far,
            "nonsense": self.nonsense,
            **({} if self.hard is None else {"hard": self.hard}),
        }


@dataclass(frozen=True, eq=False)
class KnownTasks:
    """The training tasks as points: the mean direction of each one's descriptions.

    Attributes:
        names: of the tasks.
        centres: unit vectors, (tasks, dim), float32.
        near: distance up to which descriptions of other tasks are usual.
        far: distance from which random letters are.
        sense: weights and, last, bias of a linear probe of unit vectors, (dim + 1,), float32; its value
            is below 0 for nonsense.
        reached: confidence up to `near`, and from `far`. Where it was measured, these are the shares of a
            trained LoRA's score that adapters of tasks which were not trained on reach.
        hard: names of tasks that the base model can hardly do -> ROUGE-L, in [0, 1], of a LoRA that was
            trained on the task.
    """

    names: tuple[str, ...]
    centres: Float[Tensor, "tasks dim"]
    near: float
    far: float
    sense: Float[Tensor, " dim_and_1"]
    reached: tuple[float, float] = (1.0, 0.0)
    hard: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count, dim = self.centres.shape
        if not self.names or len(self.names) != count or not 0 <= self.near < self.far <= 2:
            raise UsageError(
                f"known tasks need one centre a name, got {count} for {len(self.names)}, and "
                f"0 <= near < far <= 2, got {self.near:.3g} and {self.far:.3g}; measure them again"
            )
        if not 0 <= self.reached[1] <= self.reached[0] <= 1:
            raise UsageError(
                f"confidence is to fall from {self.reached[0]:.3g} to {self.reached[1]:.3g}; both must be in "
                "[0, 1], the first no smaller: measure it again"
            )
        if strangers := sorted(self.hard.keys() - set(self.names)):
            raise UsageError(f"{strangers[0]} is called hard and is none of the {count} tasks; name those")
        if self.sense.shape != (dim + 1,):
            raise UsageError(
                f"the probe for nonsense has {self.sense.numel()} numbers, not {dim + 1}; measure it again"
            )

    @classmethod
    def measure(
        cls,
        names: Sequence[str],
        descriptions: Sequence[Float[Tensor, "_ dim"]],
        letters: Float[Tensor, "_ dim"],
        words: Float[Tensor, "_ dim"],
        sensible: Float[Tensor, "_ dim"] | None = None,
    ) -> KnownTasks:
        """Centres of the tasks' descriptions, the two distances, and the probe.

        `far` is the distance that nine in ten texts of random letters exceed. `near` is the 95th percentile
        of the distance from a description to the nearest centre of another task, as an unseen task's would
        be, or a little less than `far` where that is less. The probe tells the descriptions, and what else is
        sensible, from both kinds of nonsense, by logistic regression.

        Args:
            names: of the tasks.
            descriptions: sentence vectors of each task's descriptions.
            letters: those of random letters.
            words: those of random words of the descriptions.
            sensible: those of further descriptions that are no place of a task.

        Raises:
            UsageError: fewer than two tasks, or letters that are no farther than most descriptions.
        """
        if len(names) < 2:
            raise UsageError(f"distances between tasks need at least 2 of them, got {len(names)}; add one")
        directions = [F.normalize(own.float(), dim=-1) for own in descriptions]
        centres = torch.stack([_centre(own) for own in descriptions])
        others = []
        for task, own in enumerate(directions):
            away = 1 - own @ centres.T
            away[:, task] = torch.inf
            others.append(away.min(-1).values)
        nonsense = F.normalize(torch.cat([letters, words]).float(), dim=-1)
        away = 1 - nonsense[: len(letters)] @ centres.T
        usual, far = torch.cat(others), float(away.min(-1).values.quantile(0.1))
        middle = float(usual.median())
        if middle >= far:
            raise UsageError(
                f"nonsense is {far:.3g} from the nearest task and most descriptions {middle:.3g} from another"
                " one: distances tell nothing here; add tasks"
            )
        near = min(float(usual.quantile(0.95)), 0.95 * far)
        sense = torch.cat(directions)
        if sensible is not None:
            sense = torch.cat([sense, F.normalize(sensible.float(), dim=-1)])
        return cls(tuple(names), centres, near, far, _sense(sense, nonsense))

    def with_tasks(self, added: Mapping[str, Float[Tensor, "_ dim"]]) -> KnownTasks:
        """With more tasks, by sentence vectors of each one's descriptions; a name that is known is replaced.

        Distances and the probe for nonsense stay as they were measured.
        """
        centres = dict(zip(self.names, self.centres, strict=True))
        centres |= {name: _centre(own) for name, own in added.items()}
        return replace(self, names=tuple(centres), centres=torch.stack(list(centres.values())))

    def compare(self, sentences: Float[Tensor, "texts dim"], count: int = 3) -> list[Familiarity]:
        """Where some descriptions stand, with the `count` nearest tasks of each."""
        directions = F.normalize(sentences.float().cpu(), dim=-1)
        away = 1 - directions @ self.centres.T
        distances, tasks = away.topk(min(count, len(self.names)), dim=-1, largest=False)
        nonsense = directions @ self.sense[:-1] + self.sense[-1] < 0
        return [
            Familiarity(
                {self.names[i]: round(d, 4) for i, d in zip(row, near, strict=True)},
                near[0],
                0.0 if says_nothing else self.confidence(near[0]),
                near[0] > self.near,
                says_nothing,
                self.hard.get(self.names[row[0]]),
            )
            for row, near, says_nothing in zip(
                tasks.tolist(), distances.tolist(), nonsense.tolist(), strict=True
            )
        ]

    def confidence(self, distance: float) -> float:
        """The first of `reached` up to `near`, the second from `far`, linear between."""
        nearness = min(1.0, max(0.0, (self.far - distance) / (self.far - self.near)))
        return self.reached[1] + nearness * (self.reached[0] - self.reached[1])


def _centre(descriptions: Float[Tensor, "_ dim"]) -> Float[Tensor, " dim"]:
    return F.normalize(F.normalize(descriptions.float(), dim=-1).mean(0), dim=-1)


def _sense(
    descriptions: Float[Tensor, "_ dim"], nonsense: Float[Tensor, "_ dim"]
) -> Float[Tensor, " dim_and_1"]:
    labels = torch.cat([torch.ones(len(descriptions)), torch.zeros(len(nonsense))]).long()
    weight, bias = fit_logistic(
        torch.cat([descriptions, nonsense]), labels, 2, penalty=SENSE_PENALTY, balanced=True
    )
    rare = math.log((1 - NONSENSE_SHARE) / NONSENSE_SHARE)
    return torch.cat([weight[1] - weight[0], bias[1:] - bias[:1] + rare])
