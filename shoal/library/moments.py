"""Sums of hidden states: what a router needs to know of a skill, kept apart for every skill.

Count, sum and second moment in float64. Adding a skill adds its sums and touches no other's, so that any
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
    """Sums over the states of one skill's requests, float64 on the CPU.

    Attributes:
        count: of states.
        total: their sum.
        second: the sum of x x^T.
    """

    count: int
    total: Float[Tensor, " width"]
    second: Float[Tensor, "width width"]

    @classmethod
    def of(cls, states: Float[Tensor, "requests width"]) -> Moments:
        """The sums over some states.

        Raises:
            UsageError: there is none, or one is not finite.
        """
        if not len(states) or not bool(states.isfinite().all()):
            raise UsageError(
                f"{len(states)} states: at least 1 is needed, and all of them finite; check the model"
            )
        x = states.double()
        return cls(len(x), x.sum(0), x.T @ x)

    @property
    def mean(self) -> Float[Tensor, " width"]:
        """Mean state."""
        return self.total / self.count

    @property
    def covariance(self) -> Float[Tensor, "width width"]:
        """Covariance of the states, divided by their count."""
        return self.second / self.count - torch.outer(self.mean, self.mean)

    def tensors(self) -> dict[str, Tensor]:
        """As a file holds them."""
        return {"count": torch.tensor(self.count), "total": self.total, "second": self.second}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], source: object) -> Moments:
        """Sums from the tensors of a file.

        Raises:
            ShoalError: they are no such sums.
        """
        try:
            count, total, second = int(tensors["count"]), tensors["total"], tensors["second"]
        except (KeyError, RuntimeError, ValueError):
            raise _no_sums(source) from None
        width = total.numel()
        shapes = total.shape == (width,) and second.shape == (width, width)
        finite = all(t.dtype == torch.float64 and bool(t.isfinite().all()) for t in (total, second))
        if count < 1 or not shapes or not finite:
            raise _no_sums(source)
        return cls(count, total, second)


@dataclass(frozen=True, eq=False)
class NoneMoments:
    """Sums over texts that need no skill, by the kind of text, float64 on the CPU.

    Texts of no skill are of many kinds, far apart: one mean would lie where none of them is. Every kind has a
    mean of its own; all share one second moment.

    Attributes:
        kinds: their names.
        counts: texts of each kind.
        totals: sum of the states of each kind.
        second: the sum of x x^T over all kinds.
    """

    kinds: tuple[str, ...]
    counts: Float[Tensor, " kinds"]
    totals: Float[Tensor, "kinds width"]
    second: Float[Tensor, "width width"]

    @classmethod
    def of(cls, states: Mapping[str, Float[Tensor, "texts width"]]) -> NoneMoments:
        """The sums over the states of each kind; errors as `Moments.of`."""
        own = [Moments.of(rows) for rows in states.values()]
        counts = torch.tensor([float(m.count) for m in own], dtype=torch.float64)
        totals = torch.stack([m.total for m in own])
        return cls(tuple(states), counts, totals, torch.stack([m.second for m in own]).sum(0))

    @property
    def count(self) -> int:
        """Texts of all kinds."""
        return int(self.counts.sum())

    @property
    def means(self) -> Float[Tensor, "kinds width"]:
        """Mean state of every kind."""
        return self.totals / self.counts[:, None]

    @property
    def covariance(self) -> Float[Tensor, "width width"]:
        """Covariance within the kinds, divided by the count of all texts."""
        return (self.second - self.means.T @ self.totals) / self.count

    def tensors(self) -> dict[str, Tensor]:
        """As a file holds them; the names of the kinds are kept elsewhere."""
        return {"counts": self.counts, "totals": self.totals, "second": self.second}

    @classmethod
    def read(cls, kinds: Sequence[str], tensors: Mapping[str, Tensor], source: object) -> NoneMoments:
        """Sums from the tensors of a file; errors as `Moments.read`."""
        try:
            counts, totals, second = (tensors[name] for name in ("counts", "totals", "second"))
        except KeyError:
            raise _no_sums(source) from None
        width = second.shape[-1]
        fit = counts.shape == (len(kinds),) and totals.shape == (len(kinds), width) and second.dim() == 2
        finite = all(t.dtype == torch.float64 and bool(t.isfinite().all()) for t in (counts, totals, second))
        if not fit or not finite or bool((counts < 1).any()):
            raise _no_sums(source)
        return cls(tuple(kinds), counts, totals, second)


def _no_sums(source: object) -> ShoalError:
    return ShoalError(f"{source} holds no sums of states; copy it again, or learn the skill again")
