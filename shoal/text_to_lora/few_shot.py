"""A few solved examples make an adapter better, by short training that stops in one of two ways.

Where refining was learned for the network (`shoal.text_to_lora.refining`) and for as few examples, the
adapter is trained on all of them, at the learned rates and for the learned number of steps, and the mean of
the states of the second half of the steps is kept. Else, or where care is asked for, a quarter of the
examples is held out, the adapter is trained on the others, and of the states on the way, the first one
included, the one with the lowest loss on the held-out examples is kept: examples that teach nothing leave the
adapter as it was. Nothing is written to disk.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from shoal.adapters.lora import LoRA
from shoal.config import MIN_EXAMPLES, LoraTrainingConfig
from shoal.errors import UsageError
from shoal.inference.scoring import reference_losses
from shoal.models.backbone import Backbone
from shoal.tasks.loading import Example, Task
from shoal.tasks.records import divide
from shoal.tasks.texts import normalise
from shoal.text_to_lora.gain import Gain, gain_of
from shoal.text_to_lora.lengths import short_ones
from shoal.text_to_lora.refining import LOOK, Refining, Seen, averaged_since
from shoal.training.batches import tokenise
from shoal.training.lora import LoraObjective
from shoal.training.refining import RefiningRun
from shoal.training.short_runs import optimise

log = logging.getLogger(__name__)

REFINING = LoraTrainingConfig(steps=20, batch_size=8, learning_rate=1e-3)
STEPS_BETWEEN_LOOKS = 4
LEFT_OUT = 8  # examples, at most, whose gain is measured as learned
MAX_TOKENS = 10_000  # of training; long examples get fewer steps, so that two cores need no half minute
MOST_TOKENS = 20_000  # of training as learned, where no example is spent on looking


@dataclass(frozen=True, eq=False)
class Refinement:
    """An adapter after a few examples.

    Attributes:
        lora: the adapter, float32 on the CPU.
        examples: examples that were trained on.
        held_out: examples that chose where to stop; 0 where that was learned.
        steps: optimiser steps that are kept; 0 means that the adapter is as it was.
        loss_before: mean loss at the start on the held-out examples, or where there are none on those that
            were trained on, in nats per token.
        loss_after: the same after the steps that are kept.
        seconds: how long all of it took.
        tokens: that training read.
        rates: SHA-256 of the learned refining, in hex; None where constants of this module were used.
        curve: (steps, loss) on the way, in nats per token: where examples are held out their mean loss, else
            that of the examples of each step, which the step is then trained on.
        gain: of examples that were not learned from: those held out, which also chose the step, or as learned
            the first `LEFT_OUT`, each left out in its turn. None where the start had read the examples.
        others: adapters that leave one of these out each, where that was followed.
    """

    lora: LoRA
    examples: int
    held_out: int
    steps: int
    loss_before: float
    loss_after: float
    seconds: float
    tokens: int
    rates: str | None = None
    curve: tuple[tuple[int, float], ...] = ()
    gain: Gain | None = None
    others: tuple[LoRA, ...] = ()


def refine(
    backbone: Backbone,
    lora: LoRA,
    examples: Sequence[Example],
    *,
    description: str,
    config: LoraTrainingConfig = REFINING,
    learned: Refining | None = None,
    start_read_them: bool = False,
) -> Refinement:
    """Train an adapter a little on a few examples of its task.

    Args:
        backbone: the frozen model that the adapter is for.
        lora: the adapter to start from.
        examples: as `shoal.tasks.records.check_examples` takes them; with some held out, those of one input
            count as one.
        description: of the task, for error messages and logs.
        config: optimisation settings; the learning rate stays at its peak, and training ends early at
            `MAX_TOKENS` tokens. Of these, `learned` keeps `max_length` and `seed`.
        learned: rates, decay and steps for all the examples; with None, or with fewer examples than it
            knows steps for, some are held out, and they say where to stop.
        start_read_them: the adapter was generated from the examples too, so no gain on them says anything.

    Raises:
        UsageError: fewer than `MIN_EXAMPLES` fit into `config.max_length` tokens; longer ones are left out.
    """
    started = time.perf_counter()
    log.info("refining the adapter on %d examples", len(examples))
    prompts = backbone.encode_prompts([e.input for e in examples])
    completions = backbone.encode_completions([e.outputs[0] for e in examples])
    lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    examples = [examples[i] for i in short_ones("examples", lengths, config.max_length, MIN_EXAMPLES)]
    _say_contradictions(examples)
    if learned is None or len(examples) < min(learned.steps):
        found = _stopped_by_held_out(backbone, lora, examples, description, config, started)
    else:
        found = _as_learned(backbone, lora, examples, description, config, learned, started)
    return replace(found, gain=None) if start_read_them else found


def _stopped_by_held_out(
    backbone: Backbone,
    lora: LoRA,
    examples: Sequence[Example],
    description: str,
    config: LoraTrainingConfig,
    started: float,
) -> Refinement:
    fit, held_out = divide(examples, test_size=max(1, len(examples) // 4), seed=config.seed)
    if (count := len(fit) + len(held_out)) < MIN_EXAMPLES:
        raise UsageError(
            f"{count} different examples of at most {config.max_length} tokens are too few to refine an "
            f"adapter on, the least is {MIN_EXAMPLES}; give more that are short, or none"
        )
    targets = [t for t in backbone.shape.targets if t.name in lora.factors]
    corpus = tokenise([_task(description, fit)], backbone, config.max_length)
    objective = LoraObjective(backbone, corpus, targets, lora, config)
    first = losses = _losses(backbone, held_out, lora)
    best, kept, tokens, curve = lora, 0, 0, [(0, fmean(first))]
    steps = optimise(
        backbone, objective, config.steps, weight_decay=config.weight_decay, clip_norm=config.clip_norm
    )
    for step, taken in enumerate(steps, start=1):
        tokens += taken.tokens
        last = step == config.steps or tokens >= MAX_TOKENS
        if step % STEPS_BETWEEN_LOOKS == 0 or last:
            found = _losses(backbone, held_out, candidate := objective.lora())
            curve.append((step, fmean(found)))
            if fmean(found) < fmean(losses):
                best, kept, losses = candidate, step, found
        if last:
            break
    seconds = time.perf_counter() - started
    gain = gain_of(first, losses)
    return Refinement(
        best,
        len(fit),
        len(held_out),
        kept,
        gain.loss_before,
        gain.loss_after,
        seconds,
        tokens,
        curve=tuple(curve),
        gain=gain,
    )


def _as_learned(
    backbone: Backbone,
    lora: LoRA,
    examples: Sequence[Example],
    description: str,
    config: LoraTrainingConfig,
    learned: Refining,
    started: float,
) -> Refinement:
    targets = [t for t in backbone.shape.targets if t.name in lora.factors]
    shots = tokenise([_task(description, examples)], backbone, config.max_length).examples[0]
    rates = learned.module_rates(targets)
    run = RefiningRun(backbone, lora, shots, rates, decay=learned.decay, seed=config.seed, left_out=LEFT_OUT)
    before = _losses(backbone, examples, lora)
    wanted = LOOK if learned.rule is not None else learned.steps_for(len(examples))
    taken, tokens = 0, 0
    losses: list[float] = []
    run.marks |= {*range(LOOK + 1), averaged_since(wanted)}
    for step in run.steps(max(LOOK, learned.most_steps)):
        taken, tokens = taken + 1, tokens + step.tokens
        losses.append(float(step.loss.detach()))
        if taken == LOOK and learned.rule is not None:
            wanted = learned.rule.steps(Seen(len(examples), losses, run.agreement))
            run.marks.add(averaged_since(wanted))
        if taken >= wanted or tokens >= MOST_TOKENS:
            break
    since = averaged_since(wanted) if taken > averaged_since(wanted) else 0
    refined = run.mean(since)
    after = fmean(_losses(backbone, examples, refined))
    left_out = run.left_out_losses(since)
    seconds = time.perf_counter() - started
    return Refinement(
        refined,
        len(examples),
        0,
        taken,
        fmean(before),
        after,
        seconds,
        tokens,
        learned.sha256,
        tuple(enumerate(losses)),
        gain_of(before[: len(left_out)], left_out),
        tuple(run.left_out_loras(since)),
    )


def left_out_loras(
    backbone: Backbone, lora: LoRA, examples: Sequence[Example], description: str, steps: int
) -> list[LoRA]:
    """Adapters that leave out one of the first examples each, after steps at the rate of `REFINING`."""
    shots = tokenise([_task(description, examples)], backbone, REFINING.max_length).examples[0]
    rates = dict.fromkeys(lora.factors, REFINING.learning_rate)
    run = RefiningRun(backbone, lora, shots, rates, seed=REFINING.seed, left_out=LEFT_OUT)
    run.marks.add(steps - 1)
    for _ in run.steps(steps):
        pass
    return run.left_out_loras(steps - 1)


def _task(description: str, examples: Sequence[Example]) -> Task:
    return Task("examples", "few-shot", description, (description,), tuple(examples), ())


def _say_contradictions(examples: Sequence[Example]) -> None:
    """Log how many inputs are given with different right answers; all of them are kept."""
    answers: dict[str, set[str]] = {}
    for example in examples:
        answers.setdefault(normalise(example.input), set()).add(normalise(example.outputs[0]))
    if several := sum(len(own) > 1 for own in answers.values()):
        log.warning("%d inputs are given with outputs that contradict each other; all are kept", several)


def _losses(backbone: Backbone, examples: Sequence[Example], lora: LoRA) -> list[float]:
    return reference_losses(backbone, [e.input for e in examples], [e.outputs[0] for e in examples], lora)
