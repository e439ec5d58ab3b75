"""Candidates for a merge: a whole population in shared forward passes, nothing rebuilt and nothing written.

All parents' ranks stand side by side in one LoRA. A candidate is one vector that scales these ranks,
`B (c * (A x))`, as z scales the components of a weight for an expert, so that candidates and examples share
two matrix products a module. Knows a backbone, LoRA values and tasks; nothing of how candidates come about.

Source: Akiba et al., "Evolutionary Optimization of Model Merging Recipes", arXiv 2403.13187; weights of
concatenated ranks: Prabhakar et al., "LoRA Soups", arXiv 2410.13025.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoal.adapters.hooks import attach_scaled
from shoal.adapters.lora import LoRA
from shoal.adapters.merging import compose
from shoal.adapters.merging.recipe import Recipe, Slice, constant
from shoal.errors import UsageError
from shoal.inference.forward import Sequences, answer_losses, pad_sequences
from shoal.merging.config import MergeSearchConfig
from shoal.models.backbone import Backbone
from shoal.training.batches import Corpus, TokenisedExample
from shoal.training.evolution import Fitness
from shoal.training.lora import fingerprint

ROWS_AT_ONCE = 64
JUDGED = 16  # examples of a task that say which parent it belongs to
LEAST_GAIN = 0.05  # nats per token by which some parent must beat the base model


@dataclass(frozen=True)
class TaskLevels:
    """Where a task stands without a merge, in nats per token on its first examples.

    Attributes:
        base: loss of the base model.
        parent: name of the parent with the least loss.
        best: that loss.
    """

    base: float
    parent: str
    best: float

    @property
    def gain(self) -> float:
        """Nats that the best parent gains; at least `LEAST_GAIN`, so that a share of it stays finite."""
        return max(self.base - self.best, LEAST_GAIN)


class Mixture:
    """Parents side by side, and the ranks that a weight for every parent and group of layers scales.

    Attributes:
        names: of the parents.
        joined: all of them as one LoRA of the summed rank.
        groups: of neighbouring layers.
        layers: of every group, the first one and the one behind the last.
    """

    def __init__(self, backbone: Backbone, parents: Mapping[str, LoRA], groups: int) -> None:
        """Put the parents' ranks into one LoRA.

        Args:
            backbone: the frozen model, on whose device the factors go.
            parents: name -> adapter; at least 2.
            groups: of neighbouring layers, at most; each has weights of its own.

        Raises:
            UsageError: fewer than 2 parents, parents of different sizes, or a module outside the layers.
        """
        if len(parents) < 2:
            raise UsageError(f"a merge needs 2 parents or more, got {len(parents)}; name others")
        self.names = tuple(parents)
        loras = list(parents.values())
        self.joined = compose(loras, [1.0] * len(loras)).to(backbone.device)
        layer_of = {t.name: t.layer for t in backbone.shape.targets}
        if odd := sorted(self.joined.factors.keys() - layer_of.keys()):
            raise UsageError(
                f"{odd[0]} belongs to no layer of {backbone.shape.base_model}, and weights are by layer; "
                "merge by a closed form, or leave that module out"
            )
        layers = sorted({layer_of[name] for name in self.joined.factors})
        self.groups = min(groups, len(layers))
        place = {layer: number * self.groups // len(layers) for number, layer in enumerate(layers)}
        begins = [min(layer for layer in layers if place[layer] == group) for group in range(self.groups)]
        self.layers = tuple(itertools.pairwise([0, *begins[1:], backbone.shape.num_layers]))
        self._group = {name: place[layer_of[name]] for name in self.joined.factors}
        ranks = torch.tensor([lora.rank for lora in loras])
        self._parent = torch.arange(len(loras)).repeat_interleave(ranks).to(backbone.device)

    def scales(
        self, weights: Float[Tensor, "candidates parents groups"]
    ) -> dict[str, Float[Tensor, "candidates rank"]]:
        """Module name -> the scale of every rank of the joined LoRA, for every candidate."""
        by_group = [weights[:, self._parent, group] for group in range(self.groups)]
        return {name: by_group[group] for name, group in self._group.items()}

    def recipe(self, weights: Float[Tensor, "parents groups"]) -> Recipe:
        """The merge with these weights: a sum of the parents, a slice for every group of layers."""
        slices = tuple(
            Slice(layers, tuple({"weight": constant(float(row[group]))} for row in weights))
            for group, layers in enumerate(self.layers)
        )
        return Recipe("task_arithmetic", self.names, slices)


class MergePopulation:
    """Tries candidates on examples that choose, fresh ones in every generation.

    A reward is the share of the best parent's gain that a candidate keeps: 1 where it is as good as the best
    parent on every task, 0 where it is as good as the base model.
    """

    def __init__(
        self, backbone: Backbone, mixture: Mixture, corpus: Corpus, config: MergeSearchConfig, start: float
    ) -> None:
        """Measure what every parent does on the first examples of every task.

        Args:
            backbone: the frozen model.
            mixture: the parents.
            corpus: the examples that choose.
            config: settings.
            start: weight of every parent at first.

        Raises:
            UsageError: no parent does better than the base model on any task.
        """
        self._backbone, self._mixture, self._corpus = backbone, mixture, corpus
        self._a_task = max(1, config.batch_size // len(corpus.tasks))
        self._seed = config.seed
        weights = torch.full((len(mixture.names), mixture.groups), start)
        self.module = nn.ParameterList([nn.Parameter(weights, requires_grad=False)])
        self.levels = tuple(self._level(examples) for examples in corpus.examples)
        if all(level.base - level.best < LEAST_GAIN for level in self.levels):
            raise UsageError(
                f"no parent is {LEAST_GAIN} nats per token better than the base model on any of "
                f"{len(self.levels)} tasks, so there is nothing to keep; give the tasks that they were "
                "trained for"
            )

    @property
    def weights(self) -> Float[Tensor, "parents groups"]:
        """The weights as they stand, on the CPU."""
        return self.module[0].detach().cpu().clone()

    def fingerprint(self) -> str:
        """Names base model, parents and examples."""
        parents = self._mixture.joined.fingerprint()
        return fingerprint(self._backbone, self._corpus, parents, self._mixture.names, self._mixture.groups)

    def examples(self, forward_pass: int) -> list[TokenisedExample]:
        """As many of every task, drawn by the seed and the number of the forward pass; short ones first."""
        drawn = [
            example
            for task, own in zip(self._corpus.tasks, self._corpus.examples, strict=True)
            for example in random.Random(f"{self._seed}/{forward_pass}/{task.name}").sample(
                own, min(self._a_task, len(own))
            )
        ]
        return sorted(drawn, key=lambda example: example.length)

    @torch.no_grad()
    def fitness(self, candidates: Float[Tensor, "candidates parameters"], forward_pass: int) -> Fitness:
        """Mean share of the gain that every candidate keeps on one batch."""
        examples = self.examples(forward_pass)
        count = len(candidates)
        weights = candidates.view(count, len(self._mixture.names), self._mixture.groups)
        scales = self._mixture.scales(weights.to(self._backbone.device))
        total, tokens = torch.zeros(count, dtype=torch.float64), 0
        at_once = max(1, ROWS_AT_ONCE // count)
        for begin in range(0, len(examples), at_once):
            part = examples[begin : begin + at_once]
            batch = self._padded(part * count)  # consecutive rows for each candidate
            with attach_scaled(self._backbone.model, self._mixture.joined, scales):
                losses = answer_losses(self._backbone, batch).double().cpu().view(count, -1)
            levels = [self.levels[e.task] for e in part]
            base = torch.tensor([level.base for level in levels], dtype=torch.float64)
            gain = torch.tensor([level.gain for level in levels], dtype=torch.float64)
            total += ((base - losses) / gain).sum(1)
            tokens += batch.tokens
        return Fitness((total / len(examples)).tolist(), tokens)

    @torch.no_grad()
    def _level(self, examples: Sequence[TokenisedExample]) -> TaskLevels:
        batch = self._padded(examples[:JUDGED])
        model, mixture = self._backbone.model, self._mixture
        base = float(answer_losses(self._backbone, batch).mean())
        losses = {}
        for alone, name in zip(torch.eye(len(mixture.names)), mixture.names, strict=True):
            scales = mixture.scales(
                alone[None, :, None].expand(1, -1, mixture.groups).to(self._backbone.device)
            )
            with attach_scaled(model, mixture.joined, scales):
                losses[name] = float(answer_losses(self._backbone, batch).mean())
        if not all(map(math.isfinite, [base, *losses.values()])):
            raise UsageError("a loss is not finite under the base model or a parent; use bfloat16 or float32")
        best = min(losses, key=lambda name: losses[name])
        return TaskLevels(base, best, losses[best])

    def _padded(self, examples: Sequence[TokenisedExample]) -> Sequences:
        pairs = [(e.prompt, e.completion) for e in examples]
        return pad_sequences(pairs, self._backbone.end_of_turn, self._backbone.device)
