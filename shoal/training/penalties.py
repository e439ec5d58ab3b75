"""Terms of a loss that hold an adapter back from undoing what it learnt before, without old data.

Knows adapters, and for the Fisher information a model and examples; nothing of the order of tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.adapters.base import fingerprint_of
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.config import LoraTrainingConfig
from shoal.models.backbone import Backbone
from shoal.tasks.records import Task
from shoal.training.batches import tokenise
from shoal.training.lora import TrainableLora, set_for_training
from shoal.training.prefix_cache import PrefixCache


@dataclass(frozen=True, eq=False)
class ElasticPenalty:
    """strength / 2 * sum over old tasks k and factors i of F_ki (theta_i - theta_ki)^2, less a constant.

    A sum of quadratics is one quadratic around the mean of their centres that F weighs, so memory does not
    grow with the tasks.

    Source: Kirkpatrick et al., arXiv 1612.00796, equation 3.

    Attributes:
        strength: lambda.
        weights: sum of the Fisher information of all old tasks, for A and B of every module.
        centres: where the quadratic has its least value.
    """

    strength: float
    weights: Mapping[str, LoraFactors] | None = None
    centres: Mapping[str, LoraFactors] | None = None

    def and_near(self, lora: LoRA, fisher: Mapping[str, LoraFactors]) -> ElasticPenalty:
        """With one more task, learnt by `lora`, whose Fisher information is given."""
        if self.weights is None or self.centres is None:
            return ElasticPenalty(self.strength, fisher, lora.factors)
        weights, centres = {}, {}
        for name, own in fisher.items():
            pairs = zip(own, self.weights[name], lora.factors[name], self.centres[name], strict=True)
            both = [(f + w, (f * x + w * c) / (f + w).clamp(min=1e-30)) for f, w, x, c in pairs]
            weights[name], centres[name] = (LoraFactors(*parts) for parts in zip(*both, strict=True))
        return ElasticPenalty(self.strength, weights, centres)

    def __call__(self, lora: LoRA) -> Tensor:
        """The penalty of an adapter, a scalar."""
        assert self.weights is not None and self.centres is not None
        terms = []
        for name, own in lora.factors.items():
            for x, w, c in zip(own, self.weights[name], self.centres[name], strict=True):
                terms.append((w.to(x.device) * (x - c.to(x.device)).square()).sum())
        return self.strength / 2 * torch.stack(terms).sum()

    def fingerprint(self) -> str:
        """Names strength, weights and centres."""
        parts = {"weights": self.weights or {}, "centres": self.centres or {}}
        named = {f"{part}.{name}": own for part, each in parts.items() for name, own in each.items()}
        return fingerprint_of(_tensors(named), "ewc", self.strength)


def fisher_information(
    backbone: Backbone, task: Task, lora: LoRA, config: LoraTrainingConfig
) -> dict[str, LoraFactors]:
    """The diagonal Fisher information of A and B, of the right answers (empirical); errors as `tokenise`.

    It is the mean over examples of the squared gradient of the answer's log-likelihood, in nats.
    """
    (examples,) = tokenise([task], backbone, config.max_length, describe=config.describe).examples
    trainable = TrainableLora(lora, backbone.device)
    layers = [t.layer for t in backbone.shape.targets if t.name in lora.factors]
    prefix = PrefixCache(backbone, min(layers))
    sums = [torch.zeros_like(p) for p in trainable.factors]
    with set_for_training(backbone):
        for example in examples:
            losses, _ = prefix.answer_losses([example], trainable.current(), config)
            loss = losses.sum() * len(example.completion)  # losses are per token
            for total, gradient in zip(sums, torch.autograd.grad(loss, list(trainable.factors)), strict=True):
                total += gradient.square()
    means = [(total / len(examples)).cpu() for total in sums]
    pairs = zip(means[::2], means[1::2], strict=True)
    return {name: LoraFactors(a, b) for name, (a, b) in zip(lora.factors, pairs, strict=True)}


@dataclass(frozen=True, eq=False)
class OrthogonalPenalty:
    """strength * sum over modules of ||A_old A^T||^2, with the A of all old tasks one upon another.

    Source: O-LoRA, Wang et al., arXiv 2310.14152, equations 7 and 8.

    Attributes:
        strength: lambda.
        old: adapters of the old tasks.
    """

    strength: float
    old: Sequence[LoRA]

    def __call__(self, lora: LoRA) -> Tensor:
        """The penalty of an adapter, a scalar."""
        terms = []
        for name, (a, _) in lora.factors.items():
            before = torch.cat([each.factors[name].a for each in self.old], dim=-2).to(a)
            terms.append((before @ a.mT).square().sum())
        return self.strength * torch.stack(terms).sum()

    def fingerprint(self) -> str:
        """Names strength and old adapters."""
        return fingerprint_of({}, "orthogonal", self.strength, *(lora.fingerprint() for lora in self.old))


def _tensors(factors: Mapping[str, LoraFactors]) -> dict[str, Tensor]:
    return {f"{name}.{letter}": t for name, own in factors.items() for letter, t in own._asdict().items()}
