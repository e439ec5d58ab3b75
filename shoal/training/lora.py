"""Training one LoRA: on one task (the baseline, and the oracle of evaluations) or on many (multi-task LoRA).

Knows one adapter and a corpus; nothing of descriptions or hypernetworks.

Source: Hu et al., arXiv 2106.09685, section 4.1.
"""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from shoal.adapters.lora import LoRA, LoraFactors
from shoal.adapters.merging import compose
from shoal.config import LoraTrainingConfig
from shoal.errors import UsageError
from shoal.models.backbone import Backbone
from shoal.models.modules import TargetModule
from shoal.tasks.answer_kinds import balanced_weights
from shoal.tasks.loading import Task, check_no_leakage
from shoal.training.batches import BatchOrder, Corpus, LengthWeights, tokenise
from shoal.training.loop import RunSummary, StepLoss, run
from shoal.training.prefix_cache import PrefixCache

log = logging.getLogger(__name__)


class Penalty(Protocol):
    """A term of the loss that depends on the adapter alone."""

    def __call__(self, lora: LoRA) -> Tensor:
        """The term, a scalar."""

    def fingerprint(self) -> str:
        """Names it, so that a run is never resumed with another."""


def train_lora(
    backbone: Backbone,
    tasks: Sequence[Task],
    targets: Sequence[TargetModule],
    folder: Path,
    config: LoraTrainingConfig,
    *,
    rank: int = 16,
    alpha: float = 32.0,
    start: LoRA | None = None,
    frozen: LoRA | None = None,
    penalty: Penalty | None = None,
    held_out: Sequence[Task] = (),
    show_progress: bool = True,
) -> tuple[LoRA, RunSummary]:
    """Train one LoRA on the `train` lists of one or more tasks, drawn evenly.

    Args:
        backbone: the frozen model.
        tasks: what to train on.
        targets: modules to adapt.
        folder: of the run; training resumes from a checkpoint in it.
        config: optimisation settings.
        rank: LoRA rank, without `start`.
        alpha: LoRA alpha, without `start`.
        start: adapter to go on from; by default a fresh identity.
        frozen: adapter of the same modules that is active too and stays as it is.
        penalty: a term that is added to the loss.
        held_out: tasks that must share no example with `tasks`.
        show_progress: draw a progress bar.

    Returns:
        The adapter, float32 on the CPU, and how the run went.

    Raises:
        LeakageError: a held-out task, or a `test` example, is among the training examples.
        UsageError: no tasks or targets, a rank or `start` that does not fit, or a folder of another run.
        Interrupted: Ctrl-C, after the checkpoint is written.
    """
    if not tasks:
        raise UsageError("training needs at least one task, got none")
    if not targets:
        raise UsageError(
            "training a LoRA needs at least one target module, got none; see BackboneShape.select"
        )
    check_no_leakage(tasks, held_out)
    generator = torch.Generator().manual_seed(config.seed)
    lora = start or LoRA.identity(targets, rank, alpha, generator=generator)
    log.info("preparing the examples of %d tasks", len(tasks))
    corpus = tokenise(tasks, backbone, config.max_length, describe=config.describe)
    objective = LoraObjective(backbone, corpus, targets, lora, config, frozen=frozen, penalty=penalty)
    with set_for_training(backbone):
        summary = run(objective, config, folder, show_progress=show_progress)
    return objective.lora(), summary


class TrainableLora:
    """A LoRA whose factors are parameters.

    Attributes:
        factors: A and B of every module in its turn, float32 on the device.
    """

    def __init__(self, lora: LoRA, device: torch.device) -> None:
        """Copy the factors of an adapter."""
        self._names = list(lora.factors)
        self._alpha = lora.alpha
        self.factors = nn.ParameterList(
            nn.Parameter(factor.detach().float().clone().to(device))
            for pair in lora.factors.values()
            for factor in pair
        )

    def current(self) -> LoRA:
        """The adapter whose factors are the parameters themselves."""
        pairs = zip(self.factors[::2], self.factors[1::2], strict=True)
        return LoRA({n: LoraFactors(a, b) for n, (a, b) in zip(self._names, pairs, strict=True)}, self._alpha)

    def copy(self) -> LoRA:
        """The adapter as it stands, float32 on the CPU."""
        factors = {}
        for name, (a, b) in self.current().factors.items():
            factors[name] = LoraFactors(a.detach().cpu().clone(), b.detach().cpu().clone())
        return LoRA(factors, self._alpha)


class LoraObjective:
    """Cross-entropy of answers under one shared adapter, averaged a sample."""

    def __init__(
        self,
        backbone: Backbone,
        corpus: Corpus,
        targets: Sequence[TargetModule],
        lora: LoRA,
        config: LoraTrainingConfig,
        prefix: PrefixCache | None = None,
        *,
        frozen: LoRA | None = None,
        penalty: Penalty | None = None,
    ) -> None:
        """Start from `lora`; its factors are copied to the backbone's device in float32.

        `prefix` is a cache that other runs on the same corpus and first layer fill too; None for its own.
        `frozen` and `penalty` are as in `train_lora`.

        Raises:
            UsageError: `lora` adapts other modules than `targets`.
        """
        if lora.factors.keys() != {t.name for t in targets}:
            raise UsageError(
                f"the LoRA to start from adapts {len(lora.factors)} modules, not the {len(targets)} targets; "
                "choose the layers and modules that it was trained with"
            )
        self._start: tuple[str, ...] = (_hash_of(lora),)
        self._start += () if frozen is None else ("frozen", _hash_of(frozen))
        self._start += () if penalty is None else ("penalty", penalty.fingerprint())
        self._backbone = backbone
        self._corpus = corpus
        self._config = config
        self._lora = TrainableLora(lora, backbone.device)
        self._frozen = None if frozen is None else frozen.to(backbone.device, torch.float32)
        self._penalty = penalty
        weights = balanced_weights(corpus.tasks) if config.mix == "kinds" else None
        self._order = BatchOrder(corpus, config.batch_size, config.seed, config.examples_a_task, weights)
        self._weigh = LengthWeights(corpus, config.length_exponent, weights)
        self._prefix = prefix or PrefixCache(backbone, min(t.layer for t in targets))

    @property
    def module(self) -> nn.ParameterList:
        """The factors."""
        return self._lora.factors

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All factors at one learning rate."""
        return [{"params": list(self.module), "lr": self._config.learning_rate}]

    def loss(self, forward_pass: int) -> StepLoss:
        """Mean answer loss of one bucketed batch, and the penalty where there is one."""
        examples, lora = self._order.batch(forward_pass), self._lora.current()
        active = lora if self._frozen is None else compose([self._frozen, lora], [1.0, 1.0])
        losses, tokens = self._prefix.answer_losses(examples, active, self._config)
        loss = (losses * self._weigh(examples).to(losses.device)).mean()
        if self._penalty is None:
            return StepLoss(loss, tokens)
        penalty = self._penalty(lora)
        return StepLoss(loss + penalty, tokens, {"penalty": float(penalty.detach())})

    def fingerprint(self) -> str:
        """Names base model, data and the adapter at the start."""
        return fingerprint(self._backbone, self._corpus, *self._start)

    def lora(self) -> LoRA:
        """The adapter as it stands, float32 on the CPU."""
        return self._lora.copy()


@contextmanager
def set_for_training(backbone: Backbone) -> Iterator[None]:
    """Put a frozen model into its fastest state for training adapters, and back.

    On a CPU the plain attention product is used: its backward pass takes a tenth of the fused kernel's time
    at the lengths of requests.
    """
    attention = backbone.model.config._attn_implementation
    if backbone.device.type == "cpu":
        backbone.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        backbone.model.set_attn_implementation(attention)


def fingerprint(backbone: Backbone, corpus: Corpus, *more: object) -> str:
    """A hash of base model, training examples and whatever else must not change between sittings."""
    digest = hashlib.sha256(repr((backbone.shape.base_model, str(backbone.dtype), more)).encode())
    for examples in corpus.examples:
        for e in examples:
            for ids in ((e.task, len(e.prompt)), e.prompt, e.completion):
                digest.update(array("q", ids).tobytes())
    return digest.hexdigest()


def _hash_of(lora: LoRA) -> str:
    digest = hashlib.sha256(repr(lora.alpha).encode())
    for name, factors in lora.factors.items():
        for factor in factors:
            digest.update(repr((name, tuple(factor.shape))).encode())
            digest.update(factor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
