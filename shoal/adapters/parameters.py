"""LoRA of parameters that are no modules: the stacked weights of experts, and those of routers.

Factors of experts have a leading axis: A (experts, rank, in), B (experts, out, rank). A module computes its
own forward with `W + scaling * B A` in the place of its weights, of those experts alone that tokens go to.
Rows of a batch with one adapter are computed together. Knows modules and factors; nothing of files.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, section 4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shoal.adapters.changes import ForwardChange
from shoal.adapters.lora import BatchedLoRA, LoRA, LoraFactors
from shoal.errors import UsageError
from shoal.models.parameters import (
    ParameterPlace,
    ParameterSizes,
    check_sizes,
    is_experts,
    parameter_place,
)

Forward = Callable[..., Any]


class ModuleFactors(NamedTuple):
    """Factors of one module's parameters: by the parameters' names there, with their scaling."""

    factors: Mapping[str, LoraFactors]
    scaling: float


def factor_sizes(factors: LoraFactors) -> ParameterSizes:
    """Sizes of what one adapter's factors change."""
    a, b = factors
    return ParameterSizes(a.shape[0] if a.dim() == 3 else 0, a.shape[-1], b.shape[-2])


def adapted_parameters(model: nn.Module, lora: LoRA | BatchedLoRA) -> dict[str, ParameterPlace]:
    """The parameters of a model that an adapter changes, by name; its modules are left out.

    Raises:
        UsageError: a parameter is of other sizes or of numbers that nothing can be added to.
    """
    places = {name: place for name in lora.factors if (place := parameter_place(model, name)) is not None}
    one = lora.row(0) if places and isinstance(lora, BatchedLoRA) else lora
    for name, place in places.items():
        check_sizes(name, factor_sizes(one.factors[name]), place.sizes, "the model")
        weight = getattr(place.module, place.name)
        if not weight.is_floating_point():
            raise UsageError(f"{name} has {weight.dtype} weights; load the model in a float dtype")
    return places


def parameter_changes(
    model: nn.Module, rows: Sequence[LoRA | None]
) -> Iterator[tuple[nn.Module, ForwardChange]]:
    """(module, change) pairs that give row i of a batch of as many rows the parameters of adapter i.

    One row serves a batch of any size.

    Raises:
        UsageError: as `adapted_parameters`.
    """
    modules: dict[nn.Module, dict[int, dict[str, LoraFactors]]] = {}
    loras = {id(lora): lora for lora in rows if lora is not None}
    for key, lora in loras.items():
        for name, place in adapted_parameters(model, lora).items():
            modules.setdefault(place.module, {}).setdefault(key, {})[place.name] = lora.factors[name]
    for module, by_lora in modules.items():
        own = {key: ModuleFactors(factors, loras[key].scaling) for key, factors in by_lora.items()}
        yield module, _ParametersOfRows([own.get(id(row)) for row in rows])


@torch.no_grad()
def merged_parameter(place: ParameterPlace, factors: LoraFactors, scaling: float) -> Tensor:
    """The values of a parameter with the delta added, in float32."""
    a, b = factors.to(getattr(place.module, place.name).device)
    delta = scaling * (b.float() @ a.float())
    weight: Tensor = getattr(place.module, place.name).float()
    return weight + (delta.mT if _is_transposed(place.module) else delta)


class _ParametersOfRows(ForwardChange):
    """Parameters of their own for every row of a batch; rows with the same are computed together."""

    def __init__(self, rows: Sequence[ModuleFactors | None]) -> None:
        self._count = len(rows)
        places: dict[int, list[int]] = {}
        for place, own in enumerate(rows):
            places.setdefault(id(own), []).append(place)
        self._groups = [(rows[group[0]], group) for group in places.values()]
        self._order = torch.tensor([place for group in places.values() for place in group]).argsort().tolist()

    def run(self, module: nn.Module, forward: Forward, inputs: tuple[Tensor, ...], inner: bool) -> Any:
        """See `ForwardChange`."""
        if len(self._groups) == 1:
            return _changed(module, forward, self._groups[0][0], inputs, inner)
        if len(inputs[0]) % self._count:
            raise UsageError(
                f"a batch of {len(inputs[0])} cannot be shared by {self._count} adapters; give one per sample"
            )
        outputs = [
            _changed(module, forward, own, [self._taken(x, places) for x in inputs], inner)
            for own, places in self._groups
        ]
        if isinstance(outputs[0], Tensor):
            return self._taken(torch.cat(outputs), self._order)
        return tuple(self._taken(torch.cat(parts), self._order) for parts in zip(*outputs, strict=True))

    def _taken(self, x: Tensor, places: list[int]) -> Tensor:
        """Some rows, in this order, whose tokens may be flattened."""
        return x.unflatten(0, (self._count, -1))[places].flatten(0, 1)


def _changed(
    module: nn.Module, forward: Forward, own: ModuleFactors | None, inputs: Sequence[Tensor], inner: bool
) -> Any:
    """What a module computes with changed parameters: of all experts, or of those that are needed."""
    if own is None:
        return forward(*inputs)
    if not (is_experts(module) and inner):  # another change counts experts as they are
        with _parameters(module, {name: _with_delta(module, name, own) for name in own.factors}):
            return forward(*inputs)
    hidden, chosen, *more = inputs
    hit, index = chosen.unique(return_inverse=True)
    names = [name for name, p in module.named_parameters(recurse=False) if len(p) == module.num_experts]
    few = {name: _with_delta(module, name, own, hit) for name in names}
    with _parameters(module, few), _experts(module, len(hit)):
        return forward(hidden, index, *more)


def _with_delta(module: nn.Module, name: str, own: ModuleFactors, hit: Tensor | None = None) -> Tensor:
    """A parameter with its delta, if it has one; of the experts in `hit` alone."""
    weight: Tensor = getattr(module, name)
    few = weight if hit is None else weight[hit]
    if name not in own.factors:
        return few
    factors = own.factors[name] if hit is None else LoraFactors(*(x[hit] for x in own.factors[name]))
    a, b = factors.to(weight.device, weight.dtype)
    if a.dim() == 2:
        return torch.addmm(few, b, a, alpha=own.scaling)
    left, right = (a.mT, b.mT) if _is_transposed(module) else (b, a)
    return torch.baddbmm(few, left, right, alpha=own.scaling)


def _is_transposed(module: nn.Module) -> bool:
    return bool(getattr(module, "is_transposed", False))


@contextmanager
def _parameters(module: nn.Module, changed: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a module have other tensors in the place of its parameters."""
    own = {name: module._parameters[name] for name in changed}
    module._parameters.update(changed)  # type: ignore[arg-type]
    try:
        yield
    finally:
        module._parameters.update(own)


@contextmanager
def _experts(module: nn.Module, count: int) -> Iterator[None]:
    """Let a module count so many experts."""
    own: Any = module.num_experts
    module.num_experts = count  # type: ignore[assignment]
    try:
        yield
    finally:
        module.num_experts = own
