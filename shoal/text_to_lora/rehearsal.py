"""A hypernetwork that takes new tasks while its answers to old descriptions stay, without old data.

Beside the loss of the new tasks stands the squared distance between what it emits for old descriptions now
and what it emitted at the start. Knows networks and descriptions; nothing of old tasks' examples.

Source: von Oswald et al., "Continual learning with hypernetworks", arXiv 1906.00695, equation 2.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import Tensor

from shoal.config import HypernetworkTrainingConfig
from shoal.errors import UsageError
from shoal.tasks.records import Task
from shoal.tasks.tables import read_text
from shoal.text_to_lora.checkpoint import HypernetworkCheckpoint
from shoal.text_to_lora.descriptions import Descriptions
from shoal.text_to_lora.encoders.sentence import check_description
from shoal.text_to_lora.hypernetwork import Hypernetwork, stack_embeddings
from shoal.training.loop import Objective, StepLoss

MEASURED = 32  # old descriptions whose adapters tell the scale of the distance


class RehearsingObjective:
    """The loss of new tasks, and `rehearse` times the distance on old descriptions, drawn at every step."""

    def __init__(
        self,
        network: Hypernetwork,
        learning: Objective,
        old: Descriptions,
        config: HypernetworkTrainingConfig,
    ) -> None:
        """Keep a copy of the network as it is.

        Args:
            network: that is trained.
            learning: the objective of the new tasks.
            old: descriptions of old tasks, which are drawn task by task.
            config: weight and number of what is rehearsed.

        Raises:
            UsageError: the network emits zero for them.
        """
        self.module = network
        self._learning, self._old, self._config = learning, old, config
        self._device = next(self.module.parameters()).device
        self._before = deepcopy(self.module).eval().requires_grad_(False)
        read = self._drawn(MEASURED, random.Random(config.seed))
        self._scale = float(self._before(read).squared_norm()) / len(read)
        if not self._scale > 0:
            raise UsageError(
                "the network at the start emits zero for old descriptions: there is nothing to keep; start "
                "from a trained one"
            )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Those of the new tasks' objective."""
        return self._learning.parameter_groups()

    def loss(self, forward_pass: int) -> StepLoss:
        """The loss of new tasks plus the weighted distance, which is relative to the size of old adapters."""
        taken = self._learning.loss(forward_pass)
        chance = random.Random(f"{self._config.seed}/{forward_pass}/rehearsed")
        forgotten = self.distance(self._drawn(self._config.rehearsed, chance))
        metrics = {"answer_loss": float(taken.loss.detach()), "forgotten": float(forgotten.detach())}
        return StepLoss(
            taken.loss + self._config.rehearse * forgotten, taken.tokens, {**metrics, **taken.metrics}
        )

    def distance(self, read: Tensor) -> Tensor:
        """Mean over descriptions of ||now - at the start||^2 / mean ||at the start||^2, without dropout."""
        training = self.module.training
        self.module.eval()
        try:
            now, before = self.module(read), self._before(read)
        finally:
            self.module.train(training)
        return (now - before).squared_norm() / (len(read) * self._scale)

    def fingerprint(self) -> str:
        """Names what the new tasks' objective does, and the old descriptions."""
        return f"{self._learning.fingerprint()} rehearsing {self._old.fingerprint()}"

    def _drawn(self, count: int, chance: random.Random) -> Tensor:
        tasks = chance.sample(range(len(self._old)), min(count, len(self._old)))
        texts = [self._old.choose(task, chance) for task in tasks]
        return stack_embeddings(self._old.read(texts)).to(self._device)


def old_descriptions(start: object, new: Sequence[Task], file: Path | None = None) -> list[tuple[str, ...]]:
    """The descriptions that a network rehearses, by task.

    Args:
        start: the network's checkpoint.
        new: tasks that it is to learn.
        file: text with a description a line; None are those of tasks made in code that the network knows,
            which come with the package.

    Raises:
        UsageError: there are none, or a line is no description.
    """
    from shoal.tasks.procedural.catalogue import procedural_tasks

    old: list[tuple[str, ...]]
    if file is not None:
        old = [(check_description(line),) for line in read_text(file).split("\n") if line.strip()]
        lacking = f"{file} holds no description"
    else:
        known = start.known_tasks if isinstance(start, HypernetworkCheckpoint) else None
        names = set(known.names if known else ())
        wanted = names - {task.name for task in new}
        old = [task.descriptions for task in procedural_tasks(size=8, test_size=0) if task.name in wanted]
        lacking = f"of the {len(names)} tasks that the network knows none is made in code"
    if not old:
        raise UsageError(f"rehearse: {lacking}; give --old-descriptions FILE, with one a line")
    return old
