"""A cache of what the frozen layers below the first adapted one make of every training example.

Knows the backbone and tokenised examples; the losses of answers go on from there.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from shoal.adapters.lora import BatchedLoRA, LoRA
from shoal.config import LoraTrainingConfig
from shoal.inference.forward import Sequences, adapted, answer_logits, hidden_before, losses_of, pad_sequences
from shoal.models.backbone import Backbone
from shoal.training.batches import TokenisedExample

# Device types on which an example passes the frozen layers alone: then its bits do not depend on what it
# shares a batch with, nor on what an interrupted run had in its cache. On an accelerator sums have no fixed
# order anyway, and one pass for all is faster.
COMPUTED_ALONE = ("cpu",)


class PrefixCache:
    """Inputs of layer `start`, computed once an example and kept, in the model's dtype, up to a bound."""

    def __init__(self, backbone: Backbone, start: int, *, limit: int = 4 * 2**30) -> None:
        """`start` is the first adapted layer; `limit` is in bytes: what is beyond is computed each time."""
        self._backbone = backbone
        self.start = start
        self._limit = limit
        self._kept: dict[int, Tensor] = {}
        self._bytes = 0

    def answer_losses(
        self, examples: Sequence[TokenisedExample], adapters: LoRA | BatchedLoRA, config: LoraTrainingConfig
    ) -> tuple[Float[Tensor, " batch"], int]:
        """The loss of every example's answer, nats per token, and how many real tokens were read for them."""
        logits, batch = self.answer_logits(examples, adapters, config)
        return losses_of(logits, batch, config.label_smoothing), batch.tokens

    def answer_logits(
        self, examples: Sequence[TokenisedExample], adapters: LoRA | BatchedLoRA, config: LoraTrainingConfig
    ) -> tuple[Float[Tensor, "answers vocabulary"], Sequences]:
        """Logits at every answer token, in the order of the examples, and the batch that they are of."""
        pairs = [(e.prompt, e.completion) for e in examples]
        batch = pad_sequences(pairs, self._backbone.end_of_turn, self._backbone.device)
        hidden = self.hidden(examples, batch)
        with adapted(self._backbone, adapters, recompute=config.gradient_checkpointing):
            return answer_logits(self._backbone, batch, start=self.start, hidden=hidden), batch

    def hidden(self, examples: Sequence[TokenisedExample], batch: Sequences) -> Tensor | None:
        """Input of layer `start` for a batch, (batch, length, width); None where every layer is adapted."""
        if self.start == 0:
            return None
        rows = {e.index: self._kept[e.index] for e in examples if e.index in self._kept}
        missing = list({e.index: e for e in examples if e.index not in rows}.values())
        size = 1 if batch.ids.device.type in COMPUTED_ALONE else max(1, len(missing))
        for start in range(0, len(missing), size):
            part = missing[start : start + size]
            for example, row in zip(part, self._compute(part), strict=True):
                rows[example.index] = row
                self._keep(example.index, row)
        width = rows[examples[0].index].shape[-1]
        hidden = rows[examples[0].index].new_zeros(*batch.ids.shape, width)
        for number, example in enumerate(examples):
            hidden[number, : example.length] = rows[example.index]
        return hidden

    def _compute(self, examples: Sequence[TokenisedExample]) -> list[Tensor]:
        """The output of the frozen layers for each example, (length, width)."""
        pairs = [(e.prompt, e.completion) for e in examples]
        batch = pad_sequences(pairs, self._backbone.end_of_turn, self._backbone.device)
        hidden = hidden_before(self._backbone.model, batch, self.start)
        return [row[: e.length].clone() for row, e in zip(hidden, examples, strict=True)]

    def _keep(self, index: int, row: Tensor) -> None:
        size = row.numel() * row.element_size()
        if index >= 0 and self._bytes + size <= self._limit:  # others come once
            self._kept[index] = row
            self._bytes += size
