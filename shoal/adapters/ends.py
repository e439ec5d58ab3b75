"""LoRAs of the ends of a model: how an embedding's is attached, and how one weight of both ends is merged.

Of an embedding, A has a column per token, and its product with a one-hot token is that column. An output
layer is attached as any linear map.

Source: Hu et al., "LoRA", arXiv 2106.09685, section 4.1; embeddings as in PEFT's `tuners/lora/layer.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from shoal.adapters.base import Hook
from shoal.adapters.lora import LoraFactors
from shoal.errors import UsageError
from shoal.models.ends import embedding_scale, end_modules


def embedding_hook(module: nn.Module, factors: LoraFactors, scaling: float) -> Hook:
    """The forward hook that adds an embedding's delta, times what the family multiplies its embeddings by.

    Raises:
        UsageError: there is a pair of factors per sample.
    """
    a, b = factors
    if a.dim() != 2:
        raise UsageError("a batch of adapters cannot change an embedding; attach them to rows (RowAdapters)")
    scaling *= embedding_scale(module)

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        low = F.embedding(inputs[0], a.T).to(output.dtype)
        return output + F.linear(low, b.to(output.dtype) * scaling)

    return add


@contextmanager
def untied(model: nn.Module, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Give modules whose weight is another module's too a copy of their own, so that it alone is changed."""
    tied = {model.get_submodule(end.name) for end in end_modules(model) if end.tied}
    with ExitStack() as undo:
        for module in tied.intersection(modules):
            shared: Any = module.weight
            undo.callback(setattr, module, "weight", shared)
            module.weight = nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad)
            config: Any = model.config
            for part in (config, config.get_text_config()):
                stated = getattr(part, "tie_word_embeddings", True)
                undo.callback(setattr, part, "tie_word_embeddings", stated)
                part.tie_word_embeddings = False
        yield
