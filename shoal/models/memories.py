"""The memory of a model's layers: keys and values of every token, running states, or both; and its dry run.

Rows of a batch are continued from what the layers remember, beside longer rows, with prompts read in pieces.
Not every architecture can do that with the caches of `transformers`: the dry run compares it with a plain
pass, so that no model answers from a memory that it lacks. Knows nothing of adapters or requests.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, cache_utils

from shoal.errors import ShoalError, reason

ARGUMENTS = ("cache", "past_key_values")  # transformers 5.24 renamed it
# Kinds of layers in a configuration whose memory is keys and values alone, under older names too.
KEY_VALUE_LAYERS = frozenset(
    {"full_attention", "sliding_attention", "chunked_attention", "attention", "dense", "sparse"}
)
SMALL = 2**24  # parameters of a model that is copied in float32 for its dry run
LONG, SHORT = 10, 4  # tokens of the two rows of a dry run


@dataclass(frozen=True)
class LayerMemory:
    """What a layer remembers of the tokens before.

    Attributes:
        keys: keys and values of each of them.
        states: how many running states, which no token has for itself.
    """

    keys: bool = True
    states: int = 0


# Layers of transformers' own cache -> (keys and values, running states).
_LAYERS = {
    "DynamicLayer": (True, False),
    "DynamicSlidingWindowLayer": (True, False),
    "LinearAttentionLayer": (False, True),
    "LinearAttentionAndFullAttentionLayer": (True, True),
    "LinearAttentionAndSlidingWindowAttentionLayer": (True, True),
    "DummyLayer": (False, False),
}


def cache_argument(model: nn.Module) -> str | None:
    """The name by which a model takes its cache; None where it takes none of transformers' form."""
    known = inspect.signature(model.forward).parameters
    return next((name for name in ARGUMENTS if name in known), None)


def layer_memories(config: PretrainedConfig, layers: int) -> tuple[LayerMemory, ...]:
    """The memory of every layer.

    Raises:
        ShoalError: a layer has one that is not known.
    """
    text: Any = config.get_text_config(decoder=True)
    stated = getattr(text, "layer_types", None)
    if KEY_VALUE_LAYERS.issuperset(stated or ()) and not getattr(text, "kv_sharing_modes", None):
        return (LayerMemory(),) * layers
    try:
        own = cache_utils.DynamicCache(config=config).layers
    except (KeyError, TypeError, ValueError, AttributeError):
        own = []
    unknown = {type(layer).__name__ for layer in own} - _LAYERS.keys()
    if unknown or not own:
        what = ", ".join(sorted(unknown or set(map(str, stated or ()))))
        raise ShoalError(f"its layers keep more than keys and values ({what})")
    kinds = [(*_LAYERS[type(layer).__name__], getattr(layer, "number_of_states", 1)) for layer in own]
    known = [LayerMemory(keys, int(count) if states else 0) for keys, states, count in kinds]
    return (*known, *[LayerMemory()] * (layers - len(known)))


@torch.no_grad()
def dry_run(model: PreTrainedModel, memories: Sequence[LayerMemory]) -> bool:
    """See that a model continues a row, alone and beside one padded on the left, as in one plain pass.

    Returns:
        True where prompts may be read in pieces; else they must be read in one.

    Raises:
        ShoalError: it does not, and its answers would be wrong.
    """
    if _is_usual(model, memories):
        return True
    config: Any = model.config
    vocabulary = config.get_text_config().vocab_size
    long = (torch.arange(LONG, device=model.device) * 7 + 3) % vocabulary
    short = (torch.arange(SHORT, device=model.device) * 5 + 2) % vocabulary
    try:
        probe = _precise(model)
        plain = torch.stack([_plain(probe, ids) for ids in (short, long)])
        last = torch.stack([_plain(probe, ids[-1:]) for ids in (short, long)])
        if not bool(plain.isfinite().all()):
            return True  # said where logits are used
        padding = long[:1].expand(LONG - SHORT)
        rows = torch.stack([torch.cat([padding, short]), long])
        for pieces in ((LONG - SHORT - 1, SHORT, 1), (LONG - 1, 1)):
            together = _continued(probe, rows, pieces, memories, padding=LONG - SHORT)
            alone = _continued(probe, rows[1:], pieces, memories)
            error = (torch.cat([together, alone]) - plain[[0, 1, 1]]).abs().amax(-1)
            limit = _rounding(plain, last, exact=probe.dtype == torch.float32)[[0, 1, 1]]
            if bool((error <= limit).all()):
                return len(pieces) > 2
    except Exception as error:  # a foreign architecture: it fails wherever its own cache is asked for
        raise ShoalError(f"two tokens after each other cannot be computed ({reason(error, 150)})") from error
    raise ShoalError("its layers lose what they read before (they keep more than keys and values)")


def _is_usual(model: PreTrainedModel, memories: Sequence[LayerMemory]) -> bool:
    """True for a model of transformers' own with keys and values alone, which needs no dry run."""
    own = type(model).__module__.startswith("transformers.models.")
    return own and not getattr(model, "_is_stateful", False) and set(memories) == {LayerMemory()}


def _precise(model: PreTrainedModel) -> PreTrainedModel:
    """A small model in float32, since rounding hides what random weights do; any other as it is."""
    narrow = model.dtype in (torch.bfloat16, torch.float16)
    if (
        narrow
        and not hasattr(model.config, "quantization_config")
        and sum(weight.numel() for weight in model.parameters()) < SMALL
    ):
        return deepcopy(model).float()
    return model


def _plain(model: PreTrainedModel, ids: Int[Tensor, " tokens"]) -> Float[Tensor, " vocabulary"]:
    logits: Tensor = model(input_ids=ids[None], use_cache=False).logits
    return logits[0, -1].float()


def _continued(
    model: PreTrainedModel,
    rows: Int[Tensor, "rows tokens"],
    pieces: Sequence[int],
    memories: Sequence[LayerMemory],
    *,
    padding: int = 0,
) -> Float[Tensor, "rows vocabulary"]:
    """Logits after the last column, read in these pieces; the first row has so many columns of padding."""
    argument, cache = cache_argument(model), _cache(memories)
    assert argument is not None
    mask = torch.ones_like(rows)
    mask[0, :padding] = 0
    places = (mask.cumsum(1) - 1).clamp(min=0)
    end = 0
    for columns in pieces:
        begin, end = end, end + columns
        logits: Tensor = model(
            input_ids=rows[:, begin:end],
            attention_mask=mask[:, :end] if padding else None,
            position_ids=places[:, begin:end],
            use_cache=True,
            **{argument: cache},
        ).logits
    return logits[:, -1].float()


def _cache(memories: Sequence[LayerMemory]) -> cache_utils.Cache:
    """A cache of transformers' own that keeps all columns, as `shoal.inference.kv_cache` does."""
    names = {(keys, states): name for name, (keys, states) in reversed(_LAYERS.items())}
    layers = []
    for memory in memories:
        kind: Any = getattr(cache_utils, names[memory.keys, memory.states > 0])
        layers.append(kind(number_of_states=memory.states) if memory.states else kind())
    return cache_utils.Cache(layers=layers)


def _rounding(plain: Tensor, last: Tensor, *, exact: bool) -> Float[Tensor, " 2"]:
    """The error that rounding may cause: small beside the logits, and what earlier tokens change in them."""
    relative, absolute = (0.02, 1e-5) if exact else (0.3, 0.02)
    size = (plain - plain.mean(-1, keepdim=True)).abs().amax(-1)
    return relative * (plain - last).abs().amax(-1) + absolute * size
