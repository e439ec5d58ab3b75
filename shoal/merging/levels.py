"""Where tasks stand without a merge: under the start, and under the parent that is best at each of them.

Candidates are judged between the two. Knows a backbone, LoRA values and tokenised examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from shoal.adapters.hooks import attach
from shoal.adapters.lora import LoRA
from shoal.errors import UsageError
from shoal.inference.beginning import losses_under_each
from shoal.models.backbone import Backbone
from shoal.training.batches import Corpus, TokenisedExample

JUDGED = 16  # examples of a task that say which parent it belongs to
LEAST_GAIN = 0.05  # nats per token by which some parent must beat the start


@dataclass(frozen=True)
class TaskLevels:
    """Where a task stands without a merge, in nats per token on its first examples.

    Attributes:
        base: loss of the start, or of the base model where there is none.
        parent: name of the parent with the least loss.
        best: that loss.
    """

    base: float
    parent: str
    best: float

    @property
    def gain(self) -> float:
        """Nats that the best parent gains; at least `LEAST_GAIN`, so that a share of it stays finite."""
        return max(self.base - self.best, LEAST_GAIN)


def levels_of(
    backbone: Backbone, parents: Mapping[str, LoRA], corpus: Corpus, start: LoRA | None = None
) -> tuple[TaskLevels, ...]:
    """What start and parents do on the first examples of every task.

    Args:
        backbone: the frozen model.
        parents: name -> adapter.
        corpus: the examples that choose.
        start: that the parents were trained on from; None is the base model.

    Raises:
        UsageError: no parent does better than the start on any task, or a loss is not finite.
    """
    levels = tuple(_level(backbone, parents, examples[:JUDGED], start) for examples in corpus.examples)
    if all(level.base - level.best < LEAST_GAIN for level in levels):
        raise UsageError(
            f"no parent is {LEAST_GAIN} nats per token better than the {'start' if start else 'base model'} "
            f"on any of {len(levels)} tasks, so there is nothing to keep; give the tasks that they were "
            "trained for"
        )
    return levels


def losses_under(
    backbone: Backbone, lora: LoRA | None, examples: Sequence[TokenisedExample]
) -> Float[Tensor, " examples"]:
    """Loss of every example under an adapter, or under the base model, in nats per token; float64, CPU."""
    with attach(backbone.model, lora.to(backbone.device)) if lora else nullcontext():
        return losses_under_each(backbone, [(e.prompt, e.completion) for e in examples])[0][0]


def _level(
    backbone: Backbone,
    parents: Mapping[str, LoRA],
    examples: Sequence[TokenisedExample],
    start: LoRA | None,
) -> TaskLevels:
    base, *own = (float(losses_under(backbone, lora, examples).mean()) for lora in (start, *parents.values()))
    losses = dict(zip(parents, own, strict=True))
    if not all(map(math.isfinite, [base, *own])):
        raise UsageError("a loss is not finite under the start or a parent; use bfloat16 or float32")
    best = min(losses, key=lambda name: losses[name])
    return TaskLevels(base, best, losses[best])
