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

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from shoal.adapters.hooks import attach_scaled
from shoal.adapters.lora import LoRA
from shoal.adapters.merging.recipe import Recipe, Slice, constant
from shoal.adapters.merging.regmean import Covariances
from shoal.errors import UsageError
from shoal.inference.forward import answer_losses, pad_sequences
from shoal.merging.config import MergeSearchConfig
from shoal.merging.levels import TaskLevels
from shoal.merging.terms import terms_of
from shoal.models.backbone import Backbone
from shoal.training.batches import Corpus, TokenisedExample
from shoal.training.evolution import Fitness
from shoal.training.lora import fingerprint

ROWS_AT_ONCE = 64


class Mixture:
    """Parents side by side, and the ranks that a weight for every parent and group of layers scales.

    Attributes:
        names: of the parents.
        joined: their terms and the start as one LoRA of the summed rank.
        groups: of neighbouring layers.
        layers: of every group, the first one and the one behind the last.
        balanced: the weight of every parent that a search starts from.
    """

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
        if len(parents) < 2:
            raise UsageError(f"a merge needs 2 parents or more, got {len(parents)}; name others")
        if covariances is not None and (missing := sorted(parents.keys() - covariances.keys())):
            raise UsageError(f"{missing[0]} has no covariances of inputs; measure those of every parent")
        self.names = tuple(parents)
        measured = None if covariances is None else [covariances[name] for name in parents]
        terms = terms_of(parents, start, measured)
        self.joined = terms.joined.to(backbone.device)
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
        self._owner = {name: owner.to(backbone.device) for name, owner in terms.owner.items()}
        self._by_inputs = covariances is not None
        self.balanced = 1.0 if self._by_inputs else 1 / math.sqrt(len(parents))

    def scales(
        self, weights: Float[Tensor, "candidates parents groups"]
    ) -> dict[str, Float[Tensor, "candidates rank"]]:
        """Module name -> the scale of every rank of the joined LoRA, for every candidate."""
        padded = F.pad(weights, (0, 0, 0, 1), value=1.0)  # of the start
        return {name: padded[:, self._owner[name], group] for name, group in self._group.items()}

    def recipe(self, weights: Float[Tensor, "parents groups"]) -> Recipe:
        """The merge with these weights: a sum over the parents, a slice for every group of layers."""
        method, parameter = ("regmean", "scale") if self._by_inputs else ("task_arithmetic", "weight")
        slices = tuple(
            Slice(layers, tuple({parameter: constant(float(row[group]))} for row in weights))
            for group, layers in enumerate(self.layers)
        )
        return Recipe(method, self.names, slices)


class MergePopulation:
    """Tries candidates on examples that choose, fresh ones in every generation.

    A reward is the share of the best parent's gain that a candidate keeps: 1 where it is as good as the best
    parent on every task, 0 where it is as good as the start.
    """

    def __init__(
        self,
        backbone: Backbone,
        mixture: Mixture,
        corpus: Corpus,
        config: MergeSearchConfig,
        levels: Sequence[TaskLevels],
    ) -> None:
        """Start from the mixture's balanced weights.

        Args:
            backbone: the frozen model.
            mixture: the parents.
            corpus: the examples that choose.
            config: settings.
            levels: of every task of the corpus, as `levels_of` measures them.
        """
        self._backbone, self._mixture, self._corpus = backbone, mixture, corpus
        self._a_task = max(1, config.batch_size // len(corpus.tasks))
        self._seed = config.seed
        weights = torch.full((len(mixture.names), mixture.groups), mixture.balanced)
        self.module = nn.ParameterList([nn.Parameter(weights, requires_grad=False)])
        self.levels = tuple(levels)
        cut = [self._a_task if len(own) >= 2 * self._a_task else 0 for own in corpus.examples]
        self._kept = [own[-n:] if n else own for own, n in zip(corpus.examples, cut, strict=True)]
        self._pools = [own[:-n] if n else own for own, n in zip(corpus.examples, cut, strict=True)]

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
        return self._drawn(str(forward_pass), self._pools)

    def kept_back(self) -> list[TokenisedExample]:
        """Examples that no generation sees, as many as judge one; all where a task has too few for that."""
        return self._drawn("kept back", self._kept)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that judge."""
        return tuple(task.name for task in self._corpus.tasks)

    def fitness(self, candidates: Float[Tensor, "candidates parameters"], forward_pass: int) -> Fitness:
        """Mean share of the gain that every candidate keeps on one batch.

        Raises:
            UsageError: all candidates of the first generation earn the same.
        """
        found = self.judge(candidates, self.examples(forward_pass))
        if forward_pass == 0 and min(found.rewards) == max(found.rewards):
            raise UsageError(
                f"all {len(candidates)} candidates keep {found.rewards[0]:g} of the gain, so the examples "
                "cannot tell weights apart; give other parents, or tasks that they answer differently"
            )
        return found

    def judge(
        self, candidates: Float[Tensor, "candidates parameters"], examples: Sequence[TokenisedExample]
    ) -> Fitness:
        """Mean share of the gain that every candidate keeps on some examples."""
        shares, tokens = self._tried(candidates, examples)
        return Fitness(shares.mean(1).tolist(), tokens)

    def shares(
        self, candidates: Float[Tensor, "candidates parameters"], examples: Sequence[TokenisedExample]
    ) -> Float[Tensor, "candidates tasks"]:
        """Share of every task's gain that every candidate keeps on some examples, float64."""
        shares, _ = self._tried(candidates, examples)
        of_task = torch.tensor([e.task for e in examples])
        return torch.stack([shares[:, of_task == task].mean(1) for task in range(len(self.tasks))], dim=1)

    @torch.no_grad()
    def _tried(
        self, candidates: Float[Tensor, "candidates parameters"], examples: Sequence[TokenisedExample]
    ) -> tuple[Float[Tensor, "candidates examples"], int]:
        """Share of the gain on every example, float64, and real tokens."""
        count = len(candidates)
        weights = candidates.view(count, len(self._mixture.names), self._mixture.groups)
        scales = self._mixture.scales(weights.to(self._backbone.device))
        shares, tokens = [], 0
        at_once = max(1, ROWS_AT_ONCE // count)
        for begin in range(0, len(examples), at_once):
            part = examples[begin : begin + at_once]
            pairs = [(e.prompt, e.completion) for e in part] * count  # consecutive rows for each candidate
            batch = pad_sequences(pairs, self._backbone.end_of_turn, self._backbone.device)
            with attach_scaled(self._backbone.model, self._mixture.joined, scales):
                losses = answer_losses(self._backbone, batch).double().cpu().view(count, -1)
            levels = [self.levels[e.task] for e in part]
            base = torch.tensor([level.base for level in levels], dtype=torch.float64)
            gain = torch.tensor([level.gain for level in levels], dtype=torch.float64)
            shares.append((base - losses) / gain)
            tokens += batch.tokens
        return torch.cat(shares, dim=1), tokens

    def _drawn(self, what: str, pools: Sequence[Sequence[TokenisedExample]]) -> list[TokenisedExample]:
        drawn = [
            example
            for task, pool in zip(self._corpus.tasks, pools, strict=True)
            for example in random.Random(f"{self._seed}/{what}/{task.name}").sample(
                pool, min(self._a_task, len(pool))
            )
        ]
        return sorted(drawn, key=lambda example: example.length)
