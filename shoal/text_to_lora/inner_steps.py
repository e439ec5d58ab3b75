"""A start that is made to be refined: adapters take steps on a few examples before their loss is asked.

The loss of the refined adapters goes to the network as if the steps had been constants (first order). The
shared adapter learns from where the steps led instead. Knows a corpus and adapters; nothing of descriptions.

Sources: Finn et al., arXiv 1703.03400, section 5.2 (first order); Nichol et al., "On First-Order
Meta-Learning Algorithms", arXiv 1803.02999, equation 2 (Reptile, for the shared adapter).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import functional_call

from shoal.adapters.lora import BatchedLoRA, LoraFactors
from shoal.config import HypernetworkTrainingConfig
from shoal.tasks.texts import normalise
from shoal.text_to_lora.hypernetwork import Hypernetwork
from shoal.training.batches import Corpus, TokenisedExample
from shoal.training.prefix_cache import PrefixCache
from shoal.training.row_adam import RowAdam

CLIP_NORM = 1.0


@dataclass(frozen=True, eq=False)
class Refined:
    """Adapters after their inner steps.

    Attributes:
        adapters: to be asked; their gradient is that of the emitted ones.
        pull: zero, whose gradient by the shared adapter is the way back from where the steps led.
        tokens: that the steps read.
    """

    adapters: BatchedLoRA
    pull: Tensor
    tokens: int


class InnerSteps:
    """Takes the inner steps of a training."""

    def __init__(self, corpus: Corpus, prefix: PrefixCache, config: HypernetworkTrainingConfig) -> None:
        """`prefix` runs the backbone on examples of the corpus."""
        self._corpus, self._prefix, self._config = corpus, prefix, config

    def emit(self, network: Hypernetwork, embeddings: Tensor) -> BatchedLoRA:
        """Adapters whose gradient leaves the shared adapter out."""
        shared = {f"offsets.{name}": p.detach() for name, p in network.offsets.named_parameters()}
        adapters: BatchedLoRA = functional_call(network, shared, (embeddings,))
        return adapters

    def refined(
        self,
        network: Hypernetwork,
        adapters: BatchedLoRA,
        asked: Sequence[Sequence[TokenisedExample]],
        forward_pass: int,
    ) -> Refined:
        """The adapters after steps on other examples of the tasks.

        Args:
            network: whose shared adapter is pulled.
            adapters: emitted.
            asked: for every adapter, the examples that it will be asked.
            forward_pass: decides which examples are drawn.
        """
        chance = random.Random(f"{self._config.seed}/{forward_pass}/inner")
        drawn = [self._draw(own, chance) for own in asked]
        taught = torch.tensor([bool(own) for own in drawn])
        # Tasks from outside the corpus have no other examples: their rows read those asked, and do not move.
        rows = [
            own or [given[0]] * self._config.inner_examples for own, given in zip(drawn, asked, strict=True)
        ]
        start = [factor.detach().float() for pair in adapters.factors.values() for factor in pair]
        adam = RowAdam(start, [self._config.inner_rate] * len(start))
        flat, tokens = [example for own in rows for example in own], 0
        for _ in range(self._config.inner_steps):
            now = [factor.clone().requires_grad_() for factor in adam.factors]
            losses, read = self._prefix.answer_losses(flat, _batched(adapters, now), self._config)
            gradients = torch.autograd.grad(losses.view(len(rows), -1).mean(1).sum(), now)
            adam.step(gradients, CLIP_NORM)
            tokens += read
        shape = (-1, 1, 1)
        moved = [
            (after - before) * taught.to(after.device).view(shape)
            for after, before in zip(adam.factors, start, strict=True)
        ]
        emitted = [factor for pair in adapters.factors.values() for factor in pair]
        sums = [factor + by.to(factor.dtype) for factor, by in zip(emitted, moved, strict=True)]
        mean = [by.sum(0) / max(1, int(taught.sum())) for by in moved]
        return Refined(_batched(adapters, sums), _pull(network, mean), tokens)

    def _draw(self, asked: Sequence[TokenisedExample], chance: random.Random) -> list[TokenisedExample]:
        """Examples of the task whose inputs are not asked, some twice if few; none of a fresh task."""
        task = asked[0].task
        if task < 0:
            return []
        own, count = self._corpus.tasks[task].train, self._config.inner_examples
        known = {normalise(own[e.place].input) for e in asked}
        others = [e for e in self._corpus.examples[task] if normalise(own[e.place].input) not in known]
        if len(others) >= count:
            return chance.sample(others, count)
        return chance.choices(others, k=count) if others else []


def _batched(like: BatchedLoRA, factors: Sequence[Tensor]) -> BatchedLoRA:
    pairs = zip(factors[::2], factors[1::2], strict=True)
    return replace(
        like, factors={n: LoraFactors(a, b) for n, (a, b) in zip(like.factors, pairs, strict=True)}
    )


def _pull(network: Hypernetwork, moved: Sequence[Tensor]) -> Tensor:
    """Zero, with the gradient -moved by the shared adapter."""
    shared = [factor for pair in network.shared_factors().values() for factor in pair]
    products = [
        ((factor - factor.detach()) * by.to(factor)).sum() for factor, by in zip(shared, moved, strict=True)
    ]
    return -torch.stack(products).sum()
