"""Experts merged as LoRAs are, over z - 1, the change that an expert makes to every singular value."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.adapters.merging.dense import merge_dense
from shoal.adapters.merging.methods import method_of
from shoal.adapters.merging.modules import generator_of
from shoal.adapters.merging.recipe import Recipe
from shoal.adapters.svf import ExpertVector
from shoal.errors import UsageError


def merge_experts(
    recipe: Recipe, experts: Sequence[ExpertVector], *, seed: int = 0, num_layers: int | None = None
) -> ExpertVector:
    """One expert from several of one base model.

    Args:
        recipe: whose method acts by coefficients or by elements.
        experts: its parents in order, single experts.
        seed: of random masks.
        num_layers: of the base model; only gradients need it.

    Raises:
        UsageError: a mistake of the recipe, a method that needs matrices, experts of different weights or
            lengths, a batch of experts, or NaN or infinity.
    """
    recipe.check()
    method = method_of(recipe.method)
    if method.form not in ("combination", "elements"):
        raise UsageError(f"{recipe.method} needs matrices, and an expert is vectors; choose another method")
    stacked = ExpertVector.stack(experts)  # which checks that they fit each other
    prints = [expert.fingerprint() for expert in experts]
    merged = {}
    for name, z in stacked.z.items():
        if z.dim() != 2:
            raise UsageError("a batch of experts is not one expert; choose a row of it")
        if not bool(z.isfinite().all()):
            raise UsageError(f"z of {name} holds NaN or infinity in one of the experts; copy it again")
        deltas, values = z.float() - 1, recipe.values(name, num_layers)
        scale = values.pop("lambda", 1.0)
        generators = [generator_of(seed, name, each) for each in prints]
        merged[name] = 1 + scale * merge_dense(method, list(deltas), values, generators)
    return ExpertVector(merged)
