"""Inputs without answers make an adapter better: it learns the labels that it gives when it is calibrated.

The adapter scores every label on the user's inputs, and the sentence encoder says how near each label is to
them; the mean score of a label is its prior, and the calibrated label of each input is a pseudo-label. Some
steps on these pairs put both into the LoRA itself, so that any loader of a plain adapter has them. Guards
keep the adapter as it was where the pseudo-labels hardly depend on the input and the prompted base model does
not confirm them, where nearly all are the same, and where training does not bring plain answers nearer to
them. Open answers are left alone.

Source: Lee, "Pseudo-Label", ICML workshop 2013; calibration as in `shoal.inference.labels`.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.adapters.card import LabelSet
from shoal.adapters.lora import LoRA
from shoal.inference.labels import batch_calibrated, label_log_likelihoods, label_priors
from shoal.models.backbone import Backbone
from shoal.tasks.inputs import MIN_INPUTS
from shoal.tasks.texts import prompted_input
from shoal.text_to_lora.label_similarity import LabelSimilarity
from shoal.text_to_lora.lengths import short_ones
from shoal.training.imitation import Imitation, TaughtAnswer
from shoal.training.short_runs import optimise

log = logging.getLogger(__name__)

LEAST_STEPS, MOST_STEPS, EPOCHS = 12, 48, 3
LOOKED_AT = 32  # inputs, at most, on which the adapter is judged on the way
BATCH_SIZE, LEARNING_RATE = 8, 1e-3
MAX_LENGTH = 256  # tokens of a request
MOST_OF_ONE = 0.8  # share of one label among the pseudo-labels, above which they are called collapsed
LEAST_INFORMATION = 0.08  # share of the label entropy that the input must explain, or else
LEAST_KAPPA = 0.4  # agreement beyond chance with the prompted base model, likewise calibrated


@dataclass(frozen=True, eq=False)
class SelfTraining:
    """An adapter after inputs without answers.

    Attributes:
        lora: the adapter, float32 on the CPU.
        label_set: with the priors of this adapter on the inputs.
        inputs: that were used.
        texts: what these are, for people.
        steps: optimiser steps that are kept; 0 means that the factors are as they were.
        agreement_before: share of the first `LOOKED_AT` inputs whose plain likeliest label is the calibrated
            one, at the start.
        agreement_after: the same, with the calibrated labels of the start, after the steps that are kept.
        largest_share: of one label among the pseudo-labels.
        kappa: Cohen's kappa with the prompted base model's calibrated labels; None where it was not asked.
        information: share of the label entropy that the inputs explain, in [0, 1]; see `information`.
        reason: why the factors are as they were; None where training was kept.
        seconds: how long all of it took.
    """

    lora: LoRA
    label_set: LabelSet
    inputs: int
    texts: str
    steps: int
    agreement_before: float
    agreement_after: float
    largest_share: float
    information: float
    kappa: float | None
    reason: str | None
    seconds: float


def self_train(
    backbone: Backbone,
    lora: LoRA,
    label_set: LabelSet,
    inputs: Sequence[str],
    *,
    description: str,
    similarity: LabelSimilarity | None = None,
    steps: int | None = None,
    texts: str = "inputs",
) -> SelfTraining:
    """Calibrate an adapter on inputs, and train it on the labels that it then gives, unless a guard objects.

    Args:
        backbone: the frozen model that the adapter is for.
        lora: the adapter to start from.
        label_set: its priors, if any, are measured again.
        inputs: checked, see `shoal.tasks.inputs.check_inputs`; those of more than `MAX_LENGTH` tokens are
            left out.
        description: of the task, for the prompted base model's second opinion.
        similarity: what the meaning of labels adds to the scores that teach; None for nothing.
        steps: of training; 0 calibrates only, None takes `steps_for` the inputs.
        texts: what the inputs are, for people.

    Raises:
        UsageError: fewer than `MIN_INPUTS` inputs are short enough, or as `label_log_likelihoods`.
    """
    started = time.perf_counter()
    labels, prompts = label_set.labels, backbone.encode_prompts(inputs)
    short = short_ones("inputs", list(map(len, prompts)), MAX_LENGTH, MIN_INPUTS)
    inputs, prompts = [inputs[i] for i in short], [prompts[i] for i in short]
    steps = steps_for(len(inputs)) if steps is None else steps
    log.info("calibrating the adapter on %d inputs", len(inputs))
    scores = label_log_likelihoods(backbone, prompts, labels, lora)
    teaching, cosines = scores, None
    if similarity is not None:
        teaching = scores + similarity.evidence(label_set, inputs)
        cosines = similarity.cosines(inputs[:LOOKED_AT], labels).mean(0).tolist()
    calibrated = batch_calibrated(teaching)
    chosen = calibrated.argmax(-1).tolist()
    largest, explained = _largest_share(chosen), information(calibrated)
    scores = scores[:LOOKED_AT]
    before = after = _agreement(scores, chosen)
    best, kept, own = lora, 0, scores
    kappa = None
    if steps and explained < LEAST_INFORMATION:  # faint, which need not be wrong
        kappa = cohens_kappa(chosen, _second_opinion(backbone, labels, inputs, description), len(labels))
    reason = _objection(largest, explained, kappa) if steps else "0 steps"
    if reason is None:
        log.info("training the adapter on its own calibrated labels")
        completions = backbone.encode_completions(labels)
        taught = [TaughtAnswer(p, completions[i]) for p, i in zip(prompts, chosen, strict=True)]
        imitation = Imitation(backbone, lora, taught, batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE)
        for step, _ in enumerate(optimise(backbone, imitation, steps), start=1):
            if step not in (steps // 2, steps):
                continue
            candidate = imitation.lora()
            found = label_log_likelihoods(backbone, prompts[:LOOKED_AT], labels, candidate)
            agreement = _agreement(found, chosen)
            plain = _largest_share(found.argmax(-1).tolist())
            if agreement > after and plain <= max(MOST_OF_ONE, largest):
                best, kept, after, own = candidate, step, agreement, found
        reason = None if kept else "training brought its plain answers no nearer to the calibrated ones"
    return SelfTraining(
        best,
        label_set.calibrated(label_priors(own), f"{len(own)} {texts}", cosines),
        len(inputs),
        texts,
        kept,
        before,
        after,
        largest,
        explained,
        kappa,
        reason,
        time.perf_counter() - started,
    )


def steps_for(inputs: int) -> int:
    """Optimiser steps that a number of inputs is worth: `EPOCHS` over them, within limits."""
    return min(MOST_STEPS, max(LEAST_STEPS, EPOCHS * inputs // BATCH_SIZE))


def information(calibrated: Float[Tensor, "inputs labels"]) -> float:
    """How much of the label entropy the input explains: (H(mean p) - mean H(p)) / H(mean p), in [0, 1].

    Near 0 the same distribution of labels comes whatever the input is. Source: Bridle et al., "Unsupervised
    Classifiers, Mutual Information and Phantom Targets", NIPS 1991.
    """
    p = torch.softmax(calibrated, -1)
    whole = _entropy(p.mean(0))
    return float(((whole - _entropy(p).mean()) / whole.clamp(min=1e-9)).clamp(0, 1))


def cohens_kappa(one: Sequence[int], other: Sequence[int], labels: int) -> float:
    """Agreement of two raters beyond chance, at most 1 (Cohen 1960, equation 1); 0 where it always does."""
    agreed = sum(a == b for a, b in zip(one, other, strict=True)) / len(one)
    chance = sum(one.count(x) * other.count(x) for x in range(labels)) / len(one) ** 2
    return (agreed - chance) / (1 - chance) if chance < 1 else 0.0


def _second_opinion(
    backbone: Backbone, labels: Sequence[str], inputs: Sequence[str], description: str
) -> list[int]:
    """The calibrated labels of the base model with the description before each input."""
    prompted = backbone.encode_prompts([prompted_input(description, text) for text in inputs])
    scores = label_log_likelihoods(backbone, prompted, labels)
    chosen: list[int] = batch_calibrated(scores).argmax(-1).tolist()
    return chosen


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp(min=1e-12).log()).sum(-1)


def _objection(largest: float, explained: float, kappa: float | None) -> str | None:
    if largest > MOST_OF_ONE:
        return f"{largest:.0%} of its calibrated answers are one label"
    if kappa is not None and kappa < LEAST_KAPPA:
        return (
            f"its calibrated answers hardly depend on the input ({explained:.0%} of the label entropy), and "
            f"the prompted model's differ (kappa {kappa:.2f})"
        )
    return None


def _agreement(scores: Float[Tensor, "inputs labels"], chosen: Sequence[int]) -> float:
    """The share of the first inputs whose likeliest label is the chosen one."""
    return float((scores.argmax(-1) == torch.tensor(chosen[: len(scores)])).float().mean())


def _largest_share(chosen: Sequence[int]) -> float:
    return max(Counter(chosen).values()) / len(chosen)
