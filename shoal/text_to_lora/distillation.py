"""An adapter for any causal language model, without a hypernetwork: context distillation.

The base model with the description in its prompt is the teacher: it answers the user's inputs, and a LoRA
learns to answer them so from the input alone, so the description's tokens need not be read any more. Open
answers are learnt from the teacher's own likeliest tokens and their probabilities, labels from its calibrated
choice.

Source: Askell et al., "A General Language Assistant as a Laboratory for Alignment", arXiv 2112.00861, section
3 (context distillation); Snell et al., "Learning by Distilling Context", arXiv 2209.15189.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shoal.adapters.card import LabelSet
from shoal.adapters.lora import LoRA
from shoal.errors import UsageError
from shoal.inference.forward import answer_logits, pad_sequences
from shoal.inference.generate import generate_greedy
from shoal.inference.labels import answer_with_labels, label_log_likelihoods, label_priors
from shoal.models.backbone import Backbone
from shoal.tasks.inputs import MIN_INPUTS
from shoal.training.imitation import Imitation, SoftTargets, TaughtAnswer

log = logging.getLogger(__name__)

STEPS, BATCH_SIZE, LEARNING_RATE = 60, 8, 2e-3
WARMUP_STEPS = 4
TOP = 16  # tokens of the teacher's distribution that are kept
MAX_NEW_TOKENS = 64  # of the teacher's answers
MAX_LENGTH = 512  # tokens of prompted request and answer; longer inputs are left out
MAX_TOKENS = 60_000  # of training; long inputs get fewer steps


@dataclass(frozen=True, eq=False)
class Distillation:
    """A LoRA that does without the description.

    Attributes:
        lora: the adapter, float32 on the CPU.
        label_set: with the priors of this adapter on the inputs; None for open answers.
        inputs: that the teacher answered.
        steps: optimiser steps.
        loss_before: cross-entropy to the teacher's answers at the start, in nats per token.
        loss_after: the mean of the last steps.
        prompt_tokens: of a mean request with the description.
        prompt_tokens_saved: of them, those that the adapter does without.
        seconds: how long all of it took.
    """

    lora: LoRA
    label_set: LabelSet | None
    inputs: int
    steps: int
    loss_before: float
    loss_after: float
    prompt_tokens: float
    prompt_tokens_saved: float
    seconds: float


def distil(
    backbone: Backbone,
    lora: LoRA,
    description: str,
    inputs: Sequence[str],
    *,
    label_set: LabelSet | None = None,
    steps: int = STEPS,
) -> Distillation:
    """Teach an adapter what the base model answers to a description with each of some inputs.

    Args:
        backbone: the frozen model, teacher and student.
        lora: the adapter to start from, as a rule an identity.
        description: of the task.
        inputs: checked, see `shoal.tasks.inputs.check_inputs`.
        label_set: of the answers, where they are closed.
        steps: of training, at most.

    Raises:
        UsageError: fewer than `MIN_INPUTS` inputs fit, or as `label_log_likelihoods`.
    """
    started = time.perf_counter()
    inputs, prompted = _fitting(backbone, description, inputs)
    plain = backbone.encode_prompts(inputs)
    if label_set is None:
        taught = _open_answers(backbone, plain, [f"{description}\n\n{text}" for text in inputs], prompted)
    else:
        scores = label_log_likelihoods(backbone, prompted, label_set.labels)
        chosen = answer_with_labels(label_set.labels, scores, label_priors(scores))
        completions = backbone.encode_completions([answer.label for answer in chosen])
        taught = [TaughtAnswer(p, c) for p, c in zip(plain, completions, strict=True)]
    imitation = Imitation(backbone, lora, taught, batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE)
    longest = max(len(t.prompt) + len(t.completion) for t in taught) * min(BATCH_SIZE, len(taught))
    steps = max(1, min(steps, MAX_TOKENS // longest))
    losses = [imitation.step(_rate(step, steps)) for step in range(steps)]
    student = imitation.lora()
    if label_set is not None:
        own = label_log_likelihoods(backbone, plain, label_set.labels, student)
        update = {"priors": tuple(label_priors(own)), "calibrated_on": f"{len(inputs)} inputs"}
        label_set = label_set.model_copy(update=update)
    whole, saved = (
        sum(map(len, rows)) / len(rows)
        for rows in (prompted, [p[len(q) :] for p, q in zip(prompted, plain, strict=True)])
    )
    last = losses[-max(1, steps // 10) :]
    return Distillation(
        student,
        label_set,
        len(inputs),
        steps,
        losses[0],
        sum(last) / len(last),
        whole,
        saved,
        time.perf_counter() - started,
    )


def _fitting(
    backbone: Backbone, description: str, inputs: Sequence[str]
) -> tuple[list[str], list[list[int]]]:
    """The inputs whose prompted request leaves room for an answer, and these requests' token ids."""
    limit = getattr(backbone.model.config, "max_position_embeddings", None) or MAX_LENGTH
    room = min(MAX_LENGTH, limit) - MAX_NEW_TOKENS
    prompted = backbone.encode_prompts([f"{description}\n\n{text}" for text in inputs])
    kept = [(text, ids) for text, ids in zip(inputs, prompted, strict=True) if len(ids) <= room]
    if len(kept) < MIN_INPUTS:
        raise UsageError(
            f"{len(kept)} of {len(inputs)} inputs have at most {room} tokens with the description, the least "
            f"is {MIN_INPUTS}; shorten the description or the inputs"
        )
    if left := len(inputs) - len(kept):
        log.warning("left out %d of %d inputs of more than %d tokens", left, len(inputs), room)
    return [text for text, _ in kept], [ids for _, ids in kept]


@torch.no_grad()
def _open_answers(
    backbone: Backbone,
    plain: Sequence[Sequence[int]],
    requests: Sequence[str],
    prompted: Sequence[Sequence[int]],
) -> list[TaughtAnswer]:
    """The teacher's greedy answers, with its distribution at each of their tokens."""
    answers = generate_greedy(backbone, requests, max_new_tokens=MAX_NEW_TOKENS, batch_size=16)
    completions = backbone.encode_completions(answers)
    taught = []
    for prompt, teacher, completion in zip(plain, prompted, completions, strict=True):
        batch = pad_sequences([(teacher, completion)], backbone.end_of_turn, backbone.device)
        likely = torch.softmax(answer_logits(backbone, batch).float(), -1)
        top = likely.topk(min(TOP, likely.shape[-1]), -1)
        soft = SoftTargets(top.indices.cpu(), (top.values / top.values.sum(-1, keepdim=True)).cpu())
        taught.append(TaughtAnswer(prompt, completion, soft))
    return taught


def _rate(step: int, steps: int) -> float:
    """Linear warm-up, then linear decay, as a share of the peak rate."""
    return min((step + 1) / WARMUP_STEPS, 1.0) * (1 - step / steps)
