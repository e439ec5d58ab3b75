"""Parents under a method that drops or turns elements, rebuilt for every candidate of a search.

A candidate's numbers are the weights, then a density for every parent. Knows a backbone and LoRA values;
nothing of tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoal.adapters.hooks import attach
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.adapters.merging.closed_form import merged_modules
from shoal.adapters.merging.methods import METHODS
from shoal.adapters.merging.recipe import Recipe, Settings, Slice, constant
from shoal.merging.config import check_searched
from shoal.merging.mixtures import check_count, grouped
from shoal.models.backbone import Backbone

STEEP, LEAST_DENSITY = 4.0, 0.01


class Rebuilt:
    """Parents under a method of the table that is no sum; a `Mixture`.

    A density is `0.01 + 0.98 / (1 + exp(-4 x))` of its number x, inside what epsilon leaves: near 0 a step of
    x is one of density, and no clamp holds it. Random masks come from the seed, parent and module alone, so
    they stay for a search, and a density moves them element by element.
    """

    at_once: int | None = 1

    def __init__(
        self,
        backbone: Backbone,
        parents: Mapping[str, LoRA],
        groups: int,
        method: str,
        parameters: Mapping[str, float | bool],
        *,
        start: LoRA | None = None,
        seed: int = 0,
    ) -> None:
        """Keep the parents on the backbone's device.

        Args:
            backbone: the frozen model.
            parents: name -> adapter; at least 2.
            groups: as `Sum`.
            method: of the table, with weights to search for.
            parameters: of the method, which stay; `normalize` is false unless given, so that weights count. A
                density among them is not searched for.
            start: adapter that deltas count from; it is in every candidate.
            seed: of random masks.

        Raises:
            UsageError: fewer than 2 parents, a method or parameter that cannot be searched with, parents of
                different sizes, or a module outside the layers.
        """
        check_searched(method, parameters, by_inputs=False)
        check_count(parents)
        known = METHODS[method]
        plain = {"normalize": False} if known.parameter("normalize") else {}
        self._shared: Settings = {n: constant(value) for n, value in {**plain, **parameters}.items()}
        self._method, self._start, self._seed = method, start, seed
        self._parents = {name: lora.to(backbone.device) for name, lora in parents.items()}
        modules = {
            name: None for lora in (*parents.values(), *([start] if start else [])) for name in lora.factors
        }
        self.names, self.layers = tuple(parents), grouped(backbone, modules, groups).layers
        weights = torch.full((len(parents) * len(self.layers),), 1 / math.sqrt(len(parents)))
        searched = known.parameter("density") is not None and "density" not in parameters
        self.centre = torch.cat([weights, torch.zeros(len(parents) if searched else 0)])
        epsilon = known.parameter("epsilon")
        self._margin = float(parameters.get("epsilon", epsilon.default)) if epsilon else 0.0
        self._prints = [lora.fingerprint() for lora in parents.values()]
        self.identity: tuple[object, ...] = (
            method,
            sorted(parameters.items()),
            [*self._prints, *([start.fingerprint()] if start else [])],
            self.names,
            len(self.layers),
            seed,
        )

    def attach(
        self, model: nn.Module, genomes: Float[Tensor, "candidates numbers"]
    ) -> AbstractContextManager[object]:
        """As `Mixture`, of one candidate."""
        (genome,) = genomes
        by_rank: dict[int, dict[str, LoraFactors]] = {}
        start = None if self._start is None else self._start.to(genome.device)
        merged = merged_modules(
            self.recipe(genome), list(self._parents.values()), self._prints, start=start, seed=self._seed
        )
        for name, factors in merged:
            by_rank.setdefault(factors.a.shape[0], {})[name] = factors
        with ExitStack() as undo:
            for rank, own in by_rank.items():
                undo.enter_context(attach(model, LoRA(own, float(rank))))
            return undo.pop_all()

    def recipe(self, genome: Tensor) -> Recipe:
        """The merge with these weights and densities, a slice for every group of layers."""
        found = self.described(genome)
        densities = found.get("density", {})
        slices = tuple(
            Slice(
                layers,
                tuple(
                    {
                        "weight": constant(found["weights"][name][group]),
                        **({"density": constant(densities[name])} if densities else {}),
                    }
                    for name in self.names
                ),
            )
            for group, layers in enumerate(self.layers)
        )
        return Recipe(self._method, self.names, slices, self._shared)

    def described(self, genome: Tensor) -> dict[str, Any]:
        """As `Mixture`."""
        count = len(self.names) * len(self.layers)
        rows = genome[:count].view(len(self.names), len(self.layers)).tolist()
        found = {"weights": dict(zip(self.names, rows, strict=True))}
        if genome.numel() == count:
            return found
        share = LEAST_DENSITY + (1 - 2 * LEAST_DENSITY) * torch.sigmoid(STEEP * genome[count:].double())
        density = self._margin + (1 - 2 * self._margin) * share
        return {**found, "density": dict(zip(self.names, density.tolist(), strict=True))}
