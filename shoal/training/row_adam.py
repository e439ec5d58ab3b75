"""Adam's steps of many adapters at once, a row of the factors each, with moments and a norm of its own.

Source: Kingma and Ba, "Adam", arXiv 1412.6980, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8  # of `shoal.training.loop.adamw`


class RowAdam:
    """Factors that take steps.

    Attributes:
        factors: each `(rows, *shape)`; changed in place.
    """

    def __init__(self, factors: Sequence[Tensor], rates: Sequence[float], decay: float = 0.0) -> None:
        """Begin at these factors.

        Args:
            factors: each `(rows, *shape)`; copied.
            rates: learning rate of each factor.
            decay: share of the way back to the beginning after every step.
        """
        self.factors = [factor.detach().clone() for factor in factors]
        self._start = [factor.clone() for factor in self.factors] if decay else []
        self._first = [torch.zeros_like(factor) for factor in self.factors]
        self._second = [torch.zeros_like(factor) for factor in self.factors]
        self._rates, self._decay, self._steps = rates, decay, 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], clip_norm: float) -> None:
        """Take a step; `clip_norm` limits the norm of a row's gradients, which are shaped as the factors."""
        self._steps += 1
        norms = sum(gradient.flatten(1).square().sum(1) for gradient in gradients) ** 0.5
        scale = (clip_norm / (norms + 1e-6)).clamp(max=1)
        for place, gradient in enumerate(gradients):
            self._move(place, gradient * scale.view(-1, *[1] * (gradient.dim() - 1)))

    def _move(self, place: int, gradient: Tensor) -> None:
        (one, other), first, second = BETAS, self._first[place], self._second[place]
        first.lerp_(gradient, 1 - one)
        second.mul_(other).addcmul_(gradient, gradient, value=1 - other)
        size = (second / (1 - other**self._steps)).sqrt_().add_(EPSILON)
        factor = self.factors[place]
        factor.addcdiv_(first, size, value=-self._rates[place] / (1 - one**self._steps))
        if self._decay:
            factor.lerp_(self._start[place], self._decay)
