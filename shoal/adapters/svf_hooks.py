"""Experts at work on a model: attached beside its weights, in place of their products, or merged into them.

* `delta`: `W x + U ((s (z - 1)) * (V^T x))`, m n + k (m + n) multiply-adds per token for an m x n weight;
* `factored`: `U ((s z) * (V^T x))`, k (m + n), and all components are needed;
* `merged`: `W' x`, m n, with the weight built once.

All three leave no trace when they end: pristine weights are put back, never subtracted. Weights whose z is 1
are left alone, so an identity is exact. Knows expert values and `nn.Module` only.

Source: Sun, Cetin, Tang, "Transformer-Squared: Self-adaptive LLMs", arXiv 2501.06252, section 3.1.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from shoal.adapters.base import Attachment
from shoal.adapters.hooks import forward_replaced
from shoal.adapters.svf import Decomposition, Decompositions, ExpertVector, check_fits
from shoal.errors import UsageError
from shoal.models.modules import is_conv1d, module_sizes, sized_module

Mode = Literal["delta", "factored", "merged"]
PLAIN_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MODES: tuple[Mode, ...] = ("delta", "factored", "merged")


def attach_expert(
    model: nn.Module, basis: Decompositions, expert: ExpertVector, mode: Mode = "delta"
) -> Attachment:
    """Let an expert change a model until it is detached.

    A batch of experts gives sample i of the model's batch its own z between the two shared products; the
    model's batch must be a multiple of it, and consecutive rows share one. Products run in the dtype of the
    module's input. A z that requires a gradient gets it, in `delta` and `factored`.

    Raises:
        UsageError: a module is missing or of another shape, z does not fit, a batch of experts or a quantised
            weight is to be merged, `factored` lacks components, or a module's product is replaced already.
    """
    if mode not in MODES:
        raise UsageError(f"mode {mode!r} is unknown; choose from {', '.join(MODES)}")
    check_fits(basis, expert)
    changed = {n: z for n, z in expert.z.items() if z.requires_grad or bool((z != 1).any())}
    modules = {name: _decomposed_module(model, name, basis[name]) for name in changed}
    with ExitStack() as undo:
        if mode == "delta":
            for name, z in changed.items():
                undo.callback(modules[name].register_forward_hook(_delta_hook(basis[name], z)).remove)
        elif mode == "factored":
            _check_full(basis, changed)
            for name, z in changed.items():
                undo.enter_context(_alone(modules[name], name))
                undo.enter_context(forward_replaced(modules[name], _factored(modules[name], basis[name], z)))
        else:
            _check_single(expert)
            built = {name: merged_weight(modules[name], name, basis[name], z) for name, z in changed.items()}
            for name, weight in built.items():
                undo.enter_context(_alone(modules[name], name))
                undo.enter_context(_weight_replaced(modules[name], weight))
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


def is_plain(weight: object) -> bool:
    """Whether a weight holds its numbers as they are, without the scales that quantised ones need."""
    return isinstance(weight, nn.Parameter) and weight.dim() == 2 and weight.dtype in PLAIN_DTYPES


@torch.no_grad()
def merged_weight(
    module: nn.Module, name: str, decomposition: Decomposition, z: Float[Tensor, " k"]
) -> Tensor:
    """`W + U diag(s (z - 1)) V^T` in float32, rounded to the weight's dtype and laid out as it is.

    Raises:
        UsageError: the weight is quantised.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    if not is_plain(weight):
        raise UsageError(f"{name} has {weight.dtype} weights, which cannot be merged; attach it as delta")
    u, s, vt = decomposition.to(weight.device)
    delta = (u.float() * (s * (z.to(s) - 1))) @ vt.float()
    return (weight.float() + (delta.T if is_conv1d(module) else delta)).to(weight.dtype).contiguous()


class MergedExperts:
    """Merged weights of several experts, built once each; switching between them swaps references.

    Takes the memory of the adapted weights for every expert.
    """

    def __init__(self, model: nn.Module, basis: Decompositions) -> None:
        self._model, self._basis = model, basis
        self._built: dict[str, dict[nn.Module, Tensor]] = {}
        self._active = Attachment(ExitStack())

    def build(self, name: str, expert: ExpertVector) -> None:
        """Compute an expert's weights under a name; an old one of that name is replaced.

        Raises:
            UsageError: as `attach_expert` in mode `merged`.
        """
        self.deactivate()  # weights are built from pristine ones
        check_fits(self._basis, expert)
        _check_single(expert)
        modules = {n: _decomposed_module(self._model, n, self._basis[n]) for n in expert.z}
        self._built[name] = {m: merged_weight(m, n, self._basis[n], expert.z[n]) for n, m in modules.items()}

    def activate(self, name: str) -> None:
        """Put an expert's weights to work.

        Raises:
            UsageError: none of that name was built.
        """
        if name not in self._built:
            raise UsageError(f"no expert {name!r} was built; there are {', '.join(self._built) or 'none'}")
        self.deactivate()
        with ExitStack() as undo:
            for module, weight in self._built[name].items():
                undo.enter_context(_alone(module, name))
                undo.enter_context(_weight_replaced(module, weight))
            self._active = Attachment(undo.pop_all())

    def deactivate(self) -> None:
        """Put the pristine weights back."""
        self._active.detach()


def mode_costs(
    model: nn.Module,
    basis: Decompositions,
    expert: ExpertVector,
    x: Float[Tensor, "rows tokens features"],
    *,
    uses: int,
    repeats: int = 3,
) -> dict[Mode, float]:
    """Seconds that the possible modes cost, cheapest first, measured on one module of every shape.

    Args:
        model: with its weights.
        basis: its decompositions.
        expert: to be attached.
        x: as long as a usual input; its last axis is cut or repeated to each module's width.
        uses: forward passes before another expert is attached, over which building is spread.
        repeats: measurements, of which the median counts.

    Returns:
        Mode -> seconds a forward pass in all adapted modules; modes that cannot serve are left out.
    """
    changed = [name for name, z in expert.z.items() if bool((z != 1).any())]
    possible: list[Mode] = ["delta"]
    if all(basis[name].full for name in changed):
        possible.append("factored")
    if expert.batch is None and all(is_plain(model.get_submodule(name).weight) for name in changed):
        possible.append("merged")
    seconds = dict.fromkeys(possible, 0.0)
    shapes: dict[tuple[int, ...], list[str]] = {}
    for name in changed:
        shapes.setdefault((basis[name].u.shape[0], basis[name].vt.shape[1]), []).append(name)
    for (_, width), names in shapes.items():
        module = model.get_submodule(names[0])
        own = ExpertVector({names[0]: expert.z[names[0]]})
        inputs = x.repeat(1, 1, -(-width // x.shape[-1]))[..., :width]
        for mode in possible:
            times = [_measured(model, basis, own, mode, module, inputs, uses) for _ in range(repeats)]
            seconds[mode] += len(names) * statistics.median(times)
    return dict(sorted(seconds.items(), key=lambda item: item[1]))


@torch.no_grad()
def _measured(
    model: nn.Module,
    basis: Decompositions,
    expert: ExpertVector,
    mode: Mode,
    module: nn.Module,
    x: Tensor,
    uses: int,
) -> float:
    started = time.perf_counter()
    with attach_expert(model, basis, expert, mode):
        built = time.perf_counter()
        module(x)
        return time.perf_counter() - built + (built - started) / uses


def _delta_hook(decomposition: Decomposition, z: Tensor):  # type: ignore[no-untyped-def]
    """The forward hook that adds one module's delta."""
    change = decomposition.s * (z.to(decomposition.s) - 1)

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + _scaled_product(decomposition, change, inputs[0]).view_as(output)

    return add


def _factored(module: nn.Module, decomposition: Decomposition, z: Tensor) -> Callable[[Tensor], Tensor]:
    """The forward pass of a module from its components."""
    scaled, bias = decomposition.s * z.to(decomposition.s), getattr(module, "bias", None)

    def forward(x: Tensor) -> Tensor:
        product = _scaled_product(decomposition, scaled, x)
        return product + bias if isinstance(bias, Tensor) else product

    return forward


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


def _check_full(basis: Decompositions, names: Iterable[str]) -> None:
    cut = next((name for name in names if not basis[name].full), None)
    if cut is not None:
        raise UsageError(
            f"{cut} keeps {basis[cut].s.numel()} components, `factored` needs all; attach it as delta"
        )


def _check_single(expert: ExpertVector) -> None:
    if expert.batch is not None:
        raise UsageError(f"a batch of {expert.batch} experts cannot be merged; attach it as delta")


@contextmanager
def _alone(module: nn.Module, name: str) -> Iterator[None]:
    """Refuse a second replacement of one module's product: ended in another order it would stay."""
    if "_replaced_by_expert" in module.__dict__:
        raise UsageError(f"{name} already has a factored or merged expert; detach it first, or use delta")
    module.__dict__["_replaced_by_expert"] = True
    try:
        yield
    finally:
        del module.__dict__["_replaced_by_expert"]


@contextmanager
def _weight_replaced(module: nn.Module, weight: Tensor) -> Iterator[None]:
    """Put a weight into a module by reference, and the old one back."""
    parameter = module.weight
    assert isinstance(parameter, nn.Parameter)
    pristine = parameter.data
    parameter.data = weight
    try:
        yield
    finally:
        parameter.data = pristine


def _decomposed_module(model: nn.Module, name: str, decomposition: Decomposition) -> nn.Module:
    return sized_module(model, name, (decomposition.vt.shape[1], decomposition.u.shape[0]))
