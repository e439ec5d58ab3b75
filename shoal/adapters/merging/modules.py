"""One module of a merge: parents' deltas from the start, and a method at work on them, in factors.

Knows tensors and methods; nothing of recipes, cards or whole adapters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shoal.adapters.lora import LoRA, LoraFactors
from shoal.adapters.merging.methods import Method
from shoal.adapters.merging.regmean import RegMeanSums
from shoal.errors import UsageError


def merge_module(
    method: Method,
    factors: Sequence[LoraFactors],
    values: Mapping[str, Any],
    generators: Sequence[torch.Generator],
) -> LoraFactors:
    """One module's merged delta in factors, for methods that need no inputs.

    Args:
        method: of the table.
        factors: of every parent, with scalings folded into B.
        values: parameters by name, without `lambda`.
        generators: of random masks, one for each parent.
    """
    function = method.function
    if function is None:
        raise UsageError("this method needs covariances of inputs; use `merge`")
    if method.form == "combination":
        coefficients = function(gram_of(factors), **values).tolist()
        return joined([LoraFactors(f.a, f.b * c) for f, c in zip(factors, coefficients, strict=True)])
    if method.form == "subspace":
        return function(factors, **values)
    deltas = torch.stack([f.b @ f.a for f in factors])
    delta = function(deltas, generators=generators, **values)
    return LoraFactors(delta, torch.eye(len(delta), dtype=delta.dtype, device=delta.device))


def gram_of(factors: Sequence[LoraFactors]) -> Tensor:
    """Inner products of some delta weights, (parents, parents) in float64; none of them is formed."""
    wide = [f.to(torch.float64) for f in factors]
    rows = [[((one.b.T @ two.b) * (one.a @ two.a.T)).sum() for two in wide] for one in wide]
    return torch.stack([torch.stack(row) for row in rows])


def generator_of(seed: int, module: str, fingerprint: str) -> torch.Generator:
    """The generator of one parent's mask of one module: the same in any order of parents."""
    digest = hashlib.sha256(f"{seed} {module} {fingerprint}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def merge_by_inputs(
    factors: Sequence[LoraFactors], covariances: Sequence[Tensor | None], name: str, values: dict[str, Any]
) -> LoraFactors:
    """One module's merged delta by RegMean.

    Raises:
        UsageError: a covariance is missing or of another size, or as `conditioned`.
    """
    sums = RegMeanSums()
    each = zip(values.pop("weight").tolist(), values.pop("scale").tolist(), strict=True)
    for own, covariance, (weight, scale) in zip(factors, covariances, each, strict=True):
        if covariance is None or covariance.shape != (own.a.shape[1],) * 2:
            size = own.a.shape[1]
            raise UsageError(f"{name} has no covariance of {size} x {size}; measure those of every module")
        sums.add(own, covariance, weight=weight, scale=scale, **values)
    return sums.solve()


def folded(lora: LoRA) -> dict[str, LoraFactors]:
    """Factors in float32 with the scaling in B; those of stacked experts one by one, as `NAME[INDEX]`."""
    found = {}
    for name, f in lora.factors.items():
        own = LoraFactors(f.a.float(), f.b.float() * lora.scaling)
        if own.a.dim() == 2:
            found[name] = own
        else:
            found |= {f"{name}[{i}]": LoraFactors(*pair) for i, pair in enumerate(zip(*own, strict=True))}
    return found


def difference(own: LoraFactors | None, origin: LoraFactors | None, like: LoraFactors) -> LoraFactors:
    """One module's delta from the start; a module that an adapter lacks counts as zero."""
    parts = [own] if own is not None else []
    parts += [LoraFactors(origin.a, -origin.b)] if origin is not None else []
    nothing = LoraFactors(like.a.new_zeros(1, like.a.shape[1]), like.b.new_zeros(like.b.shape[0], 1))
    return joined(parts or [nothing])


def joined(parts: Sequence[LoraFactors]) -> LoraFactors:
    """Factors of the sum: ranks are concatenated."""
    return LoraFactors(torch.cat([f.a for f in parts]), torch.cat([f.b for f in parts], dim=1))
