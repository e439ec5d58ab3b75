"""The running mean of a module's weights while it trains: steadier than the weights of any one step.

Source: Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging"; exponential, as in
Tarvainen and Valpola, arXiv 1703.01780, section 2.
"""

from __future__ import annotations

import torch
from torch import nn


class WeightAverage:
    """Exponential running mean of the parameters; it reaches back farther with the steps, up to a bound."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Begin at the module's weights; a mean reaches back over some 1 / (1 - `decay`) steps."""
        self._module = module
        self._decay = decay
        self.means = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after so many steps, counted from 1; early steps are forgotten sooner."""
        decay = min(self._decay, step / (step + 9))
        for name, parameter in self._module.named_parameters():
            self.means[name].lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def put_into_module(self) -> None:
        """Replace the weights by their mean."""
        for name, parameter in self._module.named_parameters():
            parameter.copy_(self.means[name])
