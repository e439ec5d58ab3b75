"""Low-rank adapters as values: `delta weight = alpha / rank * B A`.

Knows tensors only; how a value changes a model is `shoal.adapters.hooks`.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from shoal.adapters.base import fingerprint_of, nbytes_of
from shoal.errors import UsageError
from shoal.models.modules import TargetModule, check_rank


class LoraFactors(NamedTuple):
    """The two factors of one module's delta weight; a leading batch axis gives every sample its own."""

    a: Float[Tensor, "*batch rank in_features"]
    b: Float[Tensor, "*batch out_features rank"]

    def to(self, *args: Any) -> LoraFactors:
        """Both factors through `Tensor.to`: a device, a dtype, or both."""
        return LoraFactors(self.a.to(*args), self.b.to(*args))

    def padded(self, rank: int) -> LoraFactors:
        """The same delta weight at a larger rank, with zeros."""
        more = rank - self.a.shape[-2]
        return LoraFactors(F.pad(self.a, (0, 0, 0, more)), F.pad(self.b, (0, more)))

    def squared_norm(self) -> Float[Tensor, "*batch"]:
        """Squared Frobenius norm of B A, unscaled, as the trace of two small products."""
        return ((self.b.mT @ self.b) * (self.a @ self.a.mT)).sum((-2, -1))


@dataclass(frozen=True, eq=False)
class LoRA:
    """One adapter: a pair of factors for every adapted module, and the alpha that scales them.

    Attributes:
        factors: module name -> factors A (rank, in) and B (out, rank), of one rank. Those of experts, whose
            weights are one parameter, are stacked: A (experts, rank, in) and B (experts, out, rank).
        alpha: numerator of the scaling.
    """

    factors: Mapping[str, LoraFactors]
    alpha: float

    def __post_init__(self) -> None:
        ranks = {rank for f in self.factors.values() for rank in (f.a.shape[-2], f.b.shape[-1])}
        if len(ranks) != 1:
            raise UsageError(
                f"a LoRA needs modules of one rank, got ranks {sorted(ranks)}; pad or truncate them first"
            )

    @classmethod
    def identity(
        cls,
        targets: Sequence[TargetModule],
        rank: int,
        alpha: float,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> LoRA:
        """The adapter that changes nothing: A as Kaiming-uniform noise, B zero, ready to be trained.

        Raises:
            UsageError: the rank is below 1 or above the smaller side of a target.
        """
        check_rank(targets, rank)
        factors = {}
        for t in targets:
            bound = 1 / math.sqrt(t.in_features)  # kaiming_uniform with a = sqrt(5), as PEFT initialises A
            a = torch.empty(rank, t.in_features, dtype=dtype).uniform_(-bound, bound, generator=generator)
            factors[t.name] = LoraFactors(a, torch.zeros(t.out_features, rank, dtype=dtype))
        return cls(factors, alpha)

    @property
    def rank(self) -> int:
        """Rank of every factor pair."""
        return next(iter(self.factors.values())).a.shape[-2]

    @property
    def scaling(self) -> float:
        """Alpha / rank."""
        return self.alpha / self.rank

    def delta_weight(self, name: str) -> Float[Tensor, "*experts out_features in_features"]:
        """`scaling * B A` of one module, (out, in), or of all its experts, in the factors' dtype."""
        a, b = self.factors[name]
        return self.scaling * (b @ a)

    @property
    def nbytes(self) -> int:
        """Bytes of all factors."""
        return nbytes_of(self._tensors())

    def fingerprint(self) -> str:
        """SHA-256 of alpha and all factors, in hex."""
        return fingerprint_of(self._tensors(), "LoRA", self.alpha)

    def norms(self) -> dict[str, float]:
        """Module name -> Frobenius norm of the delta weight."""
        squares = {name: f.to(torch.float32).squared_norm() for name, f in self.factors.items()}
        return {name: abs(self.scaling) * float(s.clamp(min=0).sum().sqrt()) for name, s in squares.items()}

    def to(self, *args: Any) -> LoRA:
        """The same adapter on another device or in another dtype."""
        return replace(self, factors={name: f.to(*args) for name, f in self.factors.items()})

    def copy(self) -> LoRA:
        """The same adapter with tensors of its own."""
        own = {name: LoraFactors(f.a.clone(), f.b.clone()) for name, f in self.factors.items()}
        return replace(self, factors=own)

    def __mul__(self, scale: float) -> LoRA:
        """The adapter whose every delta weight is `scale` times this one's."""
        scaled = {name: LoraFactors(f.a, f.b * scale) for name, f in self.factors.items()}
        return replace(self, factors=scaled)

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        """True where alpha, modules and every factor are equal bit for bit."""
        if not isinstance(other, LoRA):
            return NotImplemented
        return (
            self.alpha == other.alpha
            and self.factors.keys() == other.factors.keys()
            and all(
                torch.equal(f.a, other.factors[n].a) and torch.equal(f.b, other.factors[n].b)
                for n, f in self.factors.items()
            )
        )

    __hash__ = None  # type: ignore[assignment]

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{name}.{letter}": t for name, f in self.factors.items() for letter, t in f._asdict().items()
        }


@dataclass(frozen=True, eq=False)
class BatchedLoRA:
    """A different adapter for every sample of a batch: A (batch, rank, in), B (batch, out, rank)."""

    factors: Mapping[str, LoraFactors]
    alpha: float

    def __len__(self) -> int:
        return next(iter(self.factors.values())).a.shape[0]

    @property
    def scaling(self) -> float:
        """Alpha / rank."""
        return self.alpha / next(iter(self.factors.values())).a.shape[-2]

    def row(self, index: int) -> LoRA:
        """The adapter of one sample."""
        return LoRA({n: LoraFactors(f.a[index], f.b[index]) for n, f in self.factors.items()}, self.alpha)

    def __sub__(self, other: BatchedLoRA) -> BatchedLoRA:
        """Adapters whose delta weights are the differences, exactly: of the summed rank, and scaling 1."""
        factors = {}
        for name, (a, b) in self.factors.items():
            minus = other.factors[name]
            factors[name] = LoraFactors(
                torch.cat([a, minus.a], dim=-2),
                torch.cat([self.scaling * b, -other.scaling * minus.b], dim=-1),
            )
        return BatchedLoRA(factors, float(next(iter(factors.values())).a.shape[-2]))

    def squared_norm(self) -> Float[Tensor, ""]:
        """Squared Frobenius norm of all delta weights of all samples together; none is formed."""
        squares = [f.squared_norm().sum() for f in self.factors.values()]
        return self.scaling**2 * torch.stack(squares).sum()

    def select(self, rows: Tensor) -> BatchedLoRA:
        """A batch made of the given rows (int64, any length); gradients flow back to them."""
        return replace(self, factors={n: LoraFactors(f.a[rows], f.b[rows]) for n, f in self.factors.items()})
