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

from shoal.errors import UsageError


@dataclass(frozen=True)
class TargetModule:
    """A linear map of the backbone that an adapter may change.

    Attributes:
        name: full module name, for example `model.layers.3.self_attn.q_proj`.
        layer: index of its decoder layer, from 0.
        type: its name within the layer, for example `self_attn.q_proj`.
        in_features: size of its input.
        out_features: size of its output.
        fan_in_fan_out: True where the weight is stored (in, out), as Conv1D does.
    """

    name: str
    layer: int
    type: str
    in_features: int
    out_features: int
    fan_in_fan_out: bool = False


class LoraFactors(NamedTuple):
    """The two factors of one module's delta weight; a leading batch axis gives every sample its own."""

    a: Float[Tensor, "*batch rank in_features"]
    b: Float[Tensor, "*batch out_features rank"]

    def to(self, *args: Any) -> LoraFactors:
        """Both factors through `Tensor.to`: a device, a dtype, or both."""
        return LoraFactors(self.a.to(*args), self.b.to(*args))

    def squared_norm(self) -> Float[Tensor, "*batch"]:
        """Squared Frobenius norm of B A, unscaled, as the trace of two small products."""
        return ((self.b.mT @ self.b) * (self.a @ self.a.mT)).sum((-2, -1))


@dataclass(frozen=True, eq=False)
class LoRA:
    """One adapter: a pair of factors for every adapted module, and the alpha that scales them.

    Attributes:
        factors: module name -> factors A (rank, in) and B (out, rank), of one rank.
        alpha: numerator of the scaling.
    """

    factors: Mapping[str, LoraFactors]
    alpha: float

    def __post_init__(self) -> None:
        ranks = {f.a.shape[-2] for f in self.factors.values()} | {
            f.b.shape[-1] for f in self.factors.values()
        }
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

    def delta_weight(self, name: str) -> Float[Tensor, "out_features in_features"]:
        """`scaling * B A` of one module, (out, in), in the factors' dtype."""
        a, b = self.factors[name]
        return self.scaling * (b @ a)

    def norms(self) -> dict[str, float]:
        """Module name -> Frobenius norm of the delta weight."""
        squares = {name: f.to(torch.float32).squared_norm() for name, f in self.factors.items()}
        return {name: abs(self.scaling) * float(s.clamp(min=0).sqrt()) for name, s in squares.items()}

    def to(self, *args: Any) -> LoRA:
        """The same adapter on another device or in another dtype."""
        return replace(self, factors={name: f.to(*args) for name, f in self.factors.items()})

    def copy(self) -> LoRA:
        """The same adapter with tensors of its own."""
        return replace(
            self, factors={n: LoraFactors(f.a.clone(), f.b.clone()) for n, f in self.factors.items()}
        )

    def __mul__(self, scale: float) -> LoRA:
        """The adapter whose every delta weight is `scale` times this one's."""
        return replace(
            self, factors={name: LoraFactors(f.a, f.b * scale) for name, f in self.factors.items()}
        )

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

    def select(self, rows: Tensor) -> BatchedLoRA:
        """A batch made of the given rows (int64, any length); gradients flow back to them."""
        return replace(self, factors={n: LoraFactors(f.a[rows], f.b[rows]) for n, f in self.factors.items()})


def check_rank(targets: Sequence[TargetModule], rank: int) -> None:
    """Raise UsageError unless there are targets and the rank is between 1 and the smaller side of each."""
    if not targets:
        raise UsageError("an adapter needs at least one target module, got none; name some")
    smallest = min(targets, key=lambda t: min(t.in_features, t.out_features))
    limit = min(smallest.in_features, smallest.out_features)
    if not 1 <= rank <= limit:
        raise UsageError(
            f"adapter rank {rank} is outside 1..{limit} ({smallest.type} is "
            f"{smallest.out_features} x {smallest.in_features}); choose a rank in that range"
        )


def compose(loras: Sequence[LoRA], weights: Sequence[float]) -> LoRA:
    """The adapter whose delta weight is the weighted sum of the others', exactly, by concatenating ranks.

    Rows of A and columns of B are concatenated with scaling and weight folded into B, so the result has the
    summed rank and scaling 1. A module that an adapter lacks counts as zero.

    Raises:
        UsageError: no adapters, as many weights as adapters are not given, or modules of different sizes.
    """
    _check_sizes(loras)
    if not loras or len(loras) != len(weights):
        raise UsageError(
            f"composition needs one weight for each of {len(loras)} adapters (at least 1), got {len(weights)}"
        )
    rank = sum(lora.rank for lora in loras)
    shapes = {name: f for lora in loras for name, f in lora.factors.items()}
    factors = {}
    for name, like in shapes.items():
        rows, columns = [], []
        for lora, weight in zip(loras, weights, strict=True):
            own = lora.factors.get(name)
            if own is None:
                rows.append(like.a.new_zeros(lora.rank, like.a.shape[1]))
                columns.append(like.b.new_zeros(like.b.shape[0], lora.rank))
            else:
                rows.append(own.a)
                columns.append(own.b * (lora.scaling * weight))
        factors[name] = LoraFactors(torch.cat(rows), torch.cat(columns, dim=1))
    return LoRA(factors, alpha=float(rank))


def truncate(lora: LoRA, rank: int) -> LoRA:
    """The best adapter of a smaller rank (Eckart-Young), by singular value decomposition.

    Never forms a delta weight: with B = Q_b R_b and A^T = Q_a R_a, the decomposition is that of R_b R_a^T.

    Raises:
        UsageError: the rank is outside 1..the adapter's rank.
    """
    if not 1 <= rank <= lora.rank:
        raise UsageError(f"cannot truncate a rank-{lora.rank} adapter to rank {rank}; choose 1..{lora.rank}")
    factors = {}
    for name, f in lora.factors.items():
        q_b, r_b = torch.linalg.qr(f.b.float() * lora.scaling)
        q_a, r_a = torch.linalg.qr(f.a.float().T)
        u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
        root = s[:rank].sqrt()
        a, b = root[:, None] * (vh[:rank] @ q_a.T), (q_b @ u[:, :rank]) * root
        factors[name] = LoraFactors(a.to(f.a.dtype).contiguous(), b.to(f.b.dtype).contiguous())
    return LoRA(factors, alpha=float(rank))


def stack(loras: Sequence[LoRA]) -> BatchedLoRA:
    """A batch in which sample i uses adapter i; smaller ranks are padded with zeros, scalings folded into B.

    Raises:
        UsageError: no adapters, or adapters of different modules or sizes.
    """
    _check_sizes(loras)
    if not loras or any(lora.factors.keys() != loras[0].factors.keys() for lora in loras):
        raise UsageError("adapters of one batch must adapt the same modules, and there must be one at least")
    rank = max(lora.rank for lora in loras)
    factors = {}
    for name in loras[0].factors:
        a = [F.pad(lora.factors[name].a, (0, 0, 0, rank - lora.rank)) for lora in loras]
        b = [F.pad(lora.factors[name].b * lora.scaling, (0, rank - lora.rank)) for lora in loras]
        factors[name] = LoraFactors(torch.stack(a), torch.stack(b))
    return BatchedLoRA(factors, alpha=float(rank))


def _check_sizes(loras: Sequence[LoRA]) -> None:
    sizes: dict[str, tuple[int, int]] = {}
    for lora in loras:
        for name, f in lora.factors.items():
            own = (f.a.shape[-1], f.b.shape[-2])
            if sizes.setdefault(name, own) != own:
                raise UsageError(
                    f"{name} is {sizes[name]} (in, out) in one adapter and {own} in another; join adapters "
                    "of one base model"
                )


def group_by_type(targets: Sequence[TargetModule]) -> list[list[TargetModule]]:
    """Targets of one type and size together; layers of an odd size are a group of their own."""
    groups: dict[tuple[str, int, int], list[TargetModule]] = {}
    for t in targets:
        groups.setdefault((t.type, t.in_features, t.out_features), []).append(t)
    return list(groups.values())
