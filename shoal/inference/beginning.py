"""Losses of answers whose prompts begin alike, under several adapters at once.

A chat template puts the same tokens before every request. What a layer keeps of them depends on the adapter
alone, so each adapter reads them once, and every row goes on behind them. Knows token ids and whatever is
attached to the model; nothing of tasks or of what an adapter is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from shoal.inference.forward import answer_logits, answer_losses, pad_sequences
from shoal.models.backbone import Backbone
from shoal.models.memories import LayerMemory

ROWS = 64  # of one forward pass, at most


@torch.no_grad()
def losses_under_each(
    backbone: Backbone,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    adapters: int = 1,
    *,
    share: bool = True,
) -> tuple[Float[Tensor, "adapters pairs"], int]:
    """Loss of every answer under each of the adapters that are at work, and the tokens that were read.

    Args:
        backbone: the model, where as many consecutive rows of a batch belong to each adapter.
        pairs: (prompt ids, completion ids).
        adapters: how many are at work.
        share: read the prompts' common beginning once; where a layer keeps more than keys and values, or the
            model reads no pieces, it is read with every row all the same.

    Returns:
        Mean cross-entropy in nats per token, float64 on the CPU; and tokens.
    """
    common = common_beginning([prompt for prompt, _ in pairs]) if share and _goes_on(backbone) else []
    behind = _read(backbone, common, adapters) if common else None
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    found, tokens = torch.empty(adapters, len(pairs), dtype=torch.float64), adapters * len(common)
    each = max(1, ROWS // adapters)
    for first in range(0, len(order), each):
        places = order[first : first + each]
        rests = [(pairs[i][0][len(common) :], pairs[i][1]) for i in places]
        batch = pad_sequences(rests * adapters, backbone.end_of_turn, backbone.device)
        losses = answer_losses(backbone, batch, behind=behind)
        found[:, places] = losses.double().cpu().view(adapters, -1)
        tokens += batch.tokens
    return found, tokens


def common_beginning(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all prompts begin with; at least one of every prompt is behind them."""
    common = list(os.path.commonprefix([list(prompt) for prompt in prompts]))
    return common[: max(0, min(map(len, prompts)) - 1)]


def _goes_on(backbone: Backbone) -> bool:
    """True where a model keeps keys and values alone, and goes on from them by several tokens."""
    return backbone.in_pieces and set(backbone.memories) == {LayerMemory()}


def _read(backbone: Backbone, common: Sequence[int], adapters: int) -> Cache:
    """What every layer keeps of the beginning under each adapter."""
    cache = Cache(layers=[_Beginning() for _ in backbone.layers])
    # With a token behind it, which is not read: the head has to run somewhere.
    batch = pad_sequences([(common, common[:1])] * adapters, backbone.end_of_turn, backbone.device)
    answer_logits(backbone, batch, behind=cache)
    return cache


class _Beginning(CacheLayerMixin):
    """One layer's first keys and values, (adapters, heads, length, size); what comes later is not kept."""

    is_sliding = False  # windows are a matter of the mask: all columns are kept

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Keep the beginning."""
        self.keys, self.values = key_states, value_states
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The beginning with what is new behind it, whose consecutive rows share an adapter's."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            return key_states, value_states
        assert self.keys is not None and self.values is not None
        each = len(key_states) // len(self.keys)
        keys, values = (kept.repeat_interleave(each, 0) for kept in (self.keys, self.values))
        return torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)

    def get_max_cache_shape(self) -> int:
        """-1, which stands for no limit; transformers 5.0 wants the method."""
        return -1

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(columns that the queries see, offset of the first)."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens of the beginning."""
        return 0 if self.keys is None else self.keys.shape[2]
