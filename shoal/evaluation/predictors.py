"""The model that an evaluation asks: as it is, under one adapter, or adapting itself as Transformer² does.

So evaluations need not know which. Knows nothing of tasks or scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from shoal.adapters.base import Adapter
from shoal.adapters.svf import Decompositions
from shoal.inference.forward import pad_sequences
from shoal.inference.generate import generate_greedy
from shoal.inference.scoring import reference_losses
from shoal.models.backbone import Backbone
from shoal.transformer2.model import Transformer2

Result = TypeVar("Result")
PAD = 0  # any token: what is padding is masked


@dataclass(frozen=True, eq=False)
class Predictor:
    """Answers requests and says how likely an answer is; errors as `generate_greedy`.

    Attributes:
        backbone: the model with its tokenizer.
        adapter: that under which it answers; None for none.
        wrapped: Transformer² over the backbone's model: a first pass decides every request's expert. Without
            experts its answers are the backbone's, bit for bit.
        basis: decompositions of the weights that `adapter` scales, where it is an expert.
    """

    backbone: Backbone
    adapter: Adapter | None = None
    wrapped: Transformer2 | None = None
    basis: Decompositions | None = None

    def answers(self, requests: Sequence[str], *, max_new_tokens: int, batch_size: int = 32) -> list[str]:
        """The most likely answer to every request, of at most so many tokens."""

        def of(rows: Sequence[int]) -> list[str]:
            asked = [requests[i] for i in rows]
            return generate_greedy(
                self.backbone,
                asked,
                self.adapter,
                basis=self.basis,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
            )

        return self._skill_by_skill(requests, of)

    def losses(
        self,
        requests: Sequence[str],
        continuations: Sequence[str],
        *,
        closed: bool = True,
        batch_size: int = 32,
    ) -> list[float]:
        """Mean cross-entropy of each continuation, nats per token; with the end of turn where `closed`."""

        def of(rows: Sequence[int]) -> list[float]:
            asked = [requests[i] for i in rows]
            said = [continuations[i] for i in rows]
            return reference_losses(
                self.backbone,
                asked,
                said,
                self.adapter,
                basis=self.basis,
                closed=closed,
                batch_size=batch_size,
            )

        return self._skill_by_skill(requests, of)

    def _skill_by_skill(
        self, requests: Sequence[str], of: Callable[[Sequence[int]], list[Result]]
    ) -> list[Result]:
        """The results of a function of rows, called once per skill with that skill's expert attached."""
        if self.wrapped is None:
            return of(range(len(requests)))
        prompts = [(ids, ()) for ids in self.backbone.encode_prompts(requests)]
        asked = pad_sequences(prompts, PAD, self.backbone.device)
        decisions = self.wrapped.decide(asked.ids, asked.real.long())
        found: dict[int, Result] = {}
        for skill in dict.fromkeys(d.skill for d in decisions):
            rows = [row for row, decision in enumerate(decisions) if decision.skill == skill]
            with self.wrapped.adapted([decisions[rows[0]]]):
                found |= zip(rows, of(rows), strict=True)
        return [found[row] for row in range(len(prompts))]
