"""Training of seconds: steps in memory, between which others look at the adapter; nothing is written."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from torch import nn

from shoal.models.backbone import Backbone
from shoal.training.loop import StepLoss, Trainable, adamw
from shoal.training.lora import set_for_training
from shoal.training.progress import ProgressDisplay


def constant(step: int) -> float:
    """The peak learning rate at every step."""
    return 1.0


def places_of(forward_pass: int, batch_size: int, count: int, seed: int) -> list[int]:
    """The places, of `count`, that one forward pass takes: each comes once before any comes again."""
    first = forward_pass * batch_size
    numbers = range(first, first + batch_size)
    orders = {
        epoch: random.Random(f"{seed}/{epoch}").sample(range(count), count)
        for epoch in {number // count for number in numbers}
    }
    return [orders[number // count][number % count] for number in numbers]


def optimise(
    backbone: Backbone,
    objective: Trainable,
    steps: int,
    *,
    rate: Callable[[int], float] = constant,
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
    show_progress: bool = False,
) -> Iterator[StepLoss]:
    """Take optimiser steps, one each time that the next loss is asked for; stop asking to end early.

    Args:
        backbone: the frozen model; between steps it is as it was.
        objective: parameters and losses.
        steps: at most.
        rate: step, from 0 -> share of the peak learning rate.
        weight_decay: of AdamW.
        clip_norm: limit of the gradient norm.
        show_progress: on standard error; see `ProgressDisplay`.
    """
    optimizer = adamw(objective, weight_decay)
    peaks = [group["lr"] for group in optimizer.param_groups]
    with ProgressDisplay(steps, 0, shown=show_progress) as display:
        for step in range(steps):
            with set_for_training(backbone):
                taken = objective.loss(step)
                taken.loss.backward()
            nn.utils.clip_grad_norm_(objective.module.parameters(), clip_norm)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * rate(step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            display.advance(float(taken.loss.detach()))
            yield taken
