"""Training a hypernetwork to reproduce trained adapters (reconstruction).

Source: Charakorn et al., arXiv 2506.06105, section 3.1.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from shoal.adapters.lora import BatchedLoRA, LoRA
from shoal.adapters.merging import stack
from shoal.config import HypernetworkTrainingConfig
from shoal.errors import UsageError
from shoal.models.backbone import Backbone
from shoal.tasks.loading import Task, check_no_leakage
from shoal.text_to_lora.descriptions import Descriptions
from shoal.text_to_lora.encoders.reader import description_reader
from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.text_to_lora.hypernetwork import Hypernetwork, stack_embeddings
from shoal.text_to_lora.train import parameter_groups, weights_digest
from shoal.training.loop import RunSummary, StepLoss, run

log = logging.getLogger(__name__)


def train_reconstruction(
    network: Hypernetwork,
    encoder: TaskEncoder,
    tasks: Sequence[Task],
    adapters: Sequence[LoRA],
    folder: Path,
    config: HypernetworkTrainingConfig,
    *,
    backbone: Backbone | None = None,
    held_out: Sequence[Task] = (),
    show_progress: bool = True,
) -> RunSummary:
    """Train a hypernetwork to reproduce one trained adapter per task, by the distance of their delta weights.

    Args:
        network: trained in place.
        encoder: reads the descriptions.
        tasks: whose descriptions to take.
        adapters: one per task, of the network's targets.
        folder: of the run; training resumes from a checkpoint in it.
        config: optimisation settings; a batch is `batch_size` tasks.
        backbone: the frozen model, for a network that reads its states.
        held_out: tasks that must share no example with `tasks`.
        show_progress: draw a progress bar.

    Raises:
        LeakageError: a held-out task, or a `test` example, is among the training examples.
        UsageError: not one adapter per task, adapters of other modules or all zero, a network that reads
            states without a backbone, or a folder of another run.
        Interrupted: Ctrl-C, after the checkpoint is written.
    """
    sizes = {t.name: (t.in_features, t.out_features) for t in network.targets}
    given = [{n: (f.a.shape[-1], f.b.shape[-2]) for n, f in lora.factors.items()} for lora in adapters]
    if not tasks or len(tasks) != len(adapters) or any(own != sizes for own in given):
        raise UsageError(
            f"reconstruction needs one adapter per task over the network's {len(sizes)} modules, got "
            f"{len(adapters)} adapters for {len(tasks)} tasks; train them on the same base model and targets"
        )
    check_no_leakage(tasks, held_out)
    log.info("preparing the descriptions of %d tasks", len(tasks))
    descriptions = Descriptions(description_reader(network, encoder, backbone), tasks)
    objective = ReconstructionObjective(network, descriptions, adapters, config)
    return run(objective, config, folder, show_progress=show_progress)


class ReconstructionObjective:
    """Squared distance between emitted and trained delta weights, relative to the trained ones' size."""

    def __init__(
        self,
        network: Hypernetwork,
        descriptions: Descriptions,
        adapters: Sequence[LoRA],
        config: HypernetworkTrainingConfig,
    ) -> None:
        """`descriptions` and `adapters` go task by task.

        Raises:
            UsageError: every adapter is zero.
        """
        device = next(network.parameters()).device
        self.module = network
        self._config = config
        self._start = weights_digest(network)
        self._descriptions = descriptions
        self._device = device
        trained = stack(adapters)
        factors = {n: f.to(device, torch.float32) for n, f in trained.factors.items()}
        self._trained = BatchedLoRA(factors, trained.alpha)
        self._scale = float(self._trained.squared_norm()) / len(adapters)
        if not self._scale > 0:
            raise UsageError(f"all {len(adapters)} adapters are zero; train them before they are reproduced")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The network at its own learning rate, the shared adapter at another."""
        return parameter_groups(self.module, self._config)

    def loss(self, forward_pass: int) -> StepLoss:
        """Mean over tasks of ||emitted - trained||^2 / mean ||trained||^2; no delta weight is formed."""
        chance = random.Random(f"{self._config.seed}/{forward_pass}/tasks")
        count = len(self._descriptions)
        tasks = chance.sample(range(count), min(self._config.batch_size, count))
        chosen = [self._descriptions.choose(task, chance) for task in tasks]
        rows = stack_embeddings(self._descriptions.read(chosen)).to(self._device)
        emitted = self.module(rows)
        trained = self._trained.select(torch.tensor(tasks, device=rows.device))
        return StepLoss((emitted - trained).squared_norm() / (len(tasks) * self._scale), 0)

    def fingerprint(self) -> str:
        """Names architecture, descriptions, adapters and the weights at the start."""
        digest = hashlib.sha256(repr((self.module.architecture, self.module.targets, self._start)).encode())
        digest.update(self._descriptions.fingerprint().encode())
        for tensor in (t for f in self._trained.factors.values() for t in f):
            digest.update(tensor.cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()
