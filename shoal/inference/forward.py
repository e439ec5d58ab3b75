"""Computing less of a frozen model: logits at answers only, no frozen layer twice, fewer activations kept.

Works on any family through hooks, so a model's own scaling, masks and caps stay what they are. Knows nothing
of tasks, optimisers or adapters on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache

from shoal.adapters.hooks import attach, forward_replaced
from shoal.adapters.lora import BatchedLoRA, LoRA, LoraFactors
from shoal.models.backbone import Backbone
from shoal.models.memories import ARGUMENTS, cache_argument
from shoal.models.shapes import decoder_layers


@dataclass(frozen=True)
class Sequences:
    """Prompts with their completions as one right-padded batch.

    Attributes:
        ids: token ids, (batch, length).
        real: True at tokens that are not padding.
        answer: True at tokens that the model must predict: the completion with its end-of-turn token.
    """

    ids: Int[Tensor, "batch length"]
    real: Bool[Tensor, "batch length"]
    answer: Bool[Tensor, "batch length"]

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.real.sum())


def pad_sequences(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int, device: torch.device
) -> Sequences:
    """A batch of (prompt ids, completion ids); a first token is never an answer, as nothing predicts it."""
    length = max(len(p) + len(c) for p, c in pairs)
    ids = torch.full((len(pairs), length), pad)
    real = torch.zeros(len(pairs), length, dtype=torch.bool)
    answer = torch.zeros_like(real)
    for row, (prompt, completion) in enumerate(pairs):
        end = len(prompt) + len(completion)
        ids[row, :end] = torch.tensor([*prompt, *completion])
        real[row, :end] = True
        answer[row, max(len(prompt), 1) : end] = True
    return Sequences(ids.to(device), real.to(device), answer.to(device))


def answer_losses(
    backbone: Backbone,
    batch: Sequences,
    *,
    start: int = 0,
    hidden: Float[Tensor, "batch length width"] | None = None,
    label_smoothing: float = 0.0,
    behind: Cache | None = None,
) -> Float[Tensor, " batch"]:
    """Mean cross-entropy of every sample's answer tokens, in nats per token, float32.

    Args:
        backbone: the model, with whatever is attached to it.
        batch: what to score.
        start: first layer to compute, where `hidden` is its input (see `hidden_before`).
        hidden: the frozen input of layer `start`; None computes every layer.
        label_smoothing: share of the target mass that is spread over the vocabulary.
        behind: as `answer_logits`.
    """
    logits = answer_logits(backbone, batch, start=start, hidden=hidden, behind=behind)
    return losses_of(logits, batch, label_smoothing)


def losses_of(
    logits: Float[Tensor, "answers vocabulary"], batch: Sequences, label_smoothing: float = 0.0
) -> Float[Tensor, " batch"]:
    """Mean cross-entropy of every sample's answer tokens, from the logits at them."""
    targets = batch.ids[batch.answer]
    losses = F.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=label_smoothing)
    return mean_of_answers(losses, batch)


def mean_of_answers(values: Float[Tensor, " answers"], batch: Sequences) -> Float[Tensor, " batch"]:
    """The mean over every sample's answer tokens of one value per token, in row order."""
    rows = batch.answer.nonzero()[:, 0]
    total = torch.zeros(len(batch.ids), device=values.device).index_add(0, rows, values)
    return total / batch.answer.sum(1).clamp(min=1)


def answer_logits(
    backbone: Backbone,
    batch: Sequences,
    *,
    start: int = 0,
    hidden: Tensor | None = None,
    behind: Cache | None = None,
) -> Float[Tensor, "answers vocabulary"]:
    """Logits that predict each answer token, in row order; the head runs at no other position.

    With `behind`, rows go on from what a cache has of the tokens before, as many for every row, and the last
    column, which predicts nothing, is not read. `start` and `hidden`: see `answer_losses`.
    """
    ids, real, predicting = batch.ids, batch.real, F.pad(batch.answer[:, 1:], (0, 1))
    cache: dict[str, Any] = {"use_cache": False}
    if behind is not None:
        ids, real, predicting = ids[:, :-1], real[:, :-1], predicting[:, :-1]
        cache = {"use_cache": True, cache_argument(backbone.model) or ARGUMENTS[0]: behind}
    # Without padding no mask is needed, and the attention kernels take their fast causal path.
    mask = None if bool(real.all()) else real.long()
    if mask is not None and behind is not None:
        mask = F.pad(mask, (behind.get_seq_length(), 0), value=1)
    with ExitStack() as stack:
        stack.enter_context(_head_only_at(backbone.model, predicting))
        if hidden is not None:
            stack.enter_context(_resumed_at(backbone.layers, start, hidden))
        return backbone.model(input_ids=ids, attention_mask=mask, **cache).logits


@torch.no_grad()
def hidden_before(model: nn.Module, batch: Sequences, layer: int) -> Float[Tensor, "batch length width"]:
    """Input of a decoder layer: what the frozen prefix makes of the batch, in the model's dtype."""
    caught: list[Tensor] = []

    def stop(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        caught.append(args[0] if args else kwargs["hidden_states"])
        raise _PrefixDone

    mask = None if bool(batch.real.all()) else batch.real.long()
    hook = decoder_layers(model)[1][layer].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(input_ids=batch.ids, attention_mask=mask, use_cache=False)
    except _PrefixDone:
        pass
    finally:
        hook.remove()
    return caught[0]


@contextmanager
def adapted(backbone: Backbone, lora: LoRA | BatchedLoRA, *, recompute: bool = False) -> Iterator[None]:
    """Attach an adapter for a forward pass.

    Args:
        backbone: the model.
        lora: the adapter, or one per sample.
        recompute: keep no activation of the adapted layers, and compute them again, with this adapter, in the
            backward pass (gradient checkpointing, Chen et al., arXiv 1604.06174). That may run after this
            context has ended: then a hook would be gone, which is why each layer attaches its own part.
    """
    if not recompute:
        with attach(backbone.model, lora):
            yield
        return
    prefix = f"{backbone.layers_name}."
    parts: dict[int, dict[str, LoraFactors]] = {}
    for name, factors in lora.factors.items():
        parts.setdefault(int(name.removeprefix(prefix).split(".")[0]), {})[name] = factors
    with ExitStack() as stack:
        for index, layer in enumerate(backbone.layers):
            if index >= min(parts):
                part = replace(lora, factors=parts[index]) if index in parts else None
                run = _recomputed(layer.forward, backbone.model, part)
                stack.enter_context(forward_replaced(layer, run))
        yield


def _recomputed(
    forward: Callable[..., Tensor], model: nn.Module, lora: LoRA | BatchedLoRA | None
) -> Callable[..., Tensor]:
    def attached(*args: object, **kwargs: object) -> Tensor:
        with attach(model, lora) if lora is not None else nullcontext():
            return forward(*args, **kwargs)

    def run(*args: Any, **kwargs: Any) -> Tensor:
        # The frozen model is in evaluation mode: no dropout's random state has to be kept.
        return checkpoint(attached, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run


class _PrefixDone(Exception):
    """Leaves a forward pass at the layer where the frozen prefix ends."""


@contextmanager
def _head_only_at(model: nn.Module, positions: Bool[Tensor, "batch length"]) -> Iterator[None]:
    """Run the language-model head at the given positions only, so that logits are (positions, vocabulary)."""
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    # Adapters of the head know rows by their place, so these are kept: every row fills a block from the left.
    keep_rows = bool(head._forward_hooks)
    columns = positions.long().argsort(dim=1, descending=True, stable=True)[:, : int(positions.sum(1).max())]
    block = torch.arange(len(columns), device=columns.device)[:, None], columns

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (args[0][block if keep_rows else positions],)

    def after(module: nn.Module, args: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        return logits[positions[block]] if keep_rows else logits

    with ExitStack() as hooks:
        hooks.callback(head.register_forward_pre_hook(before).remove)
        hooks.callback(head.register_forward_hook(after).remove)
        yield


@contextmanager
def _resumed_at(layers: nn.ModuleList, start: int, hidden: Tensor) -> Iterator[None]:
    """Skip the layers before `start` and feed `hidden` to that one."""

    def fed(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]):  # type: ignore[no-untyped-def]
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    def passed_through(hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        return hidden_states

    with ExitStack() as stack:
        for layer in list(layers)[:start]:
            stack.enter_context(forward_replaced(layer, passed_through))
        hook = layers[start].register_forward_pre_hook(fed, with_kwargs=True)
        stack.callback(hook.remove)
        yield
