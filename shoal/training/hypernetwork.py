"""Training a hypernetwork: end to end on tasks (SFT), or to reproduce adapters that were trained (reconstruction).

Knows task embeddings, not the text that they came from beyond asking the encoder once. The contrastive term and
the description dropout answer the known failure of SFT, an adapter that ignores its description.

Source: Charakorn et al., arXiv 2506.06105, sections 3.1 (reconstruction) and 3.2 (SFT).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from shoal.backbone import Backbone
from shoal.config import HypernetworkTrainingConfig
from shoal.errors import UsageError
from shoal.forward import Sequences, answer_losses, pad_sequences
from shoal.hypernetwork import Hypernetwork
from shoal.lora import BatchedLoRA, LoRA, attach
from shoal.task_embedding import TaskEncoder
from shoal.tasks import Task, check_no_leakage
from shoal.training.batches import BatchOrder, Corpus, TokenisedExample, tokenise
from shoal.training.loop import RunSummary, StepLoss, run
from shoal.training.lora import fingerprint, set_for_training
from shoal.training.prefix import PrefixCache


def train_hypernetwork(
    network: Hypernetwork,
    backbone: Backbone,
    encoder: TaskEncoder,
    tasks: Sequence[Task],
    folder: Path,
    config: HypernetworkTrainingConfig,
    *,
    held_out: Sequence[Task] = (),
    monitor_size: int = 0,
    show_progress: bool = True,
) -> RunSummary:
    """Train a hypernetwork end to end: the backbone's answer loss under the adapters that it emits.

    Every example of a batch gets one of its task's descriptions at random, and so its own adapter.

    Args:
        network: trained in place.
        backbone: the frozen model.
        encoder: reads the descriptions.
        tasks: what to train on; each needs a description.
        folder: of the run; training resumes from a checkpoint in it.
        config: optimisation settings.
        held_out: tasks that must share no example with `tasks`.
        monitor_size: examples of each held-out task's `train` list whose loss is logged at every checkpoint
            under the right and under another task's description; 0 for none.
        show_progress: draw a progress bar.

    Raises:
        LeakageError: a held-out task, or a `test` example, is among the training examples.
        UsageError: no tasks, a task without a description, or a folder of another run.
        Interrupted: Ctrl-C, after the checkpoint is written.
    """
    if not tasks or any(not task.descriptions for task in tasks):
        raise UsageError(
            "training a hypernetwork needs tasks with at least one description each; add descriptions"
        )
    check_no_leakage(tasks, held_out)
    network.to(backbone.device)
    corpus = tokenise(tasks, backbone, config.max_length)
    objective = SftObjective(network, backbone, corpus, embed_descriptions(encoder, tasks), config)
    monitor = None
    if held_out and monitor_size:
        unseen = tokenise(held_out, backbone, config.max_length)
        monitor = SteeringMonitor(
            network, backbone, unseen, embed_descriptions(encoder, held_out), monitor_size
        )
    with set_for_training(backbone, gradient_checkpointing=config.gradient_checkpointing):
        return run(objective, config, folder, monitor=monitor, show_progress=show_progress)


def train_reconstruction(
    network: Hypernetwork,
    encoder: TaskEncoder,
    tasks: Sequence[Task],
    adapters: Sequence[LoRA],
    folder: Path,
    config: HypernetworkTrainingConfig,
    *,
    show_progress: bool = True,
) -> RunSummary:
    """Train a hypernetwork to reproduce one trained adapter a task, by the distance of their delta weights.

    Args:
        network: trained in place.
        encoder: reads the descriptions.
        tasks: whose descriptions to take.
        adapters: one a task, of the network's targets.
        folder: of the run; training resumes from a checkpoint in it.
        config: optimisation settings; a batch is `batch_size` tasks.
        show_progress: draw a progress bar.

    Raises:
        UsageError: not one adapter a task, or adapters of other modules.
    """
    names = {t.name for t in network.targets}
    if len(tasks) != len(adapters) or any(lora.factors.keys() != names for lora in adapters):
        raise UsageError(
            f"reconstruction needs one adapter a task over the network's {len(names)} modules, got {len(adapters)} "
            f"adapters for {len(tasks)} tasks; train them with the same targets"
        )
    objective = ReconstructionObjective(network, embed_descriptions(encoder, tasks), adapters, config)
    return run(objective, config, folder, show_progress=show_progress)


def embed_descriptions(
    encoder: TaskEncoder, tasks: Sequence[Task]
) -> list[Float[Tensor, "descriptions dim"]]:
    """The embeddings of every task's descriptions."""
    return [encoder.encode(task.descriptions) for task in tasks]


class SftObjective:
    """Answer loss under emitted adapters, with an optional wrong-description term."""

    def __init__(
        self,
        network: Hypernetwork,
        backbone: Backbone,
        corpus: Corpus,
        descriptions: Sequence[Tensor],
        config: HypernetworkTrainingConfig,
    ) -> None:
        """`descriptions` holds, for every task of the corpus, its embeddings (descriptions, dim)."""
        self.module, self._backbone, self._corpus, self._config = network, backbone, corpus, config
        self._descriptions = [d.to(backbone.device) for d in descriptions]
        self._order = BatchOrder(corpus, config.batch_size, config.seed)
        self._prefix = PrefixCache(backbone, min(t.layer for t in network.targets))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The network at its own learning rate, the shared adapter at another."""
        return parameter_groups(self.module, self._config)

    def loss(self, forward_pass: int) -> StepLoss:
        """Mean answer loss of one bucketed batch, plus the weighted contrastive term."""
        config, chance = self._config, random.Random(f"{self._config.seed}/{forward_pass}/descriptions")
        examples = self._order.batch(forward_pass)
        tasks = [e.task for e in examples]
        others = self._wrong_rows(tasks, chance)
        embeddings = self._embed(tasks, chance)
        if others:
            wrong = self._embed([task for _, task in others], chance, drop=False)
            embeddings = torch.cat([embeddings, wrong])
        examples = [*examples, *(examples[row] for row, _ in others)]
        losses, batch = self._answer_losses(examples, self.module(embeddings))
        right = losses[: len(tasks)]
        if not others:
            return StepLoss(right.mean(), batch.tokens)
        rows = torch.tensor([row for row, _ in others], device=losses.device)
        margins = losses[len(tasks) :] - right[rows]
        contrast = F.relu(config.contrastive_margin - margins).mean()
        metrics = {
            "answer_loss": float(right.detach().mean()),
            "train_margin": float(margins.detach().mean()),
        }
        return StepLoss(right.mean() + config.contrastive_weight * contrast, batch.tokens, metrics)

    def fingerprint(self) -> str:
        """Names base model, data and architecture."""
        return fingerprint(self._backbone, self._corpus, self.module.architecture, self.module.targets)

    def _wrong_rows(self, tasks: Sequence[int], chance: random.Random) -> list[tuple[int, int]]:
        """(row of the batch, another task) pairs of the contrastive term."""
        if not self._config.contrastive_weight or len(self._descriptions) < 2:
            return []
        count = max(1, round(len(tasks) * self._config.contrastive_share))
        pairs = []
        for row in chance.sample(range(len(tasks)), count):
            other = chance.randrange(len(self._descriptions) - 1)
            pairs.append((row, other + (other >= tasks[row])))
        return pairs

    def _embed(
        self, tasks: Sequence[int], chance: random.Random, *, drop: bool = True
    ) -> Float[Tensor, "rows dim"]:
        """One random description a row, noisy or dropped as configured; the null description is the zero vector."""
        chosen = [self._descriptions[t][chance.randrange(len(self._descriptions[t]))] for t in tasks]
        embeddings = torch.stack(chosen)
        if self._config.embedding_noise:
            embeddings = embeddings + self._config.embedding_noise * torch.randn_like(embeddings)
        if drop and self._config.description_dropout:
            kept = [chance.random() >= self._config.description_dropout for _ in tasks]
            embeddings = embeddings * torch.tensor(kept, device=embeddings.device)[:, None]
        return embeddings

    def _answer_losses(
        self, examples: Sequence[TokenisedExample], adapters: BatchedLoRA
    ) -> tuple[Tensor, Sequences]:
        pairs = [(e.prompt, e.completion) for e in examples]
        batch = pad_sequences(pairs, self._backbone.end_of_turn, self._backbone.device)
        hidden = self._prefix.hidden(examples, batch)
        with attach(self._backbone.model, adapters):
            losses = answer_losses(
                self._backbone,
                batch,
                start=self._prefix.start,
                hidden=hidden,
                label_smoothing=self._config.label_smoothing,
            )
        return losses, batch


class ReconstructionObjective:
    """Squared distance between emitted and trained delta weights, relative to the trained ones' size."""

    def __init__(
        self,
        network: Hypernetwork,
        descriptions: Sequence[Tensor],
        adapters: Sequence[LoRA],
        config: HypernetworkTrainingConfig,
    ) -> None:
        """`descriptions` and `adapters` go task by task."""
        self.module, self._descriptions, self._adapters, self._config = (
            network,
            descriptions,
            adapters,
            config,
        )
        scale = sum(_inner(lora, lora, name) for lora in adapters for name in lora.factors)
        self._scale = float(scale) / len(adapters)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The network at its own learning rate, the shared adapter at another."""
        return parameter_groups(self.module, self._config)

    def loss(self, forward_pass: int) -> StepLoss:
        """Mean over tasks of ||emitted - trained||^2 / mean ||trained||^2, without forming a delta weight."""
        chance = random.Random(f"{self._config.seed}/{forward_pass}/tasks")
        size = min(self._config.batch_size, len(self._adapters))
        tasks = chance.sample(range(len(self._adapters)), size)
        rows = [self._descriptions[t][chance.randrange(len(self._descriptions[t]))] for t in tasks]
        device = next(self.module.parameters()).device
        emitted = self.module(torch.stack(rows).to(device))
        total = torch.zeros((), device=device)
        for row, task in enumerate(tasks):
            ours, theirs = emitted.row(row), self._adapters[task].to(device)
            for name in ours.factors:
                total = (
                    total
                    + _inner(ours, ours, name)
                    - 2 * _inner(ours, theirs, name)
                    + _inner(theirs, theirs, name)
                )
        return StepLoss(total / (size * self._scale), 0)

    def fingerprint(self) -> str:
        """Names architecture and the adapters' count and size."""
        return repr((self.module.architecture, self.module.targets, len(self._adapters), self._scale))


class SteeringMonitor:
    """Loss on held-out tasks under their own and under another task's description."""

    def __init__(
        self,
        network: Hypernetwork,
        backbone: Backbone,
        corpus: Corpus,
        descriptions: Sequence[Tensor],
        size: int,
    ) -> None:
        """Takes the first `size` examples of every task, and its first description."""
        self._network, self._backbone, self._size = network, backbone, size
        self._corpus = corpus
        self._descriptions = torch.stack([d[0] for d in descriptions]).to(backbone.device)

    @torch.no_grad()
    def __call__(self) -> Mapping[str, float]:
        """`unseen_loss` in nats a token, mean over tasks, and `unseen_margin`, wrong minus right."""
        adapters = self._network(self._descriptions)
        right, wrong = [], []
        count = len(self._corpus.tasks)
        for task, examples in enumerate(self._corpus.examples):
            pairs = [(e.prompt, e.completion) for e in examples[: self._size]]
            batch = pad_sequences(pairs, self._backbone.end_of_turn, self._backbone.device)
            for number, losses in ((task, right), ((task + count // 2) % count, wrong)):
                with attach(self._backbone.model, adapters.row(number)):
                    losses.append(float(answer_losses(self._backbone, batch).mean()))
        unseen = sum(right) / count
        return {"unseen_loss": unseen, "unseen_margin": sum(wrong) / count - unseen}


def parameter_groups(network: Hypernetwork, config: HypernetworkTrainingConfig) -> list[dict[str, Any]]:
    """AdamW groups: the network proper, and its shared adapter where that is trained."""
    shared = {id(p) for p in network.offsets.parameters()}
    groups = [
        {"params": [p for p in network.parameters() if id(p) not in shared], "lr": config.learning_rate}
    ]
    if network.architecture.offset:
        groups.append({"params": list(network.offsets.parameters()), "lr": config.offset_learning_rate})
    return groups


def _inner(left: LoRA, right: LoRA, name: str) -> Tensor:
    """<B A, B' A'> of two delta weights, as the trace of two small products."""
    f, g = left.factors[name], right.factors[name]
    return left.scaling * right.scaling * ((f.b.T @ g.b) * (f.a @ g.a.T)).sum()
