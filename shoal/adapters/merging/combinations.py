"""Merging by coefficients: the result is a weighted sum of the deltas, so it stays in factors.

Every function takes the Gram matrix of one module's deltas, (parents, parents) in float64, whose entries are
their inner products, and gives a coefficient for each of them. Angles and norms are all that spherical
methods need to know. Knows tensors only.

Sources: the paper beside each method in `shoal.adapters.merging.methods`; Shoemake, "Animating rotation with
quaternion curves", SIGGRAPH 1985, for the interpolation on a sphere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.errors import UsageError

PARALLEL = 0.9995  # cosines above it, in magnitude, are interpolated along the chord
EMPTY = 1e-12


def linear(gram: Tensor, *, weight: Tensor, normalize: bool) -> Tensor:
    """The weighted sum, or the weighted mean."""
    return weight / weight.sum() if normalize else weight


def slerp(gram: Tensor, *, t: float) -> Tensor:
    """From the first (t = 0) to the second (t = 1) along the arc between their directions."""
    cosine = float(_cosines(gram)[0, 1])
    if abs(cosine) > PARALLEL or bool((gram.diagonal() < EMPTY).any()):
        return torch.tensor([1 - t, t], dtype=gram.dtype)
    angle = torch.arccos(torch.tensor(cosine, dtype=gram.dtype))
    return torch.stack([torch.sin((1 - t) * angle), torch.sin(t * angle)]) / torch.sin(angle)


def nuslerp(gram: Tensor, *, weight: Tensor) -> Tensor:
    """As `slerp`, at the second's share of both weights."""
    return slerp(gram, t=float(weight[1] / weight.sum()))


def multislerp(gram: Tensor, *, weight: Tensor, normalize_weights: bool) -> Tensor:
    """The direction of the weighted mean of directions, with the weighted mean of norms.

    Raises:
        UsageError: directions that cancel out.
    """
    if normalize_weights:
        weight = weight / weight.sum()
    norms = gram.diagonal().clamp(min=0).sqrt()
    own = weight / norms.clamp(min=EMPTY)
    length = (own @ gram @ own).clamp(min=0).sqrt()
    if not bool(norms.any()):
        return weight
    if length < 1e-6:
        raise UsageError(
            f"the directions of {len(weight)} deltas cancel out (their mean has length {float(length):.1e} "
            "of 1); use linear"
        )
    return own * (weight @ norms) / length


def karcher(gram: Tensor, *, max_iter: int, tol: float) -> Tensor:
    """The point of the sphere with the least sum of squared angles to all directions, of the mean norm."""
    norms = gram.diagonal().clamp(min=0).sqrt()
    own = norms > EMPTY
    if not bool(own.any()):
        return torch.full_like(norms, 1 / len(norms))
    cosines, share = _cosines(gram), own.to(gram) / own.sum()
    mean = share / (share @ cosines @ share).clamp(min=EMPTY).sqrt()
    for _ in range(int(max_iter)):
        towards = (cosines @ mean).clamp(-1, 1)
        angles = torch.arccos(towards)
        scale = torch.where(angles > 1e-7, angles / torch.sin(angles).clamp(min=EMPTY), 1.0)
        step = share * scale - (share * scale * towards).sum() * mean
        length = (step @ cosines @ step).clamp(min=0).sqrt()
        if length < tol:
            break
        mean = torch.cos(length) * mean + torch.sin(length) / length * step
        mean = mean / (mean @ cosines @ mean).clamp(min=EMPTY).sqrt()
    return mean / norms.clamp(min=EMPTY) * own * norms.mean()


def model_stock(gram: Tensor) -> Tensor:
    """The mean, drawn towards the start by the angle between parents (Model Stock, equation 7)."""
    count = len(gram)
    if count == 1:
        return torch.ones_like(gram[0])
    cosine = (_cosines(gram).sum() - _cosines(gram).trace()) / (count * (count - 1))
    ratio = count * cosine / (1 + (count - 1) * cosine)
    return torch.full_like(gram[0], float(ratio) / count)


def _cosines(gram: Tensor) -> Tensor:
    norms = gram.diagonal().clamp(min=EMPTY**2).sqrt()
    return (gram / norms[:, None] / norms).clamp(-1, 1)
