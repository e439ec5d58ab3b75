"""Leave-one-out of a short training without training again: an adapter for each example that never saw it.

Beside the steps that are taken, each such adapter takes its own, by Adam on the same gradients without those
of its example. The gradients are taken where the training is, not where each adapter would be: exact for the
first step, and close while the steps are few. Knows factors and gradients; nothing of models or losses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shoal.training.row_adam import RowAdam


class LeftOutFactors:
    """Factors of the adapters that leave one example out each."""

    def __init__(
        self, factors: Sequence[Tensor], rates: Sequence[float], left_out: Sequence[int], decay: float
    ) -> None:
        """Begin where the training begins.

        Args:
            factors: of the adapter that is trained.
            rates: learning rate of each factor.
            left_out: numbers of the examples, one for each adapter.
            decay: share of the way back to the start after every step.
        """
        rows = [factor.expand(len(left_out), *factor.shape) for factor in factors]
        self._adam = RowAdam(rows, rates, decay)
        self._left_out = torch.tensor(list(left_out))

    @property
    def factors(self) -> list[Tensor]:
        """For every factor of the trained adapter, `(left out, *shape)`."""
        return self._adam.factors

    @torch.no_grad()
    def step(self, batch: Sequence[int], gradients: Sequence[Tensor], clip_norm: float) -> None:
        """Take the step of one batch.

        Args:
            batch: numbers of its examples.
            gradients: for every factor, those of the examples' own losses, `(examples, *shape)`.
            clip_norm: limit of the norm of each adapter's gradient.
        """
        seen = (torch.tensor(list(batch)) != self._left_out[:, None]).float()  # (left out, examples)
        weights = (seen / seen.sum(1, keepdim=True).clamp(min=1)).to(gradients[0].device)
        self._adam.step([torch.tensordot(weights, own, dims=1) for own in gradients], clip_norm)
