"""Candidates for a merge, tried on examples of the parents' tasks, fresh ones in every generation.

Knows a backbone, a mixture of parents and tasks; nothing of how candidates come about.

Source: Akiba et al., "Evolutionary Optimization of Model Merging Recipes", arXiv 2403.13187.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoal.errors import UsageError
from shoal.inference.beginning import losses_under_each
from shoal.merging.config import MergeSearchConfig
from shoal.merging.levels import TaskLevels
from shoal.merging.mixtures import Genome, Mixture
from shoal.models.backbone import Backbone
from shoal.training.batches import Corpus, TokenisedExample
from shoal.training.evolution import Fitness
from shoal.training.lora import fingerprint


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
        """Start from the mixture's centre.

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
        self.module = nn.ParameterList([nn.Parameter(mixture.centre.clone(), requires_grad=False)])
        self.levels = tuple(levels)
        cut = [self._a_task if len(own) >= 2 * self._a_task else 0 for own in corpus.examples]
        self._kept = [own[-n:] if n else own for own, n in zip(corpus.examples, cut, strict=True)]
        self._pools = [own[:-n] if n else own for own, n in zip(corpus.examples, cut, strict=True)]

    @property
    def genome(self) -> Genome:
        """The numbers as they stand, on the CPU."""
        return self.module[0].detach().cpu().clone()

    @genome.setter
    def genome(self, numbers: Genome) -> None:
        self.module[0].data.copy_(numbers)

    def fingerprint(self) -> str:
        """Names base model, parents and examples."""
        return fingerprint(self._backbone, self._corpus, *self._mixture.identity)

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
    ) -> Float[Tensor, "candidates examples"]:
        """Share of its task's gain that every candidate keeps on each example, float64."""
        return self._tried(candidates, examples)[0]

    @torch.no_grad()
    def _tried(
        self, candidates: Float[Tensor, "candidates parameters"], examples: Sequence[TokenisedExample]
    ) -> tuple[Float[Tensor, "candidates examples"], int]:
        """Share of the gain on every example, float64, and tokens that were read."""
        levels = [self.levels[e.task] for e in examples]
        base, gain = (
            torch.tensor([getattr(level, what) for level in levels], dtype=torch.float64)
            for what in ("base", "gain")
        )
        pairs, found, tokens = [(e.prompt, e.completion) for e in examples], [], 0
        for part in candidates.to(self._backbone.device).split(self._mixture.at_once or len(candidates)):
            with self._mixture.attach(self._backbone.model, part):
                losses, read = losses_under_each(self._backbone, pairs, len(part))
            found.append((base - losses) / gain)
            tokens += read
        return torch.cat(found), tokens

    def _drawn(self, what: str, pools: Sequence[Sequence[TokenisedExample]]) -> list[TokenisedExample]:
        drawn = [
            example
            for task, pool in zip(self._corpus.tasks, pools, strict=True)
            for example in random.Random(f"{self._seed}/{what}/{task.name}").sample(
                pool, min(self._a_task, len(pool))
            )
        ]
        return sorted(drawn, key=lambda example: example.length)
