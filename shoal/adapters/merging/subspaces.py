"""Merging in common subspaces: singular vectors of all parents together, in factors from end to end.

Every function takes the factors of one module under each parent, with their scalings folded into B, and gives
the factors of the merged delta B A. Knows tensors only.

Sources: KnOTS, arXiv 2410.19735, section 4; TSV-Merge, 2412.00081, section 3.2; Iso-C, 2502.04959, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shoal.adapters.lora import LoraFactors
from shoal.adapters.merging.arithmetic import decomposed
from shoal.adapters.merging.sparsification import sparse_sum

NEGLIGIBLE = 1e-5  # singular values below this share of the largest are rounding


def knots_ties(
    factors: Sequence[LoraFactors], *, weight: Tensor, density: Tensor, normalize: bool, rescale: bool
) -> LoraFactors:
    """TIES over every parent's share V of one decomposition `[D_1 ... D_n] = U S [V_1 ... V_n]`."""
    basis, core = torch.linalg.qr(torch.cat([f.b for f in factors], dim=1))
    parts = core.split([f.a.shape[0] for f in factors], dim=1)
    joined = torch.cat([part @ f.a for part, f in zip(parts, factors, strict=True)], dim=1)
    u, s, vt = torch.linalg.svd(joined, full_matrices=False)
    own = torch.stack(vt.split(factors[0].a.shape[1], dim=1))
    # Directions of no size are noise, and would take part in the trimming of the others.
    real = s > NEGLIGIBLE * s[0].clamp(min=1e-30)
    merged = torch.zeros_like(own[0])
    merged[real] = sparse_sum(
        own[:, real],
        thinning="largest",
        agree=True,
        weight=weight,
        density=density,
        normalize=normalize,
        rescale=rescale,
    )
    return LoraFactors(merged, basis @ (u * s))


def tsv(factors: Sequence[LoraFactors], *, weight: Tensor, keep: float) -> LoraFactors:
    """Every parent's singular vectors side by side, made orthogonal to each other (equation 6)."""
    lefts, sizes, rights = [], [], []
    for f, w in zip(factors, weight.tolist(), strict=True):
        u, s, vt = decomposed(f)
        count = max(1, round(keep * len(s)))
        lefts.append(u[:, :count])
        sizes.append(s[:count] * w)
        rights.append(vt[:count].T)
    left, right = (_orthogonal(torch.cat(each, dim=1)) for each in (lefts, rights))
    return LoraFactors(right.T, left * torch.cat(sizes))


def iso_c(factors: Sequence[LoraFactors], *, weight: Tensor) -> LoraFactors:
    """The weighted sum with all its singular values replaced by their mean."""
    scaled = [f.b * w for f, w in zip(factors, weight.tolist(), strict=True)]
    u, s, vt = decomposed(LoraFactors(torch.cat([f.a for f in factors]), torch.cat(scaled, dim=1)))
    real = s > NEGLIGIBLE * s[0].clamp(min=1e-30)
    flat = torch.where(real, s.sum() / real.sum().clamp(min=1), torch.zeros_like(s))
    return LoraFactors(vt, u * flat)


def _orthogonal(columns: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns; where columns are dependent, within their span."""
    u, s, vt = torch.linalg.svd(columns, full_matrices=False)
    real = s > NEGLIGIBLE * s[0].clamp(min=1e-30)
    return u[:, real] @ vt[real]
