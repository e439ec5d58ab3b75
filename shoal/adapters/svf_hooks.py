"""Experts at work on a model, beside its weights: `W x + U ((s (z - 1)) * (V^T x))`.

k (m + n) multiply-adds per token for an m x n weight of which k components are kept. The weights stay as they
are, so that every row of a batch may have an expert of its own, and detaching leaves no trace. Merging would
pay for answers of more than some 64 tokens (`benchmarks/experts.py`), few have as many. Weights whose z is 1
are left alone, so an identity is exact. Knows expert values and `nn.Module` only.

Source: Sun, Cetin, Tang, "Transformer-Squared: Self-adaptive LLMs", arXiv 2501.06252, section 3.1.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from shoal.adapters.base import Attachment, Hook
from shoal.adapters.decomposition import Decomposition, Decompositions
from shoal.adapters.svf import ExpertVector, check_fits
from shoal.errors import UsageError
from shoal.models.modules import is_conv1d, module_sizes, sized_module

PLAIN_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def attach_expert(model: nn.Module, basis: Decompositions, expert: ExpertVector) -> Attachment:
    """Let an expert change a model until it is detached.

    A batch of experts gives sample i of the model's batch its own z between the two shared products; the
    model's batch must be a multiple of it, and consecutive rows share one. Products run in the dtype of the
    module's input. A z that requires a gradient gets it.

    Raises:
        UsageError: a module is missing or of another shape, or z does not fit.
    """
    check_fits(basis, expert)
    changed = {n: z for n, z in expert.z.items() if z.requires_grad or bool((z != 1).any())}
    modules = {}
    for name in changed:
        u, _, vt = basis[name]
        modules[name] = sized_module(model, name, (vt.shape[1], u.shape[0]))
    with ExitStack() as undo:
        for name, z in changed.items():
            s = basis[name].s
            hook = delta_hook(basis[name], s * (z.to(s) - 1))
            undo.callback(modules[name].register_forward_hook(hook).remove)
        return Attachment(undo.pop_all())


@torch.no_grad()
def dense_weight(module: nn.Module) -> Float[Tensor, "out_features in_features"]:
    """The weight of a linear map in float32; a quantised one is read as what it makes of the unit vectors.

    Raises:
        UsageError: it is no linear map, or on the meta device.
    """
    sizes, weight = module_sizes(module), getattr(module, "weight", None)
    if sizes is None or not isinstance(weight, Tensor) or weight.is_meta:
        raise UsageError(
            f"a {type(module).__name__} has no loaded weight to decompose; choose a linear module"
        )
    if is_plain(weight):
        return weight.detach().float().T if is_conv1d(module) else weight.detach().float()
    bias = getattr(module, "bias", None)
    units = torch.eye(sizes[0], device=weight.device, dtype=torch.float32 if bias is None else bias.dtype)
    image = module(units).float()
    return (image if bias is None else image - bias.float()).T


def is_plain(weight: object) -> TypeGuard[nn.Parameter]:
    """True where a weight holds its numbers as they are, without the scales that quantised ones need."""
    return isinstance(weight, nn.Parameter) and weight.dim() == 2 and weight.dtype in PLAIN_DTYPES


def delta_hook(decomposition: Decomposition, change: Float[Tensor, "*batch k"]) -> Hook:
    """The forward hook that adds `U (change * (V^T x))`, with one change for all samples or one for each."""

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + _scaled_product(decomposition, change, inputs[0]).view_as(output)

    return add


def _scaled_product(decomposition: Decomposition, scale: Tensor, x: Tensor) -> Tensor:
    """`U (scale * (V^T x))` with one scale (k), or one (batch, k) for every sample."""
    u, _, vt = (part.to(x.device, x.dtype) for part in decomposition)
    scale = scale.to(x.device, x.dtype)
    low = F.linear(x, vt)
    if scale.dim() == 1:
        return F.linear(low * scale, u)
    if x.shape[0] % scale.shape[0]:  # rows are samples; some families flatten (batch, sequence) first
        raise UsageError(
            f"a batch of {x.shape[0]} rows cannot be shared by {scale.shape[0]} experts; give one per sample"
        )
    own = low.reshape(scale.shape[0], -1, scale.shape[1]) * scale[:, None]
    return F.linear(own.view_as(low), u)
