"""RegMean: the delta whose outputs are nearest to every parent's on that parent's own inputs.

W = (sum_i D_i G_i) (sum_i G_i)^-1, with G_i the covariance of a module's inputs under parent i. Both sums
grow parent by parent, in any order, and `sum_i D_i G_i` stays in factors. Knows tensors only; inputs are
measured by `shoal.inference.covariances`.

Source: Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models", arXiv 2212.09849,
equation 1; the shrinking of what is off the diagonal: section 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shoal.adapters.lora import LoraFactors
from shoal.errors import UsageError

Covariances = Mapping[str, Tensor]  # module name -> (in, in)
MIN_INPUTS = 16  # of each parent; fewer leave covariances that say little of its task


@dataclass(eq=False)
class RegMeanSums:
    """Sums over the parents of one module that came so far.

    Attributes:
        weights: sum of G_i, (in, in), float64.
        rows: A_i G_i of every parent with its B_i, float64.
    """

    weights: Tensor | None = None
    rows: list[LoraFactors] = field(default_factory=list)

    def add(
        self,
        factors: LoraFactors,
        covariance: Tensor,
        *,
        weight: float,
        scale: float = 1.0,
        shrink: float,
        ridge: float,
    ) -> None:
        """Take one more parent; errors as `conditioned`.

        Args:
            factors: of its delta weight.
            covariance: of its inputs.
            weight: of its inputs, in both sums.
            scale: of its part of the first sum alone, which a search moves.
            shrink: as `conditioned`.
            ridge: as `conditioned`.
        """
        own = weight * conditioned(covariance, shrink, ridge)
        self.weights = own if self.weights is None else self.weights + own
        self.rows.append(LoraFactors(factors.a.double() @ own, factors.b.double() * scale))

    def solve(self) -> LoraFactors:
        """Factors of the merged delta, in float32, at the summed rank.

        Raises:
            UsageError: no parent came.
        """
        if self.weights is None:
            raise UsageError("RegMean of 0 parents; add at least 1")
        rows = torch.cat([f.a for f in self.rows])
        a = torch.linalg.solve(self.weights, rows.T).T  # the sum is symmetric
        return LoraFactors(a.float().contiguous(), torch.cat([f.b for f in self.rows], dim=1).float())


def conditioned(covariance: Tensor, shrink: float, ridge: float) -> Tensor:
    """A covariance of mean diagonal 1, in float64, that can be inverted.

    Args:
        covariance: (in, in), of any scale.
        shrink: factor of what is off the diagonal, in [0, 1].
        ridge: added to the diagonal, as a share of its mean.

    Raises:
        UsageError: it holds NaN or infinity, or is zero.
    """
    g = covariance.double()
    scale = g.diagonal().mean()
    if not bool(g.isfinite().all()) or scale <= 0:
        raise UsageError(
            f"a covariance of inputs has mean diagonal {float(scale):g}; it must be finite and above 0, "
            "measure it on other inputs"
        )
    g = g / scale
    diagonal = torch.diag(g.diagonal())
    return shrink * g + (1 - shrink) * diagonal + ridge * torch.eye(len(g), dtype=g.dtype, device=g.device)
