"""The steering margin while a hypernetwork trains: an unseen task's own description against another one's.

Knows a hypernetwork, a backbone and held-out tasks; nothing of how the network is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from shoal.adapters.lora import LoRA
from shoal.inference.forward import adapted, answer_losses, pad_sequences
from shoal.models.backbone import Backbone
from shoal.text_to_lora.hypernetwork import Hypernetwork, stack_embeddings
from shoal.training.batches import Corpus


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
        """Takes the first `size` examples of every task, and what the network reads of one description."""
        self._network = network
        self._backbone = backbone
        self._size = size
        self._corpus = corpus
        self._descriptions = stack_embeddings(descriptions).to(backbone.device)

    @torch.no_grad()
    def __call__(self) -> Mapping[str, float]:
        """`unseen_loss` in nats per token, mean over tasks, and `unseen_margin`, wrong minus right."""
        emitted = self._network(self._descriptions)
        count = len(self._corpus.tasks)
        right = sum(self._loss(task, emitted.row(task)) for task in range(count)) / count
        if count == 1:
            return {"unseen_loss": right}
        others = ((task, (task + count // 2) % count) for task in range(count))
        wrong = sum(self._loss(task, emitted.row(other)) for task, other in others) / count
        return {"unseen_loss": right, "unseen_margin": wrong - right}

    def _loss(self, task: int, adapter: LoRA) -> float:
        pairs = [(e.prompt, e.completion) for e in self._corpus.examples[task][: self._size]]
        batch = pad_sequences(pairs, self._backbone.end_of_turn, self._backbone.device)
        with adapted(self._backbone, adapter):
            return float(answer_losses(self._backbone, batch).mean())
