"""Parents under numbers that a search moves: what a candidate does to the model, and its recipe.

Sums put all parents' ranks side by side in one LoRA. A candidate is one vector that scales these ranks,
`B (c * (A x))`, as z scales the components of a weight for an expert, so that candidates share two matrix
products a module, nothing is rebuilt and nothing written. Other methods are `shoal.merging.rebuilt`. Knows a
backbone and LoRA values; nothing of tasks.

Source: weights of concatenated ranks: Prabhakar et al., "LoRA Soups", arXiv 2410.13025.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from shoal.adapters.hooks import attach_scaled
from shoal.adapters.lora import LoRA
from shoal.adapters.merging.recipe import Recipe, Slice, constant
from shoal.adapters.merging.regmean import Covariances
from shoal.errors import UsageError
from shoal.merging.terms import terms_of
from shoal.models.backbone import Backbone

Genome = Float[Tensor, " numbers"]  # weights parent by parent, each group of layers in turn; then densities


class Mixture(Protocol):
    """Parents of a search.

    Attributes:
        names: of the parents.
        layers: of every group, the first one and the one behind the last.
        centre: numbers that a search starts from.
        at_once: candidates that share a forward pass at most; None is any number.
        identity: names parents and method, so that a search is never resumed on others.
    """

    names: tuple[str, ...]
    layers: tuple[tuple[int, int], ...]
    centre: Genome
    at_once: int | None
    identity: tuple[object, ...]

    def attach(
        self, model: nn.Module, genomes: Float[Tensor, "candidates numbers"]
    ) -> AbstractContextManager[object]:
        """Put candidates to work on a model whose batch has as many consecutive rows for each of them."""

    def recipe(self, genome: Tensor) -> Recipe:
        """The merge of a candidate."""

    def described(self, genome: Tensor) -> dict[str, Any]:
        """A candidate's weights, and densities where it has them, by parent; JSON values."""


def alone(mixture: Mixture, parent: int) -> Genome:
    """The candidate that is one parent and nothing of the others."""
    weights = torch.zeros(len(mixture.names), len(mixture.layers))
    weights[parent] = 1
    genome = mixture.centre.clone()
    genome[: weights.numel()] = weights.flatten()
    return genome


@dataclass(frozen=True)
class LayerGroups:
    """Groups of neighbouring layers.

    Attributes:
        layers: as `Mixture.layers`.
        of: module name -> its group.
    """

    layers: tuple[tuple[int, int], ...]
    of: Mapping[str, int]


class Sum:
    """The sum of the parents' deltas, or of their parts of RegMean's sum; a `Mixture`.

    Attributes:
        joined: terms of all parents and the start as one LoRA of the summed rank.
    """

    at_once: int | None = None

    def __init__(
        self,
        backbone: Backbone,
        parents: Mapping[str, LoRA],
        groups: int,
        *,
        start: LoRA | None = None,
        covariances: Mapping[str, Covariances] | None = None,
    ) -> None:
        """Put the parents' ranks into one LoRA.

        Args:
            backbone: the frozen model, on whose device the factors go.
            parents: name -> adapter; at least 2.
            groups: of neighbouring layers, at most; each has weights of its own.
            start: adapter that deltas count from; it is in every candidate, with weight 1.
            covariances: name -> those of its inputs; weights then scale the parts of RegMean's sum.

        Raises:
            UsageError: fewer than 2 parents, parents of different sizes, a module outside the layers, or
                covariances that lack a parent or a module.
        """
        check_count(parents)
        if covariances is not None and (missing := sorted(parents.keys() - covariances.keys())):
            raise UsageError(f"{missing[0]} has no covariances of inputs; measure those of every parent")
        self.names = tuple(parents)
        measured = None if covariances is None else [covariances[name] for name in parents]
        terms = terms_of(parents, start, measured)
        self.joined = terms.joined.to(backbone.device)
        self._groups = grouped(backbone, self.joined.factors, groups)
        self.layers = self._groups.layers
        self._owner = {name: owner.to(backbone.device) for name, owner in terms.owner.items()}
        self._by_inputs = covariances is not None
        balanced = 1.0 if self._by_inputs else 1 / math.sqrt(len(parents))
        self.centre = torch.full((len(parents) * len(self.layers),), balanced)
        self.identity: tuple[object, ...] = (self.joined.fingerprint(), self.names, len(self.layers))

    def scales(
        self, weights: Float[Tensor, "candidates parents groups"]
    ) -> dict[str, Float[Tensor, "candidates rank"]]:
        """Module name -> the scale of every rank of the joined LoRA, for every candidate."""
        padded = F.pad(weights, (0, 0, 0, 1), value=1.0)  # of the start
        return {name: padded[:, self._owner[name], group] for name, group in self._groups.of.items()}

    def attach(
        self, model: nn.Module, genomes: Float[Tensor, "candidates numbers"]
    ) -> AbstractContextManager[object]:
        """As `Mixture`."""
        weights = genomes.view(len(genomes), len(self.names), len(self.layers))
        return attach_scaled(model, self.joined, self.scales(weights))

    def recipe(self, genome: Tensor) -> Recipe:
        """The sum with these weights, a slice for every group of layers."""
        method, parameter = ("regmean", "scale") if self._by_inputs else ("task_arithmetic", "weight")
        rows = genome.view(len(self.names), len(self.layers)).tolist()
        slices = tuple(
            Slice(layers, tuple({parameter: constant(row[group])} for row in rows))
            for group, layers in enumerate(self.layers)
        )
        return Recipe(method, self.names, slices)

    def described(self, genome: Tensor) -> dict[str, Any]:
        """As `Mixture`."""
        rows = genome.view(len(self.names), len(self.layers)).tolist()
        return {"weights": dict(zip(self.names, rows, strict=True))}


def check_count(parents: Mapping[str, LoRA]) -> None:
    """See that there is something to merge.

    Raises:
        UsageError: fewer than 2 parents.
    """
    if len(parents) < 2:
        raise UsageError(f"a merge needs 2 parents or more, got {len(parents)}; name others")


def grouped(backbone: Backbone, modules: Mapping[str, object], groups: int) -> LayerGroups:
    """Groups of neighbouring layers, as even as can be.

    Raises:
        UsageError: a module outside the layers.
    """
    layer_of = {t.name: t.layer for t in backbone.shape.targets}
    if odd := sorted(modules.keys() - layer_of.keys()):
        raise UsageError(
            f"{odd[0]} belongs to no layer of {backbone.shape.base_model}, and weights are by layer; "
            "merge by a closed form, or leave that module out"
        )
    layers = sorted({layer_of[name] for name in modules})
    groups = min(groups, len(layers))
    place = {layer: number * groups // len(layers) for number, layer in enumerate(layers)}
    begins = [min(layer for layer in layers if place[layer] == group) for group in range(groups)]
    bounds = tuple(itertools.pairwise([0, *begins[1:], backbone.shape.num_layers]))
    return LayerGroups(bounds, {name: place[layer_of[name]] for name in modules})
