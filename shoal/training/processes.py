"""Several processes that train together: the same parameters at the start, and sums over all of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn

from shoal.errors import ShoalError
from shoal.training.checkpoints import Progress


def start_together(module: nn.Module, progress: Progress, accelerator: Accelerator) -> None:
    """Give every process the first one's parameters, and refuse processes that are at different steps."""
    if accelerator.num_processes == 1:
        return
    steps = accelerator.gather(torch.tensor([progress.step], device=accelerator.device)).tolist()
    if len(set(steps)) > 1:
        raise ShoalError(f"the processes resume at steps {steps}; put the run's folder where all can read it")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(broadcast(parameter.detach().clone()))


def summed(numbers: Mapping[str, float], accelerator: Accelerator) -> dict[str, float]:
    """Every number's sum over the processes."""
    values = torch.tensor(list(numbers.values()), dtype=torch.float64, device=accelerator.device)
    totals = accelerator.reduce(values, reduction="sum").tolist()
    return dict(zip(numbers, totals, strict=True))
