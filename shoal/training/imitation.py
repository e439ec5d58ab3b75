"""Training a LoRA on answers that a teacher gave, hard (its tokens) or soft (its distribution over tokens).

Knows one adapter, prompts and answers as token ids; nothing of who the teacher is. Everything stays in
memory.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2; sequences
that the teacher itself wrote: Kim and Rush, "Sequence-Level Knowledge Distillation", arXiv 1606.07947.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from shoal.adapters.hooks import attach
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.errors import UsageError
from shoal.inference.forward import answer_logits, pad_sequences
from shoal.models.backbone import Backbone
from shoal.training.lora import set_for_training


@dataclass(frozen=True)
class SoftTargets:
    """A teacher's likeliest tokens at every token of an answer.

    Attributes:
        ids: token ids, (answer, k).
        probabilities: of them, renormalised to sum to 1, (answer, k), float32.
    """

    ids: Int[Tensor, "answer k"]
    probabilities: Float[Tensor, "answer k"]


@dataclass(frozen=True)
class TaughtAnswer:
    """A prompt as the student sees it, and the teacher's answer to it.

    Attributes:
        prompt: token ids.
        completion: token ids with the end-of-turn token.
        soft: the teacher's distribution at each of them; None trains on the tokens themselves.
    """

    prompt: Sequence[int]
    completion: Sequence[int]
    soft: SoftTargets | None = None


class Imitation:
    """Steps of AdamW towards a teacher's answers, every answer with the same weight."""

    def __init__(
        self,
        backbone: Backbone,
        lora: LoRA,
        answers: Sequence[TaughtAnswer],
        *,
        batch_size: int = 8,
        learning_rate: float = 1e-3,
        clip_norm: float = 1.0,
        seed: int = 0,
    ) -> None:
        """Copy the adapter's factors, in float32, to the backbone's device.

        Args:
            backbone: the frozen model.
            lora: the adapter to start from.
            answers: at least one.
            batch_size: answers per step.
            learning_rate: of every step; scale it from outside with `scale`.
            clip_norm: limit of the gradient norm.
            seed: of the order.

        Raises:
            UsageError: there are no answers.
        """
        if not answers:
            raise UsageError("there are 0 answers to learn; at least 1 is needed, give some")
        self._backbone = backbone
        self._answers = answers
        self._alpha = lora.alpha
        self._batch_size = min(batch_size, len(answers))
        self._clip = clip_norm
        self._names = list(lora.factors)
        self._parameters = [
            nn.Parameter(factor.detach().float().clone().to(backbone.device))
            for name in self._names
            for factor in lora.factors[name]
        ]
        self._rate = learning_rate
        self._optimizer = torch.optim.AdamW(self._parameters, lr=learning_rate, weight_decay=0.0)
        self._chance = random.Random(seed)
        self._order = list[int]()

    def step(self, scale: float = 1.0) -> float:
        """One optimiser step at `scale` times the learning rate; its mean loss, nats per token."""
        rows = [self._answers[i] for i in self._draw()]
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * scale
        pairs = [(row.prompt, row.completion) for row in rows]
        batch = pad_sequences(pairs, self._backbone.end_of_turn, self._backbone.device)
        with set_for_training(self._backbone):
            with attach(self._backbone.model, self._current()):
                logits = answer_logits(self._backbone, batch)
            losses = _losses(logits.float(), rows)
            owners = batch.answer.nonzero()[:, 0]
            total = torch.zeros(len(rows), device=losses.device).index_add(0, owners, losses)
            loss = (total / batch.answer.sum(1).clamp(min=1)).mean()
            loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def lora(self) -> LoRA:
        """The adapter as it stands, float32 on the CPU."""
        factors = {
            name: LoraFactors(a.detach().cpu().clone(), b.detach().cpu().clone())
            for name, (a, b) in self._current().factors.items()
        }
        return LoRA(factors, self._alpha)

    def _current(self) -> LoRA:
        pairs = zip(self._parameters[::2], self._parameters[1::2], strict=True)
        return LoRA({n: LoraFactors(a, b) for n, (a, b) in zip(self._names, pairs, strict=True)}, self._alpha)

    def _draw(self) -> list[int]:
        """The next rows: every answer once before any comes again."""
        if len(self._order) < self._batch_size:
            fresh = [i for i in range(len(self._answers)) if i not in self._order]
            self._chance.shuffle(fresh)
            self._order += fresh
        drawn, self._order = self._order[: self._batch_size], self._order[self._batch_size :]
        return drawn


def _losses(logits: Float[Tensor, "answers vocabulary"], rows: Sequence[TaughtAnswer]) -> Tensor:
    """Cross-entropy at every answer token, against the teacher's token or distribution, in nats."""
    if any(row.soft is None for row in rows):
        said = torch.tensor([token for row in rows for token in row.completion], device=logits.device)
        return F.cross_entropy(logits, said, reduction="none")
    log_probabilities = torch.log_softmax(logits, -1)
    ids = torch.cat([row.soft.ids for row in rows if row.soft]).to(logits.device)
    wanted = torch.cat([row.soft.probabilities for row in rows if row.soft]).to(logits.device)
    return -(wanted * log_probabilities.gather(1, ids)).sum(1)
