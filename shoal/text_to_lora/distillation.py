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
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.adapters.card import LabelSet
from shoal.adapters.lora import LoRA
from shoal.inference.forward import answer_logits, pad_sequences
from shoal.inference.generate import generate_greedy
from shoal.inference.labels import batch_calibrated, label_log_likelihoods, label_priors
from shoal.models.backbone import Backbone
from shoal.tasks.inputs import MIN_INPUTS
from shoal.tasks.texts import prompted_input
from shoal.text_to_lora.label_similarity import LabelSimilarity
from shoal.text_to_lora.lengths import short_ones
from shoal.training.imitation import Imitation, SoftTargets, TaughtAnswer
from shoal.training.schedule import schedule
from shoal.training.short_runs import optimise

log = logging.getLogger(__name__)

STEPS, BATCH_SIZE, LEARNING_RATE = 60, 8, 2e-3
WARMUP = 1 / 15  # share of the steps
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
    similarity: LabelSimilarity | None = None,
    steps: int = STEPS,
    show_progress: bool = True,
) -> Distillation:
    """Teach an adapter what the base model answers to a description with each of some inputs.

    Args:
        backbone: the frozen model, teacher and student.
        lora: the adapter to start from, as a rule an identity.
        description: of the task.
        inputs: checked, see `shoal.tasks.inputs.check_inputs`.
        label_set: of the answers, where they are closed.
        similarity: what the meaning of labels adds to the teacher's scores of them; None for nothing.
        steps: of training, at most.
        show_progress: on standard error: a bar on a terminal, else a line every ten seconds.

    Raises:
        UsageError: fewer than `MIN_INPUTS` inputs fit, or as `label_log_likelihoods`.
    """
    started = time.perf_counter()
    limit = getattr(backbone.model.config, "max_position_embeddings", None) or MAX_LENGTH
    requests = [prompted_input(description, text) for text in inputs]
    prompted = backbone.encode_prompts(requests)
    room = min(MAX_LENGTH, limit) - MAX_NEW_TOKENS
    short = short_ones("inputs with the description", list(map(len, prompted)), room, MIN_INPUTS)
    requests, prompted = [requests[i] for i in short], [prompted[i] for i in short]
    plain = backbone.encode_prompts([inputs[i] for i in short])
    log.info("the prompted model answers %d inputs", len(plain))
    if label_set is None:
        taught = _open_answers(backbone, plain, requests, prompted)
    else:
        texts = [inputs[i] for i in short]
        evidence = similarity.evidence(label_set, texts) if similarity else None
        taught = _chosen_labels(backbone, plain, prompted, label_set, evidence)
    log.info("teaching its answers to an adapter")
    imitation = Imitation(backbone, lora, taught, batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE)
    longest = max(len(t.prompt) + len(t.completion) for t in taught) * min(BATCH_SIZE, len(taught))
    steps = max(1, min(steps, MAX_TOKENS // longest))
    rate = partial(schedule, end=steps, warmup=WARMUP)
    taken = optimise(backbone, imitation, steps, rate=rate, show_progress=show_progress)
    losses = [float(step.loss.detach()) for step in taken]
    student = imitation.lora()
    if label_set is not None:
        own = label_log_likelihoods(backbone, plain, label_set.labels, student)
        cosines = similarity.cosines(texts, label_set.labels).mean(0).tolist() if similarity else None
        label_set = label_set.calibrated(label_priors(own), f"{len(plain)} inputs", cosines)
    mean_prompted = sum(map(len, prompted)) / len(prompted)
    mean_plain = sum(map(len, plain)) / len(plain)
    last = losses[-max(1, steps // 10) :]
    return Distillation(
        student,
        label_set,
        len(plain),
        steps,
        losses[0],
        sum(last) / len(last),
        mean_prompted,
        mean_prompted - mean_plain,
        time.perf_counter() - started,
    )


def _chosen_labels(
    backbone: Backbone,
    plain: Sequence[Sequence[int]],
    prompted: Sequence[Sequence[int]],
    label_set: LabelSet,
    evidence: Float[Tensor, "prompts labels"] | None,
) -> list[TaughtAnswer]:
    """The prompted model's calibrated label for each input, with evidence from elsewhere."""
    scores = label_log_likelihoods(backbone, prompted, label_set.labels)
    scores = scores if evidence is None else scores + evidence
    chosen = batch_calibrated(scores).argmax(-1).tolist()
    completions = backbone.encode_completions(label_set.labels)
    return [TaughtAnswer(prompt, completions[i]) for prompt, i in zip(plain, chosen, strict=True)]


@torch.no_grad()
def _open_answers(
    backbone: Backbone,
    plain: Sequence[Sequence[int]],
    requests: Sequence[str],
    prompted: Sequence[Sequence[int]],
) -> list[TaughtAnswer]:
    """The prompted model's greedy answers, with its distribution at each of their tokens."""
    answers = generate_greedy(backbone, requests, max_new_tokens=MAX_NEW_TOKENS, batch_size=2 * BATCH_SIZE)
    completions = backbone.encode_completions(answers)
    taught: list[TaughtAnswer] = []
    for begin in range(0, len(plain), BATCH_SIZE):
        some = slice(begin, begin + BATCH_SIZE)
        pairs = list(zip(prompted[some], completions[some], strict=True))
        batch = pad_sequences(pairs, backbone.end_of_turn, backbone.device)
        likely = torch.softmax(answer_logits(backbone, batch).float(), -1)
        top = likely.topk(min(TOP, likely.shape[-1]), -1)
        lengths = [len(completion) for completion in completions[some]]
        ids = top.indices.cpu().split(lengths)
        probabilities = (top.values / top.values.sum(-1, keepdim=True)).cpu().split(lengths)
        soft = map(SoftTargets, ids, probabilities)
        taught += map(TaughtAnswer, plain[some], completions[some], soft)
    return taught
