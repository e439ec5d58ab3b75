"""Element-wise merging: parts of every delta are dropped, signs agree, and the rest is added up.

Every function takes deltas stacked as (parents, ...), the shape of one delta behind it, and gives the merged
delta. They work as well on LoRA deltas (out, in) as on expert vectors z - 1 (k). Knows tensors only.

Sources: the paper beside each method in `shoal.adapters.merging.methods`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

EMPTY = 1e-8  # weights that sum to less cancel out; nothing is divided by them


Thinning = Literal["largest", "middle", "random", "random_by_row"]


def sparse_sum(
    deltas: Tensor,
    *,
    thinning: Thinning,
    agree: bool,
    weight: Tensor,
    density: Tensor,
    normalize: bool,
    rescale: bool,
    gamma: Tensor | None = None,
    epsilon: Tensor | None = None,
    rescale_by_density: bool = False,
    generators: Sequence[torch.Generator] = (),
) -> Tensor:
    """The sum of deltas of which a share is kept.

    Args:
        deltas: (parents, ...).
        thinning: keep the `largest` magnitudes (TIES), those of the `middle` (Model Breadcrumbs), `random`
            elements (DARE), or random ones of which the larger in a row are likelier (DELLA).
        agree: count in each element only the parents that have the sign of most of their weight (TIES).
        weight: of each parent.
        density: share that each parent keeps.
        normalize: divide by the sum of weights.
        rescale: scale up what is kept, to the L1 norm before.
        gamma: share of the largest that `middle` drops.
        epsilon: half the range of chances of `random_by_row`.
        rescale_by_density: rescale random elements by 1 / chance, as the papers do.
        generators: of random masks, one for each parent.
    """
    shares = density.tolist()
    if thinning == "largest":
        kept = [largest(d, share) for d, share in zip(deltas, shares, strict=True)]
    elif thinning == "middle" and gamma is not None:
        kept = [middle(*own) for own in zip(deltas, shares, gamma.tolist(), strict=True)]
    else:
        halves = [0.0] * len(shares) if epsilon is None else epsilon.tolist()
        chances = [chances_by_row(*own) for own in zip(deltas, shares, halves, strict=True)]
        pairs = zip(chances, generators, strict=True)
        kept = [torch.rand(chance.shape, generator=g).to(chance.device) < chance for chance, g in pairs]
        if rescale and rescale_by_density:
            deltas, rescale = deltas / torch.stack(chances), False
    thin = deltas * torch.stack(kept)
    if rescale:
        before, after = (x.abs().flatten(1).sum(1) for x in (deltas, thin))
        thin = thin * _beside(torch.where(after > EMPTY, before / after.clamp(min=EMPTY), 1.0), thin)
    own = _beside(weight, thin)
    counted = signs_agree(own * thin) if agree else torch.ones_like(thin)
    total = (own * thin * counted).sum(0)
    if not normalize:
        return total
    shared = (own * counted).sum(0)
    return total / torch.where(shared.abs() < EMPTY, torch.ones_like(shared), shared)


def sce(deltas: Tensor, *, select_topk: float, generators: Sequence[torch.Generator] = ()) -> Tensor:
    """Elements that differ most between parents, weighted by each parent's mean square, of agreed signs."""
    if select_topk < 1:
        deltas = deltas * largest(deltas.var(0, correction=0), select_topk)
    energy = deltas.square().flatten(1).mean(1)
    total = energy.sum()
    share = energy / total if total > 0 else torch.full_like(energy, 1 / len(deltas))
    weights = _beside(share, deltas) * signs_agree(deltas)
    return (weights * deltas).sum(0) / weights.sum(0).clamp(min=1e-6)


def signs_agree(deltas: Tensor) -> Tensor:
    """True where an element has the sign of the sum over parents; a sum of 0 counts as positive."""
    return deltas.sign() == torch.where(deltas.sum(0) >= 0, 1.0, -1.0)


def largest(values: Tensor, share: float) -> Tensor:
    """True at the share of elements with the largest magnitudes, at least one."""
    return _top(values, max(1, int(share * values.numel())))


def middle(values: Tensor, density: float, gamma: float) -> Tensor:
    """True at a share `density` of elements: all but the largest `gamma`, and enough of the smallest."""
    count = values.numel()
    kept = int(density * count)
    at_top = min(int(gamma * count), count - kept)
    return _top(values, kept + at_top) & ~_top(values, at_top)


def _top(values: Tensor, count: int) -> Tensor:
    """True at so many elements of the largest magnitudes; of equal ones at the first."""
    sizes = values.abs().flatten()
    if count <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    # NumPy selects in linear time; torch's topk sorts where the count is large.
    place = len(sizes) - count
    least = float(np.partition(sizes.cpu().numpy(), place)[place])
    mask = sizes > least
    mask[(sizes == least).nonzero()[: count - int(mask.sum()), 0]] = True
    return mask.view_as(values)


def chances_by_row(values: Tensor, density: float, epsilon: float) -> Tensor:
    """Chance of each element to be kept: density -+ epsilon for the least and largest of a row."""
    if density >= 1:
        return torch.ones_like(values)
    place = values.abs().argsort(-1).argsort(-1).to(values) / max(1, values.shape[-1] - 1)
    return density + epsilon * (2 * place - 1)


def _beside(values: Tensor, deltas: Tensor) -> Tensor:
    """One value for each parent, shaped to multiply their deltas."""
    return values.to(deltas).view(-1, *[1] * (deltas.dim() - 1))
