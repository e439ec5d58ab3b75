"""Rows of tokens that a model continues together, each with its own adapter; rows join and leave at any time.

The one loop body under everything that generates: tokens in, the next token's logits out. Knows nothing of
how tokens are chosen, nor of texts or requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shoal.adapters.base import Adapter
from shoal.adapters.batched import RowAdapters
from shoal.adapters.decomposition import Decompositions
from shoal.inference.kv_cache import RowCache
from shoal.models.backbone import Backbone
from shoal.models.memories import ARGUMENTS, cache_argument


class Rows:
    """A batch that is being continued.

    Attributes:
        adapters: the adapters of the rows.
        cache: their keys and values.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: Sequence[Sequence[int]] = (),
        adapters: Sequence[Adapter | None] | None = None,
        *,
        basis: Decompositions | None = None,
    ) -> None:
        """Rows whose prompts are not read yet (see `read`), or none.

        Args:
            backbone: the model, with whatever is attached to it.
            prompts: token ids, of at least one token each.
            adapters: one for each prompt; None for none.
            basis: decompositions that experts scale, best a `ModelBasis`.
        """
        self._backbone = backbone
        self._cache_name = cache_argument(backbone.model) or ARGUMENTS[0]
        self.cache = RowCache(backbone.memories, [len(prompt) for prompt in prompts])
        self.adapters = RowAdapters(backbone.model, basis or {}, adapters or [None] * len(prompts))
        self._unread = _left_padded(prompts, backbone.end_of_turn) if prompts else None

    def __len__(self) -> int:
        return len(self.cache)

    @property
    def unread(self) -> int:
        """Columns of the prompts that are not read yet."""
        return 0 if self._unread is None else self._unread.shape[1] - self.cache.end

    @torch.no_grad()
    def read(self, columns: int | None = None) -> Float[Tensor, "rows vocabulary"]:
        """Read so many columns of the prompts more (None, or a model that reads no pieces: all of them).

        Returns:
            Logits of the token after the last column that is read.
        """
        assert self._unread is not None
        begin = self.cache.end
        ids = self._unread[:, begin : begin + self._taken(columns)]
        logits = self._forward(ids)[:, -1]
        if not self.unread:
            self._unread = None
        return logits

    @torch.no_grad()
    def read_whole(self, columns: int) -> Float[Tensor, "rows columns vocabulary"]:
        """Read columns of the prompts as `read`; logits of the token after each of them."""
        assert self._unread is not None
        end = self.cache.end + self._taken(columns)
        logits = self._forward(self._unread[:, self.cache.end : end], everywhere=True)
        if not self.unread:
            self._unread = None
        return logits

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocabulary"]:
        """Append one token to every row; logits of the next."""
        return self._forward(tokens[:, None])[:, -1]

    def join(self, other: Rows, picks: Sequence[int]) -> None:
        """Append copies of rows of another batch; a row may be picked several times."""
        self.cache.join(other.cache, picks)
        self.adapters.extend([other.adapters.rows[pick] for pick in picks])

    def drop(self, row: int) -> None:
        """Remove a row; the last one takes its place."""
        self.cache.drop(row)
        self.adapters.drop(row)

    def _taken(self, columns: int | None) -> int:
        return columns if columns and self._backbone.in_pieces else self.unread

    def _forward(
        self, ids: Int[Tensor, "rows columns"], *, everywhere: bool = False
    ) -> Float[Tensor, "rows read vocabulary"]:
        """Logits at the last column, or at all of them."""
        backbone, cache, columns = self._backbone, self.cache, ids.shape[1]
        cache.make_room(columns)
        starts = torch.tensor(cache.starts)[:, None]
        places = torch.arange(cache.first, cache.end + columns)[None]
        # Without padding no mask is needed, and the attention kernels take their fast causal path.
        padded = len(set(cache.starts)) > 1
        with self.adapters.attached(), nullcontext() if everywhere else _LastOnly(backbone.model):
            logits: Tensor = backbone.model(
                input_ids=ids.to(backbone.device),
                attention_mask=(places >= starts).long().to(backbone.device) if padded else None,
                position_ids=(places[:, -columns:] - starts).clamp(min=0).to(backbone.device),
                use_cache=True,
                **{self._cache_name: cache.cache},
            ).logits
        cache.advance(columns)
        return logits


class _LastOnly:
    """Let the language-model head run at the last position only.

    The head is a fifth of a small model. Contiguous, since otherwise the product copies the head's weight
    once per sample.
    """

    def __init__(self, model: nn.Module) -> None:
        self._head: Any = model.get_output_embeddings()  # type: ignore[operator]

    def __enter__(self) -> None:
        self._hook = self._head.register_forward_pre_hook(
            lambda module, args: (args[0][:, -1:].contiguous(),)
        )

    def __exit__(self, *error: object) -> None:
        self._hook.remove()


def _left_padded(prompts: Sequence[Sequence[int]], pad: int) -> Int[Tensor, "rows length"]:
    """Token ids, every prompt ending in the last column."""
    length = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), length), pad)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
    return ids
