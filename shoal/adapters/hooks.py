"""Adapters at work on a model: attached as hooks that leave its weights alone, or merged into the weights.

Knows LoRA values and `nn.Module` only: no files, no model families, no training. A module may be an
`nn.Linear`, any quantised stand-in for one, or a `transformers` Conv1D, whose weight is stored (in, out).

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, section 4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from shoal.adapters.base import Attachment, Hook
from shoal.adapters.changes import begin
from shoal.adapters.ends import embedding_hook, untied
from shoal.adapters.lora import BatchedLoRA, LoRA, LoraFactors
from shoal.adapters.parameters import adapted_parameters, merged_parameter, parameter_changes
from shoal.errors import UsageError
from shoal.models.modules import is_conv1d, is_embedding, sized_module


def attach(model: nn.Module, lora: LoRA | BatchedLoRA) -> Attachment:
    """Add the adapter's delta to the output of its modules, `W x + scaling * B (A x)`, until it is detached.

    Several adapters may be attached at once; their deltas add up. A `BatchedLoRA` gives sample i of the batch
    its own adapter as two batched matrix products, and its batch must divide the model's (consecutive rows
    share one). The products run in the dtype of the module's input.

    Raises:
        UsageError: a module is missing or has another shape.
    """
    modules = adapted_modules(model, lora)
    with ExitStack() as undo:
        for name, module in modules.items():
            undo.callback(begin(module, delta_hook(module, lora.factors[name], lora.scaling)))
        if len(modules) < len(lora.factors):
            rows = [lora.row(row) for row in range(len(lora))] if isinstance(lora, BatchedLoRA) else [lora]
            for module, change in parameter_changes(model, rows):
                undo.callback(begin(module, change))
        return Attachment(undo.pop_all())


def attach_scaled(
    model: nn.Module, lora: LoRA, scales: Mapping[str, Float[Tensor, "samples rank"]]
) -> Attachment:
    """Add an adapter of linear modules whose ranks every sample scales, `W x + scaling * B (c * (A x))`.

    The two products are shared by all samples. The number of samples must divide the model's batch
    (consecutive rows share one).

    Args:
        model: to attach to.
        lora: the adapter.
        scales: module name -> scale of every rank for every sample, for every module of the adapter.

    Raises:
        UsageError: a module is missing or has another shape.
    """
    modules = adapted_modules(model, lora)
    with ExitStack() as undo:
        for name, module in modules.items():
            hook = _scaled_hook(lora.factors[name], lora.scaling, scales[name])
            undo.callback(begin(module, hook))
        return Attachment(undo.pop_all())


def _scaled_hook(factors: LoraFactors, scaling: float, scales: Float[Tensor, "samples rank"]) -> Hook:
    """The forward hook that adds one module's delta, with the scales of every sample between A and B."""
    a, b = factors

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        low = F.linear(x, a.to(x.dtype)).view(len(scales), -1, a.shape[0])
        scaled = low * (scales * scaling).to(x.dtype)[:, None]
        return output + F.linear(scaled, b.to(x.dtype)).view_as(output)

    return add


def delta_hook(module: nn.Module, factors: LoraFactors, scaling: float) -> Hook:
    """The forward hook that adds one module's delta, for one shared pair of factors or one per sample."""
    if is_embedding(module):
        return embedding_hook(module, factors, scaling)
    a, b = factors

    def add_shared(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        return output + F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype) * scaling)

    def add_batched(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        rows = inputs[0].shape[0]
        # With three axes, rows are samples; some families flatten (batch, sequence) first.
        if rows % a.shape[0]:
            raise UsageError(
                f"a batch of {rows} rows cannot be shared by {a.shape[0]} adapters; give one per sample"
            )
        x = inputs[0].reshape(a.shape[0], -1, a.shape[-1])
        low = torch.bmm(x, a.to(x.dtype).transpose(1, 2))
        flat = output.reshape(a.shape[0], -1, b.shape[1])
        return torch.baddbmm(flat, low, b.to(x.dtype).transpose(1, 2), alpha=scaling).view_as(output)

    return add_shared if a.dim() == 2 else add_batched


@torch.no_grad()
def merge(model: nn.Module, lora: LoRA) -> Attachment:
    """Add every delta weight to its module's weight, in float32 before rounding to the weight's dtype.

    Detaching puts the original weights back, bit for bit. An embedding or output layer that is one weight
    with the other end has its own as long.

    Raises:
        UsageError: a module is missing or has another shape, or its weight is not floating point.
    """
    modules = adapted_modules(model, lora)
    with ExitStack() as undo:
        undo.enter_context(untied(model, modules.values()))
        for name, place in adapted_parameters(model, lora).items():
            weight = getattr(place.module, place.name)
            undo.callback(_restore, weight, weight.detach().clone())
            weight.copy_(merged_parameter(place, lora.factors[name], lora.scaling))
        for name, module in modules.items():
            weight = module.weight
            if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
                raise UsageError(
                    f"{name} has {weight.dtype} weights; merge into a float copy of the model, or attach "
                    "instead"
                )
            undo.callback(_restore, weight, weight.detach().clone())
            a, b = lora.factors[name].to(weight.device)
            delta = lora.scaling * (b.float() @ a.float())
            weight.copy_(weight.float() + (delta.T if is_conv1d(module) or is_embedding(module) else delta))
        return Attachment(undo.pop_all())


@torch.no_grad()
def _restore(weight: nn.Parameter, original: Tensor) -> None:
    weight.copy_(original)


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., object]) -> Iterator[None]:
    """Let a module compute `forward` instead of its own; its hooks run as before."""
    own = vars(module).get("forward")  # set where another library has replaced the class's method
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def adapted_modules(model: nn.Module, lora: LoRA | BatchedLoRA) -> dict[str, nn.Module]:
    """The linear maps of a model that an adapter changes, by name; its parameters are left out.

    Raises:
        UsageError: a module or parameter is missing or has another shape.
    """
    parameters = adapted_parameters(model, lora)
    return {
        name: sized_module(model, name, (f.a.shape[-1], f.b.shape[-2]))
        for name, f in lora.factors.items()
        if name not in parameters
    }
