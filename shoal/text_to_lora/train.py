"""Training a hypernetwork end to end on tasks (SFT).

Knows what is read of descriptions, not what they say. The contrastive term and the description dropout answer
the known failure of SFT, an adapter that ignores its description.

Source: Charakorn et al., arXiv 2506.06105, section 3.2.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from shoal.adapters.lora import BatchedLoRA
from shoal.config import HypernetworkTrainingConfig
from shoal.errors import UsageError
from shoal.inference.forward import losses_of
from shoal.models.backbone import Backbone
from shoal.tasks.answer_kinds import balanced_weights
from shoal.tasks.loading import Task, check_no_leakage
from shoal.tasks.procedural.relabel import siblings
from shoal.text_to_lora.descriptions import Descriptions
from shoal.text_to_lora.encoders.reader import description_reader
from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.text_to_lora.hypernetwork import Hypernetwork, stack_embeddings
from shoal.text_to_lora.inner_steps import InnerSteps
from shoal.text_to_lora.rehearsal import RehearsingObjective
from shoal.text_to_lora.shots import draw_shots, with_shots
from shoal.text_to_lora.steering import SteeringMonitor
from shoal.training.batches import BatchOrder, Corpus, LengthWeights, TokenisedExample, tokenise
from shoal.training.fresh_tasks import fresh_pools
from shoal.training.label_mass import LabelMass
from shoal.training.loop import Objective, RunSummary, StepLoss, run
from shoal.training.lora import fingerprint, set_for_training
from shoal.training.prefix_cache import PrefixCache

log = logging.getLogger(__name__)


def train_hypernetwork(
    network: Hypernetwork,
    backbone: Backbone,
    encoder: TaskEncoder,
    tasks: Sequence[Task],
    folder: Path,
    config: HypernetworkTrainingConfig,
    *,
    old: Sequence[Sequence[str]] = (),
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
        tasks: what to train on.
        folder: of the run; training resumes from a checkpoint in it.
        config: optimisation settings.
        old: descriptions of old tasks, which are rehearsed where `config.rehearse` is above 0.
        held_out: tasks that must share no example with `tasks`.
        monitor_size: examples of each held-out task's `train` list whose loss is logged at every checkpoint
            under the right and under another task's description; 0 for none.
        show_progress: draw a progress bar.

    Raises:
        LeakageError: a held-out task, or a `test` example, is among the training examples.
        UsageError: no tasks, nothing to rehearse where that is asked for, or a folder of another run.
        Interrupted: Ctrl-C, after the checkpoint is written.
    """
    if not tasks:
        raise UsageError("training a hypernetwork needs at least one task, got none; name some")
    if config.rehearse and not old:
        raise UsageError("rehearse needs old descriptions, got none; give some, or leave it out")
    check_no_leakage(tasks, held_out)
    network.to(backbone.device)
    log.info("preparing the examples and descriptions of %d tasks", len(tasks))
    corpus = tokenise(tasks, backbone, config.max_length, describe=config.describe)
    reader = description_reader(network, encoder, backbone, config.shots)
    descriptions = Descriptions(reader, tasks)
    objective: Objective = SftObjective(network, backbone, corpus, descriptions, config)
    if config.rehearse:
        objective = RehearsingObjective(network, objective, Descriptions(reader, old), config)
    monitor = None
    watched = [task for task in held_out if task.train]
    if watched and monitor_size:
        unseen = tokenise(watched, backbone, config.max_length, describe=config.describe)
        first = Descriptions(reader, watched).read([task.descriptions[0] for task in watched])
        monitor = SteeringMonitor(network, backbone, unseen, first, monitor_size)
    with set_for_training(backbone):
        return run(objective, config, folder, monitor=monitor, show_progress=show_progress)


class SftObjective:
    """Answer loss under emitted adapters, with an optional wrong-description term."""

    def __init__(
        self,
        network: Hypernetwork,
        backbone: Backbone,
        corpus: Corpus,
        descriptions: Descriptions,
        config: HypernetworkTrainingConfig,
    ) -> None:
        """`descriptions` are those of the corpus's tasks, in their order."""
        self.module = network
        self._backbone = backbone
        self._corpus = corpus
        self._config = config
        self._descriptions = descriptions
        self._start = weights_digest(network)
        weights = balanced_weights(corpus.tasks) if config.mix == "kinds" else None
        self._order = BatchOrder(
            corpus,
            config.batch_size,
            config.seed,
            config.examples_a_task,
            weights,
            fresh_pools(corpus.tasks, backbone.shape.base_model, config),
        )
        self._weigh = LengthWeights(corpus, config.length_exponent, weights)
        self._siblings = siblings(corpus.tasks) if config.contrastive_siblings else {}
        self._labels = LabelMass(backbone, corpus) if config.label_mass_weight else None
        self._prefix = PrefixCache(backbone, min(t.layer for t in network.targets))
        self._inner = InnerSteps(corpus, self._prefix, config)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The network at its own learning rate, the shared adapter at another."""
        return parameter_groups(self.module, self._config)

    def loss(self, forward_pass: int) -> StepLoss:
        """Mean answer loss of one bucketed batch, plus the weighted contrastive term."""
        config, chance = self._config, random.Random(f"{self._config.seed}/{forward_pass}/descriptions")
        examples, group = self._order.batch(forward_pass), config.examples_a_task
        tasks, fresh = [e.task for e in examples[::group]], [e.description for e in examples[::group]]
        others = self._wrong_tasks(tasks, chance)
        # With a null description, or nonsense, there is nothing to be right about.
        kept = [row in others or chance.random() >= config.description_dropout for row in range(len(tasks))]
        texts = [
            text or self._descriptions.choose(task, chance) for task, text in zip(tasks, fresh, strict=True)
        ]
        texts += [self._descriptions.choose(task, chance) for task in others.values()]
        if config.shots:
            texts = self._with_shots(texts, [*tasks, *others.values()], examples, chance)
        for row in range(len(tasks)):
            if row not in others and chance.random() < config.nonsense:
                texts[row] = self._descriptions.nonsense(chance)
        embeddings = self._embed(texts, kept + [True] * len(others))
        compared = [row * group + i for row in others for i in range(group)]
        read = [*examples, *(examples[i] for i in compared)]
        adapters, inner = self._emit(embeddings), None
        if config.inner_steps:
            asked = [examples[row * group : (row + 1) * group] for row in [*range(len(tasks)), *others]]
            inner = self._inner.refined(self.module, adapters, asked, forward_pass)
            adapters = inner.adapters
        logits, batch = self._prefix.answer_logits(read, adapters, config)
        losses = losses_of(logits, batch, config.label_smoothing)
        right = losses[: len(examples)]
        total = (right * self._weigh(examples).to(right.device)).mean()
        metrics: dict[str, float] = {}
        if others or self._labels is not None or config.length_exponent:  # the loss is more than this
            metrics["answer_loss"] = float(right.detach().mean())
        if self._labels is not None:
            missing = self._labels.missing(logits, examples)
            total = total + config.label_mass_weight * missing
            metrics["label_mass_missing"] = float(missing.detach())
        tokens = batch.tokens
        if inner is not None:
            total, tokens = total + inner.pull, tokens + inner.tokens
        if not others:
            return StepLoss(total, tokens, metrics)
        margins = losses[len(examples) :] - right[torch.tensor(compared, device=losses.device)]
        contrast = F.relu(config.contrastive_margin - margins).mean()
        metrics["train_margin"] = float(margins.detach().mean())
        return StepLoss(total + config.contrastive_weight * contrast, tokens, metrics)

    def fingerprint(self) -> str:
        """Names base model, data, descriptions, architecture and the weights at the start."""
        texts, module = self._descriptions.fingerprint(), self.module
        return fingerprint(
            self._backbone, self._corpus, texts, module.architecture, module.targets, self._start
        )

    def _wrong_tasks(self, tasks: Sequence[int], chance: random.Random) -> dict[int, int]:
        """Row of `tasks` -> another task, for the rows of the contrastive term.

        Where asked for, it is the same task under other label names: nothing else tells them apart.
        """
        if not self._config.contrastive_weight or len(self._descriptions) < 2:
            return {}
        count = max(1, round(len(tasks) * self._config.contrastive_share))
        wrong = {}
        for row in chance.sample(range(len(tasks)), count):
            own = self._siblings.get(tasks[row])
            if own and chance.random() < self._config.contrastive_siblings:
                wrong[row] = chance.choice(own)
                continue
            strangers = len(self._descriptions) - (tasks[row] >= 0)
            other = chance.randrange(strangers)
            wrong[row] = other + (0 <= tasks[row] <= other)
        return wrong

    def _with_shots(
        self,
        texts: Sequence[str],
        tasks: Sequence[int],
        asked: Sequence[TokenisedExample],
        chance: random.Random,
    ) -> list[str]:
        """The descriptions with examples of their tasks behind them; tasks outside the corpus have none.

        `asked` are the examples of the first of `tasks`, a group for each.
        """
        group, read = self._config.examples_a_task, []
        for row, (text, task) in enumerate(zip(texts, tasks, strict=True)):
            if task < 0:
                read.append(text)
                continue
            places = [e.place for e in asked[row * group : (row + 1) * group]]
            own = self._corpus.tasks[task].train
            read.append(with_shots(text, draw_shots(self._backbone, own, places, self._config.shots, chance)))
        return read

    def _embed(self, texts: Sequence[str], kept: Sequence[bool]) -> Float[Tensor, "rows *tokens dim"]:
        """Each text as it is read, noisy as configured; where not `kept`, the null description: zero."""
        config = self._config
        embeddings = stack_embeddings(self._descriptions.read(texts)).to(self._backbone.device)
        states = embeddings.dim() == 4
        if config.embedding_noise and not states:
            sentences = embeddings[:, 0] if embeddings.dim() == 3 else embeddings
            sentences += config.embedding_noise * torch.randn_like(sentences)
        if config.token_dropout and embeddings.dim() > 2:
            tokens = embeddings if states else embeddings[:, 1:]
            seen = torch.rand(len(tokens), tokens.shape[-2], 1, device=tokens.device) >= config.token_dropout
            tokens *= seen[:, None] if states else seen
        mask = torch.tensor(kept, device=embeddings.device)
        return embeddings * mask.view(-1, *[1] * (embeddings.dim() - 1))

    def _emit(self, embeddings: Tensor) -> BatchedLoRA:
        """The adapters, computed in the backbone's dtype where that is shorter than float32."""
        short = self._backbone.dtype
        with torch.autocast(embeddings.device.type, short, enabled=short == torch.bfloat16):
            if self._config.inner_steps:
                return self._inner.emit(self.module, embeddings)
            return self.module(embeddings)


def parameter_groups(network: Hypernetwork, config: HypernetworkTrainingConfig) -> list[dict[str, Any]]:
    """AdamW groups: the network proper, and its shared adapter where that is trained."""
    shared = {id(p) for p in network.offsets.parameters()}
    groups = [
        {"params": [p for p in network.parameters() if id(p) not in shared], "lr": config.learning_rate}
    ]
    if network.architecture.offset:
        groups.append({"params": list(network.offsets.parameters()), "lr": config.offset_learning_rate})
    return groups


def weights_digest(network: Hypernetwork) -> str:
    """A hash of the weights as they are now."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
