"""One whole weight of a merge: the table's methods over dense deltas of any shape.

What a method does in factors to LoRAs, it does here to the difference between two models' weights. Methods of
matrices leave vectors to their mean, as the papers do. Knows tensors and methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shoal.adapters.lora import LoraFactors
from shoal.adapters.merging.methods import Method
from shoal.adapters.merging.regmean import conditioned

CHUNK = 2**22  # elements of which inner products are taken at a time, in float64


def merge_dense(
    method: Method,
    deltas: Sequence[Tensor],
    values: Mapping[str, Any],
    generators: Sequence[torch.Generator],
    covariances: Sequence[Tensor] | None = None,
) -> Tensor:
    """The merged delta of one weight.

    Args:
        method: of the table.
        deltas: of every parent, of one shape, float32.
        values: parameters by name, without `lambda`.
        generators: of random masks, one for each parent.
        covariances: of the inputs of this weight under each parent, (in, in), the delta being (out, in); None
            where it has none.
    """
    function = method.function
    if function is None:
        return _regmean(deltas, covariances, **values)
    if method.form == "combination":
        return _sum(deltas, function(_gram(deltas), **values))
    if method.form == "elements":
        stacked = torch.stack([delta.reshape(delta.shape or (1,)) for delta in deltas])
        return function(stacked, generators=generators, **values).reshape(deltas[0].shape)
    if deltas[0].dim() != 2:
        return torch.stack(list(deltas)).mean(0)
    merged = function([_factors(delta) for delta in deltas], **values)
    return merged.b @ merged.a


def _sum(deltas: Sequence[Tensor], coefficients: Tensor) -> Tensor:
    total = torch.zeros_like(deltas[0])
    for delta, coefficient in zip(deltas, coefficients.tolist(), strict=True):
        total.add_(delta, alpha=coefficient)
    return total


def _gram(deltas: Sequence[Tensor]) -> Tensor:
    """Inner products, (parents, parents) in float64."""
    gram = torch.zeros(len(deltas), len(deltas), dtype=torch.float64)
    for parts in zip(*(delta.flatten().split(CHUNK) for delta in deltas), strict=True):
        wide = torch.stack(parts).double()
        gram += wide @ wide.T
    return gram


def _factors(delta: Tensor) -> LoraFactors:
    """Exact factors, of which one is the identity of the smaller side."""
    out, inner = delta.shape
    eye = torch.eye(min(out, inner), dtype=delta.dtype)
    return LoraFactors(delta, eye) if out <= inner else LoraFactors(eye, delta)


def _regmean(
    deltas: Sequence[Tensor],
    covariances: Sequence[Tensor] | None,
    weight: Tensor,
    scale: Tensor,
    shrink: float,
    ridge: float,
) -> Tensor:
    """RegMean where inputs were measured, else the weighted mean."""
    if covariances is None:
        return _sum(deltas, scale * weight / weight.sum())
    first = covariances[0].double()
    inputs, outputs = torch.zeros_like(first), torch.zeros_like(deltas[0], dtype=torch.float64)
    each = zip(weight.tolist(), scale.tolist(), strict=True)
    for delta, covariance, (share, factor) in zip(deltas, covariances, each, strict=True):
        own = share * conditioned(covariance, shrink, ridge)
        inputs += own
        outputs += factor * (delta.double() @ own)
    return torch.linalg.solve(inputs, outputs.T).T.float()  # the sum is symmetric
