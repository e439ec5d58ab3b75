"""The states of a description's tokens in the frozen backbone, layer by layer.

Hypernetworks with the head `reader` read these. Knows the backbone, nothing of hypernetworks or tasks.

Source: Charakorn et al., "Doc-to-LoRA", arXiv 2602.15902: it reads the model's states of a document.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoal.errors import shorten
from shoal.inference.forward import pad_sequences
from shoal.models.backbone import Backbone
from shoal.models.modules import TargetModule, group_by_type

logger = logging.getLogger(__name__)

MAX_TOKENS = 128  # of a description; what is longer is read as far as that
SHOT_TOKENS = 64  # further tokens for each solved example behind it
BATCH = 32


class StateReader:
    """Reads descriptions by a backbone, for adapters of certain modules; see `DescriptionReader`."""

    small = False  # states of all the descriptions of a training would fill any memory

    def __init__(self, backbone: Backbone, targets: Sequence[TargetModule], shots: int = 0) -> None:
        """Read by this backbone, as it is: no adapter may be attached while texts are read.

        Behind a description up to `shots` solved examples are read.
        """
        self._backbone = backbone
        self._limit = MAX_TOKENS + shots * SHOT_TOKENS
        self._groups = group_by_type(targets)
        first = {t.layer: t for t in reversed(backbone.shape.targets)}
        self._first = [first[layer] for layer in range(1 + max(t.layer for t in targets))]
        self._widths = [self._first[0].in_features, *(group[0].out_features for group in self._groups)]

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> list[Float[Tensor, "layers _ width"]]:
        """Each text's states in every layer up to the last adapted one, in the backbone's dtype.

        Of each token first what the layer's first linear map is given, which is the hidden state behind the
        layer's normalisation, so that all layers have one scale; then, for each type of adapted module, what
        it makes of the token, or zeros in layers that have none.
        """
        read: list[Tensor] = [torch.empty(0)] * len(texts)
        ids = [self._tokens(text) for text in texts]
        order = sorted(range(len(texts)), key=lambda i: len(ids[i]))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            states = self._states([ids[i] for i in rows])
            for row, own in zip(rows, states, strict=True):
                read[row] = own[:, : len(ids[row])]
        return read

    def _tokens(self, text: str) -> Sequence[int]:
        ids = self._backbone.encode_text(text)
        if len(ids) > self._limit:
            logger.warning("%s is read as far as %d of its %d tokens", shorten(text), self._limit, len(ids))
        return ids[: self._limit]

    def _states(self, ids: Sequence[Sequence[int]]) -> Float[Tensor, "texts layers _ width"]:
        batch = pad_sequences([(row, ()) for row in ids], self._backbone.end_of_turn, self._backbone.device)
        model, (texts, length) = self._backbone.model, batch.ids.shape
        states = batch.ids.new_zeros(
            texts, len(self._first), length, sum(self._widths), dtype=self._backbone.dtype
        )
        inputs, *outputs = states.split(self._widths, dim=-1)

        def keep_input(layer: int):  # type: ignore[no-untyped-def]
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                inputs[:, layer] = args[0]

            return hook

        def keep_output(made: Tensor, layer: int):  # type: ignore[no-untyped-def]
            def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                made[:, layer] = output

            return hook

        with ExitStack() as hooks:
            for target in self._first:
                module = model.get_submodule(target.name)
                hooks.callback(module.register_forward_pre_hook(keep_input(target.layer)).remove)
            for made, group in zip(outputs, self._groups, strict=True):
                for target in group:
                    module = model.get_submodule(target.name)
                    hooks.callback(module.register_forward_hook(keep_output(made, target.layer)).remove)
            mask = None if bool(batch.real.all()) else batch.real.long()
            decoder = getattr(model, model.base_model_prefix)  # no logits are needed
            decoder(input_ids=batch.ids, attention_mask=mask, use_cache=False)
        return states
