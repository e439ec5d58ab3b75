"""What the frozen backbone itself makes of a description: the states of its tokens, layer by layer.

Hypernetworks with the head `reader` read these. Knows the backbone, nothing of hypernetworks or tasks.

Source: Charakorn et al., "Doc-to-LoRA", arXiv 2602.15902: it reads the model's states of a document.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoal.backbone import Backbone
from shoal.forward import pad_sequences

MAX_TOKENS = 128  # of a description; what is longer is read as far as that
BATCH = 64


class StateReader:
    """Reads descriptions by a backbone."""

    def __init__(self, backbone: Backbone) -> None:
        """Read by this one, as it is: no adapter may be attached meanwhile."""
        self._backbone = backbone
        first = {t.layer: t.name for t in reversed(backbone.shape.targets)}
        self._modules = [first[layer] for layer in sorted(first)]

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> list[Float[Tensor, "layers _ width"]]:
        """Each text's states: what the first linear map of every layer is given for its tokens, float32.

        That is the hidden state behind the layer's normalisation, so all layers have one scale.
        """
        read: list[Tensor] = [torch.empty(0)] * len(texts)
        ids = [self._backbone.encode_text(text)[:MAX_TOKENS] for text in texts]
        order = sorted(range(len(texts)), key=lambda i: len(ids[i]))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            states = self._states([ids[i] for i in rows])
            for row, own in zip(rows, states, strict=True):
                read[row] = own[:, : len(ids[row])].float()
        return read

    def _states(self, ids: Sequence[Sequence[int]]) -> Float[Tensor, "texts layers _ width"]:
        batch = pad_sequences([(row, ()) for row in ids], self._backbone.end_of_turn, self._backbone.device)
        model, caught = self._backbone.model, {}

        def catch(name: str):  # type: ignore[no-untyped-def]
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                caught[name] = args[0]

            return hook

        with ExitStack() as hooks:
            for name in self._modules:
                hooks.callback(model.get_submodule(name).register_forward_pre_hook(catch(name)).remove)
            mask = None if bool(batch.real.all()) else batch.real.long()
            decoder = getattr(model, model.base_model_prefix)  # no logits are needed
            decoder(input_ids=batch.ids, attention_mask=mask, use_cache=False)
        return torch.stack([caught[name] for name in self._modules], dim=1)
