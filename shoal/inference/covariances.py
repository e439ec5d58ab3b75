"""Covariances of the inputs of a model's modules under an adapter, from texts alone.

For every adapted module the mean of x x^T over the tokens of some prompts. No answers are needed: what a
module is given is all that closed-form merging asks for. Knows nothing of merging.

Source: Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models", arXiv 2212.09849,
section 3.2.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from shoal.adapters.hooks import attach
from shoal.adapters.lora import LoRA
from shoal.errors import UsageError
from shoal.models.backbone import Backbone
from shoal.models.modules import module_sizes

MAX_TOKENS = 512  # of one prompt; the rest of a longer one is left out


@torch.no_grad()
def input_covariances(
    backbone: Backbone, lora: LoRA | None, inputs: Sequence[str], modules: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """Covariances under one adapter, or of the model alone, of tokens behind what all prompts begin with.

    The template's first tokens are the same for every task: in a merge they would outweigh what tells tasks
    apart.

    Args:
        backbone: the base model.
        lora: attached while the prompts are read; None for none.
        inputs: texts, each worded as a request.
        modules: names of those to measure, as of all adapters that will be merged; None is the adapter's own,
            and without one every module of the layers.

    Returns:
        Module name -> (in, in) in float32 on the CPU: the mean of x x^T over tokens, uncentred.

    Raises:
        UsageError: no such module, one of another shape, or one that is no linear map.
    """
    own = (t.name for t in backbone.shape.targets) if lora is None else lora.factors
    names = list(own if modules is None else modules)
    for name in names:
        if module_sizes(_module(backbone.model, name)) is None:
            raise UsageError(f"{name} is no linear map with inputs to measure; merge by another method")
    sums: dict[str, Tensor] = {}
    tokens = 0
    weight = next(backbone.model.parameters())
    with ExitStack() as stack:
        if lora is not None:
            stack.enter_context(attach(backbone.model, lora.to(weight.device, weight.dtype)))
        prompts = backbone.encode_prompts(inputs)
        different = len({tuple(prompt) for prompt in prompts}) > 1
        shared = min(len(os.path.commonprefix(prompts)), MAX_TOKENS - 1) if different else 0
        for name in names:
            module = _module(backbone.model, name)
            stack.callback(module.register_forward_pre_hook(_adding(sums, name, shared)).remove)
        for prompt in prompts:
            ids = torch.tensor([prompt[:MAX_TOKENS]], device=backbone.device)
            backbone.model.base_model(input_ids=ids, use_cache=False)
            tokens += max(0, ids.numel() - shared)
    return {name: sums[name].cpu() / tokens for name in names}


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:  # experts' weights are one parameter, and no module
        return model


def _adding(
    sums: dict[str, Tensor], name: str, shared: int
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().flatten(0, -2)[shared:].float()
        own = x.T @ x
        sums[name] = own if name not in sums else sums[name] + own

    return add
