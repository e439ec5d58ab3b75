"""Sums of hidden states: what a router needs to know of a skill, kept apart for every skill.

Counts, sums and second moment in float64. Adding a skill adds its sums and touches no other's, so that any
order of learning gives the same router, and a skill that is forgotten leaves nothing. Knows tensors and their
files; nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.errors import ShoalError, UsageError


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over the states of one skill's requests, or of texts that need none, float64 on the CPU.

    The requests of a skill are one kind. Texts of no skill are of many kinds, far apart: one mean would lie
    where none of them is. So every kind has a mean of its own; all share one second moment.

    Attributes:
        kinds: their names.
        counts: states of each kind.
        totals: sum of the states of each kind.
        second: the sum of x x^T over all kinds.
    """

    kinds: tuple[str, ...]
    counts: Float[Tensor, " kinds"]
    totals: Float[Tensor, "kinds width"]
    second: Float[Tensor, "width width"]

    @classmethod
    def of(cls, states: Mapping[str, Float[Tensor, "requests width"]]) -> Moments:
        """The sums over the states of each kind.

        Raises:
            UsageError: a kind has none, or one is not finite.
        """
        for kind, rows in states.items():
            if not len(rows) or not bool(rows.isfinite().all()):
                raise UsageError(
                    f"{len(rows)} states of {kind}: at least 1 is needed, and all of them finite; check the "
                    "model"
                )
        own = [rows.double() for rows in states.values()]
        counts = torch.tensor([float(len(x)) for x in own], dtype=torch.float64)
        every = torch.cat(own)
        return cls(tuple(states), counts, torch.stack([x.sum(0) for x in own]), every.T @ every)

    @property
    def count(self) -> int:
        """States of all kinds."""
        return int(self.counts.sum())

    @property
    def means(self) -> Float[Tensor, "kinds width"]:
        """Mean state of every kind."""
        return self.totals / self.counts[:, None]

    @property
    def covariance(self) -> Float[Tensor, "width width"]:
        """Covariance within the kinds, divided by the count of all states."""
        return (self.second - self.means.T @ self.totals) / self.count

    def tensors(self) -> dict[str, Tensor]:
        """As a file holds them; the names of the kinds are kept elsewhere."""
        return {"counts": self.counts, "totals": self.totals, "second": self.second}

    @classmethod
    def read(cls, kinds: Sequence[str], tensors: Mapping[str, Tensor], source: object) -> Moments:
        """Sums from the tensors of a file.

        Raises:
            ShoalError: they are no such sums.
        """
        found = [tensors[name] for name in ("counts", "totals", "second") if name in tensors]
        width = found[-1].shape[-1] if found and found[-1].dim() else 0
        fit = [tuple(t.shape) for t in found] == [(len(kinds),), (len(kinds), width), (width, width)]
        finite = all(t.dtype == torch.float64 and bool(t.isfinite().all()) for t in found)
        if not fit or not finite or bool((found[0] < 1).any()):
            raise ShoalError(f"{source} holds no sums of states; copy it again, or learn the skill again")
        return cls(tuple(kinds), *found)
