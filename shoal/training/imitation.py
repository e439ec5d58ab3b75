"""Training a LoRA on answers that a teacher gave, hard (its tokens) or soft (its distribution over tokens).

Knows one adapter, prompts and answers as token ids; nothing of who the teacher is.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2; sequences
that the teacher itself wrote: Kim and Rush, "Sequence-Level Knowledge Distillation", arXiv 1606.07947.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from shoal.adapters.hooks import attach
from shoal.adapters.lora import LoRA
from shoal.errors import UsageError
from shoal.inference.forward import answer_logits, pad_sequences
from shoal.models.backbone import Backbone
from shoal.training.loop import StepLoss
from shoal.training.lora import TrainableLora
from shoal.training.short_runs import places_of


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
    """Cross-entropy to a teacher's answers, all soft or none, every answer with the same weight."""

    def __init__(
        self,
        backbone: Backbone,
        lora: LoRA,
        answers: Sequence[TaughtAnswer],
        *,
        batch_size: int = 8,
        learning_rate: float = 1e-3,
        seed: int = 0,
    ) -> None:
        """Copy the adapter's factors, in float32, to the backbone's device.

        Args:
            backbone: the frozen model.
            lora: the adapter to start from.
            answers: at least one.
            batch_size: answers per step.
            learning_rate: peak.
            seed: of the order.

        Raises:
            UsageError: there are no answers.
        """
        if not answers:
            raise UsageError("there are 0 answers to learn; at least 1 is needed, give some")
        self._backbone = backbone
        self._answers = answers
        self._batch_size = min(batch_size, len(answers))
        self._learning_rate = learning_rate
        self._seed = seed
        self._student = TrainableLora(lora, backbone.device)

    @property
    def module(self) -> nn.Module:
        """The factors."""
        return self._student.factors

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All factors at one learning rate."""
        return [{"params": list(self.module.parameters()), "lr": self._learning_rate}]

    def loss(self, forward_pass: int) -> StepLoss:
        """Mean loss of one batch, nats per token."""
        rows = self.batch(forward_pass)
        pairs = [(row.prompt, row.completion) for row in rows]
        batch = pad_sequences(pairs, self._backbone.end_of_turn, self._backbone.device)
        with attach(self._backbone.model, self._student.current()):
            logits = answer_logits(self._backbone, batch)
        losses = _losses(logits.float(), rows)
        owners = batch.answer.nonzero()[:, 0]
        total = torch.zeros(len(rows), device=losses.device).index_add(0, owners, losses)
        return StepLoss((total / batch.answer.sum(1).clamp(min=1)).mean(), batch.tokens)

    def batch(self, forward_pass: int) -> list[TaughtAnswer]:
        """The answers of one forward pass: each comes once before any comes again."""
        places = places_of(forward_pass, self._batch_size, len(self._answers), self._seed)
        return [self._answers[place] for place in places]

    def lora(self) -> LoRA:
        """The adapter as it stands, float32 on the CPU."""
        return self._student.copy()


def _losses(logits: Float[Tensor, "answers vocabulary"], rows: Sequence[TaughtAnswer]) -> Tensor:
    """Cross-entropy at every answer token, against the teacher's token or distribution, in nats."""
    if any(row.soft is None for row in rows):
        said = torch.tensor([token for row in rows for token in row.completion], device=logits.device)
        return F.cross_entropy(logits, said, reduction="none")
    log_probabilities = torch.log_softmax(logits, -1)
    ids = torch.cat([row.soft.ids for row in rows if row.soft]).to(logits.device)
    wanted = torch.cat([row.soft.probabilities for row in rows if row.soft]).to(logits.device)
    return -(wanted * log_probabilities.gather(1, ids)).sum(1)
