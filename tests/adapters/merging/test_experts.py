"""Experts merged over z - 1, by identities."""

from __future__ import annotations

import pytest
import torch

from shoal.adapters.merging.experts import merge_experts
from shoal.adapters.merging.recipe import Recipe
from shoal.adapters.svf import ExpertVector, mix

SIZES = {"model.layers.0.q": 8, "model.layers.1.q": 8}


def expert(seed: int, sizes: dict[str, int] = SIZES) -> ExpertVector:
    generator = torch.Generator().manual_seed(seed)
    return ExpertVector({name: 1 + torch.randn(k, generator=generator) for name, k in sizes.items()})


@pytest.mark.parametrize("method", ["linear", "ties", "sce", "slerp", "multislerp", "karcher", "model_stock"])
def test_equal_experts_give_themselves(method: str) -> None:
    one = expert(0)
    merged = merge_experts(Recipe.of(method, ["a", "b"]), [one, one])
    for name, z in merged.z.items():
        torch.testing.assert_close(z, one.z[name])


def test_the_mean_is_the_uniform_mixture() -> None:
    experts = [expert(0), expert(1)]
    merged = merge_experts(Recipe.of("linear", ["a", "b"]), experts)
    for name, z in mix(experts, torch.tensor([0.5, 0.5])).z.items():
        torch.testing.assert_close(merged.z[name], z)
