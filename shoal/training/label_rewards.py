"""Closed sets of labels: what each label earns, and how likely a model says it.

With all labels at hand an expected reward is a sum, `sum_l p(l) r(l)`, and no answer has to be sampled. Knows
tasks, tokens and logits, nothing of what is trained.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from shoal.inference.forward import Sequences
from shoal.models.backbone import Backbone
from shoal.tasks.answer_kinds import labels_of
from shoal.tasks.loading import Example
from shoal.tasks.rewards import Reward
from shoal.training.batches import Corpus, TokenisedExample


class RewardedLabel(NamedTuple):
    """A label as the answer to an example: token ids, with the end-of-turn token, and reward."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    reward: float


class LabelRewards:
    """The rewards of every label on the examples of a corpus."""

    def __init__(self, backbone: Backbone, corpus: Corpus, reward: Reward) -> None:
        """Tokenise a task's labels when they are first asked for."""
        self._backbone = backbone
        self._corpus = corpus
        self._reward = reward
        self._labels: dict[int, dict[str, tuple[int, ...]]] = {}

    def answers(self, example: TokenisedExample) -> list[RewardedLabel]:
        """Every label of the example's task.

        Raises:
            UsageError: the task has no closed set of labels.
        """
        if example.task not in self._labels:
            labels = labels_of(self._corpus.tasks[example.task])
            ids = self._backbone.encode_completions(labels)
            self._labels[example.task] = {text: tuple(i) for text, i in zip(labels, ids, strict=True)}
        source = source_of(self._corpus, example)
        own = self._labels[example.task]
        return [RewardedLabel(example.prompt, ids, self._reward(source, text)) for text, ids in own.items()]


def source_of(corpus: Corpus, example: TokenisedExample) -> Example:
    """The example as it stands in its task."""
    return corpus.tasks[example.task].train[example.place]


def log_likelihoods(logits: Float[Tensor, "answers vocabulary"], batch: Sequences) -> Float[Tensor, " batch"]:
    """Log-probability of every sample's whole answer, in nats, from the logits at its tokens."""
    losses = F.cross_entropy(logits.float(), batch.ids[batch.answer], reduction="none")
    rows = batch.answer.nonzero()[:, 0]
    return torch.zeros(len(batch.ids), device=losses.device).index_add(0, rows, -losses)
