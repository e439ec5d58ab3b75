"""How much of a model's belief is on the labels of a task at all, whichever of them is right.

Knows tasks with a closed set of labels, tokens and logits; nothing of adapters or of what else is trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.models.backbone import Backbone
from shoal.training.batches import Corpus, TokenisedExample
from shoal.training.label_rewards import has_labels, labels_of

Continuations = dict[
    tuple[int, ...], tuple[int, ...]
]  # tokens of an answer so far -> those that may come next


class LabelMass:
    """The labels of a corpus's tasks as trees of tokens."""

    def __init__(self, backbone: Backbone, corpus: Corpus) -> None:
        """Tokenise the labels of all tasks that have a closed set of them."""
        self._continuations: dict[int, Continuations] = {}
        for number, task in enumerate(corpus.tasks):
            if has_labels(task):
                self._continuations[number] = continuations(backbone.encode_completions(labels_of(task)))

    def missing(
        self, logits: Float[Tensor, "answers vocabulary"], examples: Sequence[TokenisedExample]
    ) -> Float[Tensor, ""]:
        """-log of the probability of going on with some label, a mean over the answer tokens of label tasks.

        The first token needs no right answer; a later one follows those of the right label. Where only one
        label is left this is the cross-entropy. Zero for a batch without label tasks.

        Args:
            logits: at the answer tokens, in the order of the examples.
            examples: that they are of.
        """
        losses, place = [], 0
        for example in examples:
            tree = self._continuations.get(example.task, {})
            for i in range(len(example.completion) if tree else 0):
                row = logits[place + i].float()
                allowed = torch.tensor(tree[example.completion[:i]], device=row.device)
                losses.append(row.logsumexp(0) - row[allowed].logsumexp(0))
            place += len(example.completion)
        return torch.stack(losses).mean() if losses else logits.new_zeros((), dtype=torch.float32)


def continuations(answers: Sequence[Sequence[int]]) -> Continuations:
    """What may follow each beginning of some answers."""
    follow: dict[tuple[int, ...], set[int]] = {}
    for ids in answers:
        for i, token in enumerate(ids):
            follow.setdefault(tuple(ids[:i]), set()).add(token)
    return {begun: tuple(sorted(tokens)) for begun, tokens in follow.items()}
