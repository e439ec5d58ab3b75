"""A few solved examples make an adapter better: short training that stops where unseen ones say so.

A quarter of the examples is held out, the adapter is trained on the others, and of the states on the way,
the first one included, the one with the lowest loss on the held-out examples is kept. So examples that teach
nothing leave the adapter as it was. Nothing is written to disk.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.adapters.lora import LoRA
from shoal.config import MIN_EXAMPLES, LoraTrainingConfig
from shoal.errors import UsageError
from shoal.inference.scoring import reference_losses
from shoal.models.backbone import Backbone
from shoal.tasks.loading import Example, Task
from shoal.tasks.records import divide
from shoal.text_to_lora.lengths import short_ones
from shoal.training.batches import tokenise
from shoal.training.lora import LoraObjective
from shoal.training.short_runs import optimise

log = logging.getLogger(__name__)

REFINING = LoraTrainingConfig(steps=20, batch_size=8, learning_rate=1e-3)
STEPS_BETWEEN_LOOKS = 4
MAX_TOKENS = 10_000  # of training; long examples get fewer steps, so that two cores need no half minute


@dataclass(frozen=True, eq=False)
class Refinement:
    """An adapter after a few examples.

    Attributes:
        lora: the adapter, float32 on the CPU.
        examples: examples that were trained on.
        held_out: examples that chose where to stop.
        steps: optimiser steps that are kept; 0 means that the adapter is as it was.
        loss_before: mean loss on the held-out examples at the start, in nats per token.
        loss_after: the same after the steps that are kept.
        seconds: how long all of it took.
    """

    lora: LoRA
    examples: int
    held_out: int
    steps: int
    loss_before: float
    loss_after: float
    seconds: float


def refine(
    backbone: Backbone,
    lora: LoRA,
    examples: Sequence[Example],
    *,
    description: str,
    config: LoraTrainingConfig = REFINING,
) -> Refinement:
    """Train an adapter a little on a few examples of its task.

    Args:
        backbone: the frozen model that the adapter is for.
        lora: the adapter to start from.
        examples: as `shoal.tasks.records.check_examples` takes them; those of one input count as one.
        description: of the task, for error messages and logs.
        config: optimisation settings; the learning rate stays at its peak, and training ends early at
            `MAX_TOKENS` tokens.

    Raises:
        UsageError: fewer than `MIN_EXAMPLES` fit into `config.max_length` tokens; longer ones are left out.
    """
    started = time.perf_counter()
    log.info("refining the adapter on %d examples", len(examples))
    prompts = backbone.encode_prompts([e.input for e in examples])
    completions = backbone.encode_completions([e.outputs[0] for e in examples])
    lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    examples = [examples[i] for i in short_ones("examples", lengths, config.max_length, MIN_EXAMPLES)]
    fit, held_out = divide(examples, test_size=max(1, len(examples) // 4), seed=config.seed)
    if (count := len(fit) + len(held_out)) < MIN_EXAMPLES:
        raise UsageError(
            f"{count} different examples of at most {config.max_length} tokens are too few to refine an "
            f"adapter on, the least is {MIN_EXAMPLES}; give more that are short, or none"
        )
    task = Task("examples", "few-shot", description, (description,), fit, held_out)
    targets = [t for t in backbone.shape.targets if t.name in lora.factors]
    objective = LoraObjective(backbone, tokenise([task], backbone, config.max_length), targets, lora, config)
    before = after = _loss(backbone, held_out, lora)
    best, kept, tokens = lora, 0, 0
    steps = optimise(
        backbone, objective, config.steps, weight_decay=config.weight_decay, clip_norm=config.clip_norm
    )
    for step, taken in enumerate(steps, start=1):
        tokens += taken.tokens
        last = step == config.steps or tokens >= MAX_TOKENS
        if step % STEPS_BETWEEN_LOOKS == 0 or last:
            loss = _loss(backbone, held_out, candidate := objective.lora())
            if loss < after:
                best, kept, after = candidate, step, loss
        if last:
            break
    seconds = time.perf_counter() - started
    return Refinement(best, len(fit), len(held_out), kept, before, after, seconds)


def _loss(backbone: Backbone, examples: Sequence[Example], lora: LoRA) -> float:
    losses = reference_losses(backbone, [e.input for e in examples], [e.outputs[0] for e in examples], lora)
    return sum(losses) / len(losses)
