"""Whatever answers requests and says how likely an answer is: a model, an adapted one, or Transformer².

So evaluations need not know which. Knows nothing of tasks or scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from shoal.backbone import Backbone
from shoal.engine import generate_greedy
from shoal.evaluation import reference_losses
from shoal.forward import pad_sequences
from shoal.lora import LoRA
from shoal.transformer2 import Transformer2


class Respondent(Protocol):
    """Answers requests."""

    @property
    def backbone(self) -> Backbone:
        """The model with its tokenizer."""

    def answers(self, requests: Sequence[str], *, max_new_tokens: int, batch_size: int = 32) -> list[str]:
        """The most likely answer to every request, of at most so many tokens."""

    def losses(
        self,
        requests: Sequence[str],
        continuations: Sequence[str],
        *,
        closed: bool = True,
        batch_size: int = 32,
    ) -> list[float]:
        """Mean cross-entropy of each continuation, nats a token; with the end of turn where `closed`."""


@dataclass(frozen=True, eq=False)
class AdaptedModel:
    """A model with one adapter, or as it is; errors as `generate_greedy`."""

    backbone: Backbone
    lora: LoRA | None = None

    def answers(self, requests: Sequence[str], *, max_new_tokens: int, batch_size: int = 32) -> list[str]:
        """See `Respondent`."""
        return generate_greedy(
            self.backbone, requests, self.lora, max_new_tokens=max_new_tokens, batch_size=batch_size
        )

    def losses(
        self,
        requests: Sequence[str],
        continuations: Sequence[str],
        *,
        closed: bool = True,
        batch_size: int = 32,
    ) -> list[float]:
        """See `Respondent`."""
        return reference_losses(
            self.backbone, requests, continuations, self.lora, closed=closed, batch_size=batch_size
        )


@dataclass(frozen=True, eq=False)
class SelfAdaptingModel:
    """Transformer² over the backbone's model: a first pass decides every request's expert.

    Attributes:
        backbone: whose model is wrapped.
        wrapped: the model that adapts itself; without experts it is the backbone's, bit for bit.
    """

    backbone: Backbone
    wrapped: Transformer2

    @torch.no_grad()
    def answers(self, requests: Sequence[str], *, max_new_tokens: int, batch_size: int = 32) -> list[str]:
        """See `Respondent`."""
        if not self.wrapped.experts:
            return AdaptedModel(self.backbone).answers(
                requests, max_new_tokens=max_new_tokens, batch_size=batch_size
            )
        prompts = self.backbone.encode_prompts(requests)
        pad = self.backbone.tokenizer.pad_token_id
        end = self.backbone.end_of_turn
        answers = [""] * len(prompts)
        for rows in _batches([len(p) for p in prompts], batch_size):
            length = max(len(prompts[i]) for i in rows)
            ids = torch.tensor([[pad] * (length - len(prompts[i])) + prompts[i] for i in rows])
            mask = torch.tensor([[0] * (length - len(prompts[i])) + [1] * len(prompts[i]) for i in rows])
            said: Any = self.wrapped.generate(
                ids.to(self.backbone.device),
                attention_mask=mask.to(self.backbone.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=end,
                pad_token_id=pad,
            )
            for i, row in zip(rows, said[:, length:].tolist(), strict=True):
                whole = row[: row.index(end)] if end in row else row
                answers[i] = self.backbone.decode(whole)
        return answers

    @torch.no_grad()
    def losses(
        self,
        requests: Sequence[str],
        continuations: Sequence[str],
        *,
        closed: bool = True,
        batch_size: int = 32,
    ) -> list[float]:
        """See `Respondent`."""
        if not self.wrapped.experts:
            plain = AdaptedModel(self.backbone)
            return plain.losses(requests, continuations, closed=closed, batch_size=batch_size)
        prompts = self.backbone.encode_prompts(requests)
        completions = self.backbone.encode_completions(continuations)
        completions = completions if closed else [ids[:-1] for ids in completions]
        losses = [0.0] * len(prompts)
        lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
        for rows in _batches(lengths, batch_size):
            asked = pad_sequences([(prompts[i], ()) for i in rows], 0, self.backbone.device)
            decisions = self.wrapped.decide(asked.ids, asked.real.long())
            batch = pad_sequences([(prompts[i], completions[i]) for i in rows], 0, self.backbone.device)
            logits = self.wrapped(
                batch.ids, attention_mask=batch.real.long(), decisions=decisions, use_cache=False
            ).logits
            for row, i in enumerate(rows):
                wanted = batch.answer[row].nonzero()[:, 0]
                loss = F.cross_entropy(logits[row, wanted - 1].float(), batch.ids[row, wanted])
                losses[i] = float(loss)
        return losses


def _batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices by length, in batches."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]
