"""Weights that are parameters of a module and no modules themselves: of experts, and of what routes to them.

`transformers` keeps the weights of all experts of a layer as one tensor: (experts, out, in), or (experts, in,
out) where their module says that it `is_transposed`. A router's weight is one matrix, (experts, in). Knows
structure, no model families and no adapters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from shoal.errors import UsageError
from shoal.models.modules import module_sizes


class ParameterSizes(NamedTuple):
    """Sizes of the linear maps in one parameter: `experts` maps, 0 where it is the one matrix of a router."""

    experts: int
    in_features: int
    out_features: int


@dataclass(frozen=True)
class TargetParameter:
    """A parameter of the backbone that an adapter may change.

    Attributes:
        name: full name, for example `model.layers.3.mlp.experts.down_proj`.
        layer: index of its decoder layer, from 0.
        type: its name within the layer, for example `mlp.experts.down_proj`.
        sizes: of the maps in it.
        halves_apart: True where the outputs of a gate come before those of its values, as one block each.
    """

    name: str
    layer: int
    type: str
    sizes: ParameterSizes
    halves_apart: bool = True


class ParameterPlace(NamedTuple):
    """A parameter of a model: the module that holds it, its name there, and its sizes."""

    module: nn.Module
    name: str
    sizes: ParameterSizes


def is_experts(module: nn.Module) -> bool:
    """True for the stacked experts of a layer, by what `transformers` notes on those of every family."""
    return hasattr(module, "is_transposed") and hasattr(module, "num_experts")


def adaptable_parameters(layer: nn.Module) -> Iterator[tuple[str, ParameterSizes, bool]]:
    """(name, sizes, `halves_apart`) of the weights of experts and routers inside a decoder layer."""
    for block_name, block in layer.named_modules():
        children = dict(block.named_children())
        for experts in filter(is_experts, list(children.values())):
            for child_name, child in children.items():
                for name, _ in child.named_parameters(recurse=False):
                    sizes = parameter_sizes(child, name)
                    if sizes is not None and (child is experts or sizes.out_features == experts.num_experts):
                        prefix = f"{block_name}.{child_name}" if block_name else child_name
                        yield f"{prefix}.{name}", sizes, bool(getattr(experts, "is_concatenated", True))


def parameter_sizes(module: nn.Module, name: str) -> ParameterSizes | None:
    """Sizes of the maps in a module's parameter; None where it has none that adapters change."""
    shape = tuple(module._parameters[name].shape)  # type: ignore[union-attr]
    if module_sizes(module) is not None or isinstance(module, nn.Embedding):
        return None
    if is_experts(module) and len(shape) == 3:
        return ParameterSizes(shape[0], *(shape[1:] if module.is_transposed else (shape[2], shape[1])))
    if name == "weight" and len(shape) == 2:
        return ParameterSizes(0, shape[1], shape[0])
    return None


def parameter_place(model: nn.Module, name: str) -> ParameterPlace | None:
    """The parameter that a name means and that an adapter may change, or None."""
    owner, _, own = name.rpartition(".")
    try:
        module = model.get_submodule(owner)
    except AttributeError:
        return None
    if module._parameters.get(own) is None:
        return None
    sizes = parameter_sizes(module, own)
    return None if sizes is None else ParameterPlace(module, own, sizes)


def check_sizes(name: str, sizes: ParameterSizes, own: ParameterSizes, whose: str) -> None:
    """Compare the sizes of an adapter's factors with a parameter's own.

    Args:
        name: of the parameter.
        sizes: of the adapter's factors.
        own: of the parameter.
        whose: base model, for the message.

    Raises:
        UsageError: they differ.
    """
    if sizes.experts != own.experts:
        raise UsageError(
            f"the adapter's {name} is of {sizes.experts} experts, {whose} has {own.experts}; use the model "
            "that it was made for"
        )
    if sizes != own:
        raise UsageError(
            f"the adapter's {name} is {sizes.in_features} x {sizes.out_features} (in x out), in {whose} "
            f"{own.in_features} x {own.out_features}; use the model that it was made for"
        )
