"""Arithmetic of several adapters: their weighted sum, the best approximation of smaller rank, and batches.

Exact where it can be: A and B are never averaged apart, since the product of means is not the mean of
products. Knows LoRA values.

Source: Hu et al., "LoRA", arXiv 2106.09685, section 4.1; truncation: Eckart and Young, 1936.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shoal.adapters.lora import BatchedLoRA, LoRA, LoraFactors
from shoal.errors import UsageError


def compose(loras: Sequence[LoRA], weights: Sequence[float]) -> LoRA:
    """The adapter whose delta weight is the weighted sum of the others', exactly, by concatenating ranks.

    Rows of A and columns of B are concatenated with scaling and weight folded into B, so the result has the
    summed rank and scaling 1. A module that an adapter lacks counts as zero.

    Raises:
        UsageError: no adapters, as many weights as adapters are not given, or modules of different sizes.
    """
    check_sizes(loras)
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
                rows.append(like.a.new_zeros(*like.a.shape[:-2], lora.rank, like.a.shape[-1]))
                columns.append(like.b.new_zeros(*like.b.shape[:-1], lora.rank))
            else:
                rows.append(own.a)
                columns.append(own.b * (lora.scaling * weight))
        factors[name] = LoraFactors(torch.cat(rows, dim=-2), torch.cat(columns, dim=-1))
    return LoRA(factors, alpha=float(rank))


def truncate(lora: LoRA, rank: int) -> LoRA:
    """The best adapter of a smaller rank (Eckart-Young), by singular value decomposition.

    Raises:
        UsageError: the rank is outside 1..the adapter's rank.
    """
    if not 1 <= rank <= lora.rank:
        raise UsageError(f"cannot truncate a rank-{lora.rank} adapter to rank {rank}; choose 1..{lora.rank}")
    factors = {}
    for name, f in lora.factors.items():
        kept = truncate_factors(LoraFactors(f.a.float(), f.b.float() * lora.scaling), rank).factors
        factors[name] = LoraFactors(kept.a.to(f.a.dtype), kept.b.to(f.b.dtype))
    return LoRA(factors, alpha=float(rank))


class TruncatedFactors(NamedTuple):
    """One module's factors of a smaller rank, and squared Frobenius norms of what was dropped and of all."""

    factors: LoraFactors
    dropped: float
    whole: float


def truncate_factors(factors: LoraFactors, rank: int) -> TruncatedFactors:
    """The nearest factors of at most a rank, as `truncate` finds them; scaling is 1."""
    u, s, vt = decomposed(factors)
    root = s[..., :rank].sqrt()
    a, b = root[..., None] * vt[..., :rank, :], u[..., :rank] * root[..., None, :]
    squares = s.double().square()
    dropped, whole = float(squares[..., rank:].sum()), float(squares.sum())
    return TruncatedFactors(LoraFactors(a.contiguous(), b.contiguous()), dropped, whole)


def decomposed(factors: LoraFactors) -> tuple[Tensor, Tensor, Tensor]:
    """U (..., out, k), s (..., k) and V^T (..., k, in) of B A, with k its rank at most; B A is never formed.

    With B = Q_b R_b and A^T = Q_a R_a, the decomposition is that of R_b R_a^T.
    """
    q_b, r_b = torch.linalg.qr(factors.b)
    q_a, r_a = torch.linalg.qr(factors.a.mT)
    u, s, vt = torch.linalg.svd(r_b @ r_a.mT, full_matrices=False)
    return q_b @ u, s, vt @ q_a.mT


def stack(loras: Sequence[LoRA]) -> BatchedLoRA:
    """A batch in which sample i uses adapter i; smaller ranks are padded with zeros, scalings folded into B.

    Raises:
        UsageError: no adapters, or adapters of different modules or sizes.
    """
    check_sizes(loras)
    if not loras or any(lora.factors.keys() != loras[0].factors.keys() for lora in loras):
        raise UsageError("adapters of one batch must adapt the same modules, and there must be one at least")
    rank = max(lora.rank for lora in loras)
    factors = {}
    for name in loras[0].factors:
        each = [lora.factors[name].padded(rank) for lora in loras]
        b = [f.b * lora.scaling for f, lora in zip(each, loras, strict=True)]
        factors[name] = LoraFactors(torch.stack([f.a for f in each]), torch.stack(b))
    return BatchedLoRA(factors, alpha=float(rank))


def check_sizes(loras: Sequence[LoRA]) -> None:
    """See that adapters are of one size where they have a module in common.

    Raises:
        UsageError: they are not.
    """
    sizes: dict[str, tuple[int, ...]] = {}
    for lora in loras:
        for name, f in lora.factors.items():
            own = (*f.a.shape[:-2], f.a.shape[-1], f.b.shape[-2])
            if sizes.setdefault(name, own) != own:
                raise UsageError(
                    f"{name} is {sizes[name]} (in, out) in one adapter and {own} in another; join adapters "
                    "of one base model"
                )
