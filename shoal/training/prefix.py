"""A cache of what the frozen layers below the first adapted one make of every training example.

Knows the backbone and tokenised examples, nothing of adapters or losses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shoal.backbone import Backbone
from shoal.forward import Sequences, hidden_before
from shoal.training.batches import TokenisedExample


class PrefixCache:
    """Inputs of layer `start`, computed once an example and kept, in the model's dtype, up to a bound in bytes."""

    def __init__(self, backbone: Backbone, start: int, *, limit: int = 4 * 2**30) -> None:
        """`start` is the first adapted layer; `limit` is in bytes, past which examples are computed each time."""
        self._backbone, self.start, self._limit = backbone, start, limit
        self._kept: dict[int, Tensor] = {}
        self._bytes = 0

    def hidden(self, examples: Sequence[TokenisedExample], batch: Sequences) -> Tensor | None:
        """Input of layer `start` for a batch, (batch, length, width); None where every layer is adapted."""
        if self.start == 0:
            return None
        missing = [row for row, example in enumerate(examples) if example.index not in self._kept]
        if missing:
            rows = torch.tensor(missing, device=batch.ids.device)
            part = Sequences(batch.ids[rows], batch.real[rows], batch.answer[rows])
            fresh = hidden_before(self._backbone, part, self.start)
            if len(missing) == len(examples):
                self._keep(examples, fresh)
                return fresh
            self._keep([examples[row] for row in missing], fresh)
        else:
            fresh = None
        width = self._backbone.model.config.hidden_size
        hidden = torch.zeros(*batch.ids.shape, width, dtype=self._backbone.dtype, device=batch.ids.device)
        for row, example in enumerate(examples):
            if example.index in self._kept:
                hidden[row, : example.length] = self._kept[example.index].to(hidden.device)
        if fresh is not None:
            hidden[rows] = fresh
        return hidden

    def _keep(self, examples: Sequence[TokenisedExample], hidden: Tensor) -> None:
        for example, values in zip(examples, hidden, strict=True):
            own = values[: example.length].clone()
            size = own.numel() * own.element_size()
            if self._bytes + size <= self._limit and example.index not in self._kept:
                self._kept[example.index] = own
                self._bytes += size
