"""How much of a model's belief is on the labels of a task at all, whichever of them is right.

Knows tasks with a closed set of labels, tokens and logits; nothing of adapters or of what else is trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from shoal.models.backbone import Backbone
from shoal.tasks.answer_kinds import has_labels, labels_of
from shoal.training.batches import Corpus, TokenisedExample

# Tokens of an answer so far -> those that may come next.
Continuations = dict[tuple[int, ...], tuple[int, ...]]


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
        allowed: list[Sequence[int]] = []  # at each answer token: those that go on with some label
        for example in examples:
            tree = self._continuations.get(example.task)
            ends = range(len(example.completion))
            allowed += [tree[example.completion[:i]] if tree else () for i in ends]
        places = [place for place, tokens in enumerate(allowed) if tokens]
        if not places:
            return logits.new_zeros((), dtype=torch.float32)
        ids = pad_sequence([torch.tensor(allowed[place]) for place in places], True, -1).to(logits.device)
        rows = logits[places].float()
        known = rows.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf)
        return (rows.logsumexp(1) - known.logsumexp(1)).mean()


def continuations(answers: Sequence[Sequence[int]]) -> Continuations:
    """What may follow each beginning of some answers."""
    follow: dict[tuple[int, ...], set[int]] = {}
    for ids in answers:
        for i, token in enumerate(ids):
            follow.setdefault(tuple(ids[:i]), set()).add(token)
    return {begun: tuple(sorted(tokens)) for begun, tokens in follow.items()}
