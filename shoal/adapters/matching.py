"""Adapters against their base model: under its own names, and of its sizes.

Knows values and shapes; nothing of files.
"""

from __future__ import annotations

from dataclasses import replace

from shoal.adapters.foreign_names import cause, module_in, rests
from shoal.adapters.lora import LoRA
from shoal.adapters.parameters import factor_sizes
from shoal.adapters.per_expert import stack_experts
from shoal.errors import ShoalError, UsageError
from shoal.models.parameters import ParameterSizes, TargetParameter, check_sizes
from shoal.models.shapes import BackboneShape


def check_targets(shape: BackboneShape, lora: LoRA) -> None:
    """See that a base model has all that an adapter changes.

    Raises:
        UsageError: it has no such module or parameter, or one of another size.
    """
    known = {t.name: t for t in shape.adaptable}
    for name, factors in lora.factors.items():
        target = known.get(name)
        if target is None:
            raise UsageError(
                f"the adapter has {name[:120]}, and {shape.base_model} no such module: {cause(name)}"
            )
        own = (
            target.sizes
            if isinstance(target, TargetParameter)
            else ParameterSizes(0, target.in_features, target.out_features)
        )
        check_sizes(name, factor_sizes(factors), own, shape.base_model)


def named_as(lora: LoRA, shape: BackboneShape) -> LoRA:
    """The adapter under the names of a base model, where parts before the layers, or experts, have others.

    Raises:
        ShoalError: two of its modules are one of the model's, or some experts are missing.
    """
    known = {t.name for t in shape.adaptable}
    if lora.factors.keys() <= known:
        return lora
    by_rest = rests(known)
    renamed = {module_in(name, by_rest) or name: factors for name, factors in lora.factors.items()}
    if len(renamed) < len(lora.factors):
        raise ShoalError("the adapter has two names for one module of the base model; keep one of them")
    return stack_experts(replace(lora, factors=renamed), shape)
