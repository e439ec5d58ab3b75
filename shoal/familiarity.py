"""How near a description is to the tasks that a hypernetwork was trained on, and what trust that earns.

Knows sentence vectors and names; nothing of encoders, texts or adapters. A hypernetwork gives an adapter for
any text. Far from its training tasks, and for nonsense, that adapter is noise, so it is mixed with that of no
description by the confidence found here. The two distances between which confidence falls are measured on the
training tasks alone; the rule is Shoal's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from shoal.errors import UsageError


@dataclass(frozen=True)
class Familiarity:
    """What is known of one description.

    Attributes:
        nearest: names of the nearest training tasks -> their distance, nearest first.
        distance: of the nearest one, 1 - cosine, from 0 to 2.
        confidence: 1 where descriptions of other tasks are usual, 0 where nonsense is, linear between.
    """

    nearest: Mapping[str, float]
    distance: float
    confidence: float


@dataclass(frozen=True, eq=False)
class KnownTasks:
    """The training tasks as points: the mean direction of each one's descriptions.

    Attributes:
        names: of the tasks.
        centres: unit vectors, (tasks, dim), float32.
        near: distance up to which confidence is 1.
        far: distance from which it is 0.
    """

    names: tuple[str, ...]
    centres: Float[Tensor, "tasks dim"]
    near: float
    far: float

    def __post_init__(self) -> None:
        if not self.names or len(self.names) != len(self.centres) or not 0 <= self.near < self.far <= 2:
            raise UsageError(
                f"known tasks need one centre a name, got {len(self.centres)} for {len(self.names)}, and "
                f"0 <= near < far <= 2, got {self.near:.3g} and {self.far:.3g}; measure them again"
            )

    @classmethod
    def measure(
        cls,
        names: Sequence[str],
        descriptions: Sequence[Float[Tensor, "_ dim"]],
        nonsense: Float[Tensor, "_ dim"],
    ) -> KnownTasks:
        """Centres of the tasks' descriptions, and the two distances.

        `far` is the distance that nine in ten nonsense texts exceed: a network that reads states makes worse
        than nothing of them. `near` is the 95th percentile of the distance from a description to the nearest
        centre of another task, as an unseen task's would be, or a little less than `far` where that is less.

        Raises:
            UsageError: fewer than two tasks, or nonsense that is no farther than most descriptions.
        """
        if len(names) < 2:
            raise UsageError(f"distances between tasks need at least 2 of them, got {len(names)}; add one")
        directions = [F.normalize(own.float(), dim=-1) for own in descriptions]
        centres = F.normalize(torch.stack([own.mean(0) for own in directions]), dim=-1)
        others = []
        for task, own in enumerate(directions):
            away = 1 - own @ centres.T
            away[:, task] = torch.inf
            others.append(away.min(-1).values)
        away = 1 - F.normalize(nonsense.float(), dim=-1) @ centres.T
        usual, far = torch.cat(others), float(away.min(-1).values.quantile(0.1))
        middle = float(usual.median())
        if middle >= far:
            raise UsageError(
                f"nonsense is {far:.3g} from the nearest task and most descriptions {middle:.3g} from another"
                " one: distances tell nothing here; add tasks"
            )
        return cls(tuple(names), centres, min(float(usual.quantile(0.95)), 0.95 * far), far)

    def compare(self, sentences: Float[Tensor, "texts dim"], count: int = 3) -> list[Familiarity]:
        """Where some descriptions stand, with the `count` nearest tasks of each."""
        away = 1 - F.normalize(sentences.float().cpu(), dim=-1) @ self.centres.T
        distances, tasks = away.topk(min(count, len(self.names)), dim=-1, largest=False)
        return [
            Familiarity(
                {self.names[i]: round(d, 4) for i, d in zip(row, near, strict=True)},
                near[0],
                self.confidence(near[0]),
            )
            for row, near in zip(tasks.tolist(), distances.tolist(), strict=True)
        ]

    def confidence(self, distance: float) -> float:
        """1 up to `near`, 0 from `far`, linear between."""
        return min(1.0, max(0.0, (self.far - distance) / (self.far - self.near)))
