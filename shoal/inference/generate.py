"""Batched generation, greedy or sampled; a batch may share one adapter or give every request its own.

The sampling and penalties of a model's own generation settings are left out. Answers that have ended leave
the batch, with their adapters. For requests that arrive at any time see `shoal.inference.engine`. Knows
prompts and adapters, nothing of tasks or scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shoal.adapters.base import Adapter
from shoal.adapters.decomposition import Decompositions, ModelBasis
from shoal.adapters.kinds import attach_adapter
from shoal.adapters.svf import ExpertVector
from shoal.errors import UsageError
from shoal.inference.decoding import Rows
from shoal.inference.grammar import Grammar, GrammarState, mask_logits
from shoal.inference.sampling import GREEDY_BELOW, not_finite
from shoal.models.backbone import Backbone


@torch.no_grad()
def generate_greedy(
    backbone: Backbone,
    requests: Sequence[str],
    adapters: Adapter | Sequence[Adapter | None] | None = None,
    *,
    basis: Decompositions | None = None,
    grammars: Grammar | Sequence[Grammar | None] | None = None,
    max_new_tokens: int = 64,
    batch_size: int = 32,
) -> list[str]:
    """The most likely answer to every request, token by token.

    Args:
        backbone: the model, with whatever is attached to it.
        requests: inputs; the prompt format is the backbone's own.
        adapters: one for all requests, one for each, or none.
        basis: decompositions that experts scale.
        grammars: that hold answers to a format, from a `GrammarCompiler`: one for all, one for each, or none.
            An answer that reaches `max_new_tokens` is only the beginning of one that fits.
        max_new_tokens: limit of an answer, in tokens.
        batch_size: requests that run together; they are grouped by length.

    Returns:
        Answers in the order of the requests, without special tokens.

    Raises:
        UsageError: as many adapters or grammars as requests are not given, a limit is below 1, a request is
            too long for the model, an adapter does not fit it, or a grammar becomes too dear.
        ShoalError: the model's logits are not finite.
    """
    if isinstance(requests, str) or max_new_tokens < 1 or batch_size < 1:
        raise UsageError(
            f"requests must be a list (got {type(requests).__name__}), max_new_tokens {max_new_tokens} and "
            f"batch_size {batch_size} at least 1; correct what is not"
        )
    check_adapters(adapters, len(requests))
    if isinstance(grammars, Sequence) and len(grammars) != len(requests):
        raise UsageError(
            f"got {len(grammars)} grammars for {len(requests)} requests; give one for all or one each"
        )
    prompts = backbone.encode_prompts(requests)
    check_lengths(backbone, prompts, [max_new_tokens] * len(prompts))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    own_basis = ModelBasis(backbone.model, basis)
    answers = [""] * len(prompts)
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        own = [adapters[i] for i in rows] if isinstance(adapters, Sequence) else adapters
        texts = [prompts[i] for i in rows]
        held = [grammars[i] for i in rows] if isinstance(grammars, Sequence) else [grammars] * len(rows)
        states = [grammar.begin() if grammar else None for grammar in held]
        continued = _continue(backbone, texts, own, max_new_tokens, _most_likely, own_basis, states)
        for i, ids, grammar in zip(rows, continued, held, strict=True):
            answers[i] = backbone.decode(ids, strip=grammar is None)
    return answers


@torch.no_grad()
def sample_tokens(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    *,
    generator: torch.Generator,
    temperature: float = 1.0,
    max_new_tokens: int = 64,
) -> list[list[int]]:
    """One random continuation of every prompt, as one batch, from the model's own distribution.

    Args:
        backbone: the model, with whatever is attached to it.
        prompts: token ids.
        generator: on the CPU; its state decides the answers.
        temperature: divides the logits.
        max_new_tokens: limit of an answer, in tokens.

    Returns:
        Token ids as they were sampled, with the end-of-turn token where an answer ended before the limit.

    Raises:
        UsageError: no prompts, one that is too long for the model, a limit below 1, or a temperature that is
            too low to divide by.
        ShoalError: the model's logits are not finite.
    """
    if not prompts or max_new_tokens < 1 or temperature < GREEDY_BELOW:
        raise UsageError(
            f"{len(prompts)} prompts and max_new_tokens {max_new_tokens} must be at least 1, temperature "
            f"{temperature:g} at least {GREEDY_BELOW:g}; raise them"
        )
    check_lengths(backbone, prompts, [max_new_tokens] * len(prompts))

    def choose(logits: Float[Tensor, "batch vocabulary"]) -> Int[Tensor, " batch"]:
        likely = torch.softmax(logits.float() / temperature, -1).cpu()
        if not bool(likely.isfinite().all()):
            raise not_finite(logits.dtype)
        return torch.multinomial(likely, 1, generator=generator)[:, 0].to(logits.device)

    return _continue(backbone, prompts, None, max_new_tokens, choose)


@torch.no_grad()
def generate_with_experts(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    basis: Decompositions,
    experts: ExpertVector,
    *,
    max_new_tokens: int = 64,
) -> list[list[int]]:
    """The most likely continuation of every prompt with an expert of its own, as one batch.

    Args:
        backbone: the model.
        prompts: token ids.
        basis: decompositions of the weights that the experts scale.
        experts: a batch of as many as there are prompts.
        max_new_tokens: limit of an answer, in tokens.

    Returns:
        Token ids, with the end-of-turn token where an answer ended before the limit.

    Raises:
        UsageError: another number of experts than prompts, one that does not fit, a prompt that is too long
            for the model, or a limit below 1.
    """
    if not prompts or experts.batch != len(prompts) or max_new_tokens < 1:
        raise UsageError(
            f"{len(prompts)} prompts and {experts.batch} experts must be as many, and max_new_tokens "
            f"{max_new_tokens} at least 1; correct what is not"
        )
    check_lengths(backbone, prompts, [max_new_tokens] * len(prompts))
    own = [experts.row(row) for row in range(len(prompts))]
    return _continue(backbone, prompts, own, max_new_tokens, _most_likely, ModelBasis(backbone.model, basis))


def check_adapters(adapters: Adapter | Sequence[Adapter | None] | None, requests: int) -> None:
    """Raise UsageError unless there are no adapters, one for all, or one for each of so many requests."""
    if isinstance(adapters, Sequence) and len(adapters) != requests:
        raise UsageError(
            f"got {len(adapters)} adapters for {requests} requests; give one for all or one each"
        )


def _most_likely(logits: Float[Tensor, "batch vocabulary"]) -> Int[Tensor, " batch"]:
    best, tokens = logits.max(-1)
    if not bool(best.isfinite().all()):
        raise not_finite(logits.dtype)
    return tokens


def _continue(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    adapters: Adapter | Sequence[Adapter | None] | None,
    limit: int,
    choose: Callable[[Float[Tensor, "batch vocabulary"]], Int[Tensor, " batch"]],
    basis: ModelBasis | None = None,
    states: Sequence[GrammarState | None] | None = None,
) -> list[list[int]]:
    """Token ids after every prompt, up to and with the end-of-turn token, or to the limit."""
    own = adapters if isinstance(adapters, Sequence) else None
    shared = None if isinstance(adapters, Sequence) else adapters
    running = list(range(len(prompts)))  # rows of the batch whose answers have not ended
    answers: list[list[int]] = [[] for _ in prompts]
    states = states or [None] * len(prompts)
    with attach_adapter(backbone.model, shared, basis):
        rows = Rows(backbone, prompts, own, basis=basis)
        logits = rows.read()
        while True:
            masked = mask_logits(logits, [states[row] for row in running])
            for error in masked.errors.values():
                raise error
            tokens = choose(masked.logits).tolist()
            for row, token in zip(running, tokens, strict=True):
                answers[row].append(token)
                if (state := states[row]) is not None:
                    state.take(token)
            limit -= 1
            for place in reversed(range(len(running))):
                if tokens[place] in backbone.end_tokens:
                    rows.drop(place)
                    for listed in (running, tokens):
                        listed[place] = listed[-1]
                        listed.pop()
            if limit == 0 or not running:
                return answers
            logits = rows.step(torch.tensor(tokens))


def check_lengths(backbone: Backbone, prompts: Sequence[Sequence[int]], answers: Sequence[int]) -> None:
    """Raise UsageError if a prompt and its answer of so many tokens do not fit into the positions."""
    limit = getattr(backbone.model.config, "max_position_embeddings", None)
    for prompt, answer in zip(prompts, answers, strict=True):
        if limit is not None and len(prompt) + answer > limit:
            raise UsageError(
                f"a request of {len(prompt)} tokens and an answer of up to {answer} exceed the {limit} "
                f"positions of {backbone.shape.base_model}; shorten one of them"
            )
