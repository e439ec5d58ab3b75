"""Steps on a few examples with a rate for every module, and the first-order derivative of those rates.

Knows one adapter, tokenised examples and rates by module; nothing of descriptions or of where rates are kept.

Source: Li et al., "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", arXiv 1707.09835, equation 2,
with Adam's direction in place of the gradient; first order as in Finn et al., arXiv 1703.03400, section 5.2;
means of states on the way: Izmailov et al., "Averaging Weights Leads to Wider Optima", arXiv 1803.05407.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoal.adapters.lora import BatchedLoRA, LoRA, LoraFactors
from shoal.config import LoraTrainingConfig
from shoal.errors import UsageError
from shoal.models.backbone import Backbone
from shoal.training.batches import TokenisedExample
from shoal.training.left_out import LeftOutFactors
from shoal.training.loop import StepLoss
from shoal.training.lora import TrainableLora, set_for_training
from shoal.training.prefix_cache import PrefixCache
from shoal.training.short_runs import optimise, places_of

BATCH_SIZE = 8
CLIP_NORM = 1.0
PLAIN = LoraTrainingConfig()  # no smoothing, no recomputing


@dataclass(frozen=True)
class Sensitivity:
    """How a loss after some steps would have changed with what decided them, to first order.

    Attributes:
        loss: the loss, nats per token.
        log_rates: module name -> d loss / d log rate.
        decay: d loss / d decay.
    """

    loss: float
    log_rates: Mapping[str, float]
    decay: float


class RefiningRun:
    """Adam's steps from an adapter on a few examples, each module at its own constant rate.

    After every step the factors go the share `decay` of the way back to where they started. Every example is
    seen once before any is seen again.

    Attributes:
        taken: steps so far.
        marks: numbers of steps whose sum of states is kept when they are taken; see `mean`.
        agreement: cosine of the gradients of the first batch's halves; 1 where it cannot be told.
    """

    def __init__(
        self,
        backbone: Backbone,
        lora: LoRA,
        examples: Sequence[TokenisedExample],
        rates: Mapping[str, float],
        *,
        decay: float = 0.0,
        batch_size: int = BATCH_SIZE,
        seed: int = 0,
        left_out: int = 0,
    ) -> None:
        """Copy the factors of the adapter, in float32, to the backbone's device.

        Args:
            backbone: the frozen model.
            lora: the adapter to start from.
            examples: at least one.
            rates: module name -> learning rate, for every module of `lora`.
            decay: share of the way back to the start after every step, in [0, 1).
            batch_size: examples per step, at most.
            seed: of the order.
            left_out: examples, the first ones, for each of which an adapter is followed that leaves it out;
                see `shoal.training.left_out`.

        Raises:
            UsageError: no examples, or other modules in `rates` than in `lora`.
        """
        if not examples:
            raise UsageError("there are 0 examples to refine on; at least 1 is needed, give some")
        if rates.keys() != lora.factors.keys():
            raise UsageError(
                f"rates are given for {len(rates)} modules, the adapter has {len(lora.factors)}; use those "
                "of its own network"
            )
        self._backbone = backbone
        self._examples = examples
        self._batch_size = min(batch_size, len(examples))
        self._seed = seed
        self._rates = rates
        self._decay = decay
        self._lora = TrainableLora(lora, backbone.device)
        self._start = [factor.detach().clone() for factor in self._lora.factors]
        self._moved_by_decay = [torch.zeros_like(factor) for factor in self._start]
        layers = {t.layer for t in backbone.shape.targets if t.name in lora.factors}
        self._first_layer = min(layers)
        self._prefix = PrefixCache(backbone, self._first_layer)
        self._left_out = examples[:left_out]
        self._others: LeftOutFactors | None = None
        self._passed: list[tuple[list[int], list[Tensor]]] = []  # examples of a step, with their own factors
        if left_out:
            by_factor = [rates[name] for name in lora.factors for _ in "ab"]
            numbers = [e.index for e in self._left_out]
            self._others = LeftOutFactors(list(self.module), by_factor, numbers, decay)
        self._sum = [torch.zeros_like(factor) for factor in self._states()]
        self._sums = {0: [torch.zeros_like(total) for total in self._sum]}
        self.taken = 0
        self.marks: set[int] = set()
        self.agreement = 1.0

    @property
    def module(self) -> nn.ParameterList:
        """The factors."""
        return self._lora.factors

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The factors by their rate."""
        groups: dict[float, list[nn.Parameter]] = {}
        for number, rate in enumerate(self._rates[name] for name in self._lora.current().factors):
            groups.setdefault(rate, []).extend(self.module[2 * number : 2 * number + 2])
        return [{"params": factors, "lr": rate} for rate, factors in groups.items()]

    def loss(self, forward_pass: int) -> StepLoss:
        """Mean loss of one batch, nats per token; the first one also measures how its halves agree."""
        rows = self.batch(forward_pass)
        if forward_pass or len(rows) < 2:
            losses, tokens = self._losses(rows)
            return StepLoss(losses.mean(), tokens)
        halves = [rows[::2], rows[1::2]]
        (one, first), (other, second) = (self._losses(half) for half in halves)
        self.agreement = self._cosine(one.mean(), other.mean())
        return StepLoss((one.sum() + other.sum()) / len(rows), first + second)

    def steps(self, count: int) -> Iterator[StepLoss]:
        """Take steps, one each time that the next loss is asked for."""
        for taken in optimise(self._backbone, self, count, clip_norm=CLIP_NORM):
            self._decayed()
            self._follow()
            self._summed()
            yield taken

    def batch(self, forward_pass: int) -> list[TokenisedExample]:
        """The examples of one forward pass."""
        places = places_of(forward_pass, self._batch_size, len(self._examples), self._seed)
        return [self._examples[place] for place in places]

    def lora(self) -> LoRA:
        """The adapter as it stands, float32 on the CPU."""
        return self._lora.copy()

    def mean(self, since: int) -> LoRA:
        """The mean of the states after step `since`, which is 0 or one of `marks`; float32 on the CPU."""
        factors = self._means(since)[: len(self._start)]
        own = self.lora()
        pairs = zip(factors[::2], factors[1::2], strict=True)
        means = {name: LoraFactors(a.cpu(), b.cpu()) for name, (a, b) in zip(own.factors, pairs, strict=True)}
        return replace(own, factors=means)

    def left_out_loras(self, since: int) -> list[LoRA]:
        """The adapters that leave an example out each, as `mean`."""
        if self._others is None:
            return []
        adapters = self._batched([factor.cpu() for factor in self._means(since)[len(self._start) :]])
        return [adapters.row(row) for row in range(len(adapters))]

    @torch.no_grad()
    def left_out_losses(self, since: int) -> list[float]:
        """The loss of each example that is left out under its own of `left_out_loras`, nats per token."""
        if self._others is None:
            return []
        adapters = self._batched(self._means(since)[len(self._start) :])
        losses, _ = self._prefix.answer_losses(self._left_out, adapters, PLAIN)
        return [float(loss) for loss in losses]

    def sensitivity(self, asked: Sequence[TokenisedExample], batch_size: int = BATCH_SIZE) -> Sensitivity:
        """The loss on other examples, and how it follows from rates and decay, by one backward pass.

        With the directions of the steps taken as given, a module has moved by a distance that is linear in
        its rate, so d loss / d log rate is the product of gradient and distance.
        """
        prefix = PrefixCache(self._backbone, self._first_layer)  # indices are those of other examples
        total, gradients = 0.0, [torch.zeros_like(factor) for factor in self._start]
        with set_for_training(self._backbone):
            for begin in range(0, len(asked), batch_size):
                part = asked[begin : begin + batch_size]
                losses, _ = prefix.answer_losses(part, self._lora.current(), PLAIN)
                mean = losses.sum() / len(asked)
                for whole, own in zip(gradients, torch.autograd.grad(mean, list(self.module)), strict=True):
                    whole += own
                total += float(mean.detach())
        with torch.no_grad():
            moved = [now - before for now, before in zip(self.module, self._start, strict=True)]
            by_rate = [float((g * m).sum()) for g, m in zip(gradients, moved, strict=True)]
            by_decay = sum(float((g * m).sum()) for g, m in zip(gradients, self._moved_by_decay, strict=True))
        names = list(self._lora.current().factors)
        by_name = {name: by_rate[2 * i] + by_rate[2 * i + 1] for i, name in enumerate(names)}
        return Sensitivity(total, by_name, by_decay)

    @torch.no_grad()
    def _decayed(self) -> None:
        """Go back part of the way, and follow how the distance moved depends on the decay."""
        for factor, start, by_decay in zip(self.module, self._start, self._moved_by_decay, strict=True):
            moved = factor - start
            by_decay.mul_(1 - self._decay).sub_(moved)
            if self._decay:
                factor.copy_(start + (1 - self._decay) * moved)

    def _states(self) -> list[Tensor]:
        """All factors that take steps: the adapter's, then those of adapters that leave an example out."""
        return [*self.module, *(self._others.factors if self._others is not None else ())]

    def _means(self, since: int) -> list[Tensor]:
        taken = self.taken - since
        return [(now - before) / taken for now, before in zip(self._sum, self._sums[since], strict=True)]

    @torch.no_grad()
    def _summed(self) -> None:
        self.taken += 1
        for total, factor in zip(self._sum, self._states(), strict=True):
            total += factor
        if self.taken in self.marks:
            self._sums[self.taken] = [total.clone() for total in self._sum]

    def _losses(self, examples: Sequence[TokenisedExample]) -> tuple[Tensor, int]:
        if self._others is None:
            return self._prefix.answer_losses(examples, self._lora.current(), PLAIN)
        own = [factor.expand(len(examples), *factor.shape) for factor in self.module]
        for factor in own:
            factor.retain_grad()
        self._passed.append(([e.index for e in examples], own))
        return self._prefix.answer_losses(examples, self._batched(own), PLAIN)

    def _follow(self) -> None:
        """Take the step that was taken with every adapter that leaves an example out."""
        if self._others is None:
            return
        batch = [number for numbers, _ in self._passed for number in numbers]
        parts = zip(*(own for _, own in self._passed), strict=True)
        gradients = [torch.cat([f.grad for f in part if f.grad is not None]) * len(batch) for part in parts]
        self._others.step(batch, gradients, CLIP_NORM)
        self._passed.clear()

    def _batched(self, factors: Sequence[Tensor]) -> BatchedLoRA:
        """An adapter for each row of the factors."""
        lora = self._lora.current()
        pairs = zip(factors[::2], factors[1::2], strict=True)
        own = {name: LoraFactors(a, b) for name, (a, b) in zip(lora.factors, pairs, strict=True)}
        return BatchedLoRA(own, lora.alpha)

    def _cosine(self, one: Tensor, other: Tensor) -> float:
        """Cosine of the gradients of two losses, whose graphs stay."""
        first, second = (
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(self.module), retain_graph=True)])
            for loss in (one, other)
        )
        return float(F.cosine_similarity(first, second, dim=0))
