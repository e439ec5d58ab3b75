"""Batched generation, greedy or sampled; a batch may share one adapter or give every request its own.

The sampling and penalties of a model's own generation settings are left out. Answers that have ended leave
the batch, with their adapters. Knows prompts and adapters, nothing of tasks or scores.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shoal.attachment import attach
from shoal.backbone import Backbone
from shoal.errors import ShoalError, UsageError
from shoal.expert_attachment import attach_expert
from shoal.lora import BatchedLoRA, LoRA, stack
from shoal.svf import Decompositions, ExpertVector


@torch.no_grad()
def generate_greedy(
    backbone: Backbone,
    requests: Sequence[str],
    adapters: LoRA | Sequence[LoRA] | None = None,
    *,
    max_new_tokens: int = 64,
    batch_size: int = 32,
) -> list[str]:
    """The most likely answer to every request, token by token.

    Args:
        backbone: the model, with whatever is attached to it.
        requests: inputs; the prompt format is the backbone's own.
        adapters: one for all requests, one each, or none; those of one batch adapt the same modules.
        max_new_tokens: limit of an answer, in tokens.
        batch_size: requests that run together; they are grouped by length.

    Returns:
        Answers in the order of the requests, without special tokens.

    Raises:
        UsageError: as many adapters as requests are not given, a limit is below 1, a request is too long for
            the model, or an adapter does not fit it.
    """
    if isinstance(requests, str) or max_new_tokens < 1 or batch_size < 1:
        raise UsageError(
            f"requests must be a list (got {type(requests).__name__}), max_new_tokens {max_new_tokens} and "
            f"batch_size {batch_size} at least 1; correct what is not"
        )
    check_adapters(adapters, len(requests))
    prompts = backbone.encode_prompts(requests)
    _check_lengths(backbone, prompts, max_new_tokens)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [""] * len(prompts)
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        batch = adapters_of(backbone, adapters, rows)
        continued = _continue(backbone, [prompts[i] for i in rows], batch, max_new_tokens, _most_likely)
        for i, ids in zip(rows, continued, strict=True):
            answers[i] = backbone.decode(ids)
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
        UsageError: no prompts, one that is too long for the model, or a limit below 1.
        ShoalError: the model's logits are not finite.
    """
    if not prompts or max_new_tokens < 1:
        raise UsageError(
            f"{len(prompts)} prompts and max_new_tokens {max_new_tokens} must be at least 1; raise them"
        )
    _check_lengths(backbone, prompts, max_new_tokens)

    def choose(logits: Float[Tensor, "batch vocabulary"]) -> Int[Tensor, " batch"]:
        likely = torch.softmax(logits.float() / temperature, -1).cpu()
        if not bool(likely.isfinite().all()):
            raise ShoalError(
                "the model's logits are not finite; lower the learning rate, or check its weights"
            )
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
    _check_lengths(backbone, prompts, max_new_tokens)
    return _continue(backbone, prompts, _Experts(basis, experts), max_new_tokens, _most_likely)


def check_adapters(adapters: LoRA | Sequence[LoRA] | None, requests: int) -> None:
    """Raise UsageError unless there are no adapters, one for all, or one for each of so many requests."""
    if adapters is not None and not isinstance(adapters, LoRA) and len(adapters) != requests:
        raise UsageError(
            f"got {len(adapters)} adapters for {requests} requests; give one for all or one each"
        )


def adapters_of(
    backbone: Backbone, adapters: LoRA | Sequence[LoRA] | None, rows: Sequence[int]
) -> LoRA | BatchedLoRA | None:
    """What to attach for a batch of the given requests, in the backbone's dtype and on its device."""
    if adapters is None:
        return None
    if isinstance(adapters, LoRA):
        return adapters.to(backbone.device, backbone.dtype)
    return stack([adapters[row].to(backbone.device, backbone.dtype) for row in rows])


def attached(
    backbone: Backbone, lora: LoRA | BatchedLoRA | _Experts | None
) -> AbstractContextManager[object]:
    """The backbone with an adapter attached, or as it is."""
    if isinstance(lora, _Experts):
        return attach_expert(backbone.model, lora.basis, lora.experts)
    return attach(backbone.model, lora) if lora is not None else nullcontext()


@dataclass(frozen=True)
class _Experts:
    """One expert a row."""

    basis: Decompositions
    experts: ExpertVector

    def select(self, rows: Int[Tensor, " kept"]) -> _Experts:
        return replace(self, experts=ExpertVector({n: z[rows] for n, z in self.experts.z.items()}))


def _most_likely(logits: Float[Tensor, "batch vocabulary"]) -> Int[Tensor, " batch"]:
    return logits.argmax(-1)


def _continue(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    adapters: LoRA | BatchedLoRA | _Experts | None,
    limit: int,
    choose: Callable[[Float[Tensor, "batch vocabulary"]], Int[Tensor, " batch"]],
) -> list[list[int]]:
    """Token ids after every prompt, up to and with the end-of-turn token, or to the limit."""
    end, device = backbone.end_of_turn, backbone.device
    ids, mask = _left_padded(prompts, end, device)
    running = torch.arange(len(prompts), device=device)  # rows of the batch whose answers have not ended
    answers: list[list[int]] = [[] for _ in prompts]
    cache: Any = None
    cache_name = _cache_name(backbone.model)
    # The head is a fifth of a small model, and only the last position's logits are needed. Contiguous, since
    # otherwise the product copies the head's weight once a sample.
    last_only = backbone.model.get_output_embeddings().register_forward_pre_hook(
        lambda module, args: (args[0][:, -1:].contiguous(),)
    )
    try:
        while True:
            with attached(backbone, adapters):
                output = backbone.model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :],
                    use_cache=True,
                    **{cache_name: cache},
                )
            cache, tokens = getattr(output, cache_name), choose(output.logits[:, -1])
            limit -= 1
            alive = tokens != end
            for row, token in zip(running.tolist(), tokens.tolist(), strict=True):
                answers[row].append(token)
            if limit == 0 or not alive.any():
                return answers
            if not alive.all():
                kept = alive.nonzero()[:, 0]
                running, tokens, mask = running[kept], tokens[kept], mask[kept]
                cache.batch_select_indices(kept)
                adapters = adapters.select(kept) if isinstance(adapters, BatchedLoRA | _Experts) else adapters
            ids = tokens[:, None]
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    finally:
        last_only.remove()


def _cache_name(model: nn.Module) -> str:
    """What the model calls its key-value cache: transformers 5.24 renamed it, in arguments and in outputs."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _left_padded(
    prompts: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"]]:
    """(token ids, mask that is 1 at real tokens), every prompt ending in the last column."""
    length = max(len(p) for p in prompts)
    ids = torch.full((len(prompts), length), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def _check_lengths(backbone: Backbone, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    longest = max((len(p) for p in prompts), default=0)
    limit = getattr(backbone.model.config, "max_position_embeddings", None)
    if limit is not None and longest + max_new_tokens > limit:
        raise UsageError(
            f"a request of {longest} tokens and an answer of up to {max_new_tokens} exceed the {limit} "
            f"positions of {backbone.shape.base_model}; shorten one of them"
        )
