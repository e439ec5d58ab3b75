"""Multinomial logistic regression. Knows rows of numbers and classes, nothing of what they stand for."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def fit_logistic(
    rows: Float[Tensor, "rows features"],
    labels: Int[Tensor, " rows"],
    classes: int,
    *,
    penalty: float,
    steps: int = 200,
    balanced: bool = False,
) -> tuple[Float[Tensor, "classes features"], Float[Tensor, " classes"]]:
    """(weight, bias) by L-BFGS, which finds the one optimum: there is no seed.

    Args:
        rows: inputs, float32.
        labels: class of each row, from 0, int64.
        classes: how many there are.
        penalty: weight of the summed squared weights against the mean cross-entropy.
        steps: of L-BFGS, at most.
        balanced: whether every class counts as much as any other, however many rows it has.
    """
    weight = torch.zeros(classes, rows.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, line_search_fn="strong_wolfe")
    shares = 1 / torch.bincount(labels, minlength=classes).clamp(min=1) if balanced else None

    def closure() -> Tensor:
        optimizer.zero_grad()
        error = F.cross_entropy(F.linear(rows, weight, bias), labels, weight=shares)
        loss = error + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()
