"""Scoring text that is given, under any adapters: the loss of a reference, and every token of a prompt.

Knows nothing of tasks or reports.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from shoal.adapters.base import Adapter
from shoal.adapters.batched import RowAdapters
from shoal.adapters.decomposition import Decompositions, ModelBasis
from shoal.adapters.kinds import attach_adapter
from shoal.inference.decoding import Rows
from shoal.inference.forward import answer_losses, pad_sequences
from shoal.inference.generate import check_adapters, check_lengths
from shoal.inference.sampling import Scores, not_finite, token_scores
from shoal.models.backbone import Backbone


@torch.no_grad()
def reference_losses(
    backbone: Backbone,
    requests: Sequence[str],
    references: Sequence[str],
    adapters: Adapter | Sequence[Adapter | None] | None = None,
    *,
    basis: Decompositions | None = None,
    closed: bool = True,
    batch_size: int = 32,
) -> list[float]:
    """Mean cross-entropy of each reference after its request, in nats per token.

    The end-of-turn token is one of them where `closed`. Adapters, basis and errors: see `generate_greedy`.
    """
    check_adapters(adapters, len(requests))
    prompts, completions = backbone.encode_prompts(requests), backbone.encode_completions(references)
    completions = completions if closed else [ids[:-1] for ids in completions]
    pairs = list(zip(prompts, completions, strict=True))
    check_lengths(backbone, prompts, [len(c) for c in completions])
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    own_basis = ModelBasis(backbone.model, basis)
    losses = [0.0] * len(pairs)
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        batch = pad_sequences([pairs[i] for i in rows], backbone.end_of_turn, backbone.device)
        attached = (
            RowAdapters(backbone.model, own_basis, [adapters[i] for i in rows]).attached()
            if isinstance(adapters, Sequence)
            else attach_adapter(backbone.model, adapters, own_basis)
        )
        with attached:
            for i, loss in zip(rows, answer_losses(backbone, batch).tolist(), strict=True):
                losses[i] = loss
    if not all(map(math.isfinite, losses)):
        raise not_finite(backbone.dtype)
    return losses


def prompt_scores(
    backbone: Backbone,
    prompt: Sequence[int],
    top: int,
    adapter: Adapter | None = None,
    *,
    basis: Decompositions | None = None,
    columns: int = 128,
) -> Iterator[list[Scores]]:
    """Scores of every token of a prompt after the first, with so many of the likeliest in its place.

    In the order of the tokens, in pieces of one forward pass over `columns` of them each; between them others
    may use the model.

    Raises:
        ShoalError: the logits are not finite.
    """
    rows = Rows(backbone, [prompt], [adapter], basis=basis)
    while rows.unread:
        begin = rows.cache.end + 1
        logits = rows.read_whole(min(columns, rows.unread))[0]
        if not bool(logits.amax(-1).isfinite().all()):
            raise not_finite(logits.dtype)
        nexts = prompt[begin : begin + logits.shape[0]]
        if nexts:
            yield token_scores(logits[: len(nexts)], nexts, [top] * len(nexts))
