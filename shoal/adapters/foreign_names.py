"""Names of tensors in adapters from elsewhere: without what wrappers add, the rest is found in the base.

Trainers compile, distribute and wrap models, and each leaves a part in every name. What is left over is named
by its cause, since "another architecture" is seldom it. Knows names, no tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# Parts that wrappers add anywhere: torch.compile, DistributedDataParallel, FSDP, checkpointing, PEFT, Fabric,
# and models with a value head.
_WRAPPERS = frozenset(
    {
        "_orig_mod",
        "module",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "base_layer",
        "original_module",
        "_forward_module",
        "pretrained_model",
    }
)
# Parts that a model with or without a head, or with eyes and ears, has before its layers.
_ROOTS = frozenset(
    {"base_model", "model", "language_model", "transformer", "text_model", "llm", "thinker", "backbone"}
)
_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<letter>[AB])(?:\.(?P<adapter>[^.]+))??(?:\.weight)?"
)
_RENAMED = {"block_sparse_moe": "mlp"}  # by transformers 5
_HEADS = ("lm_head", "embed_out", "output_layer")
_EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings")


@dataclass(frozen=True)
class FactorName:
    """The name of a factor.

    Attributes:
        module: that it adapts, as PEFT calls it, without wrappers.
        letter: A or B.
        adapter: name of the adapter among several, empty in a file of one.
        embedding: it is of an embedding, whose factors are the other way round.
        depth: wrappers around the one that it is in, where a module has one for each of its parameters.
    """

    module: str
    letter: str
    adapter: str
    embedding: bool
    depth: int


def factor_name(key: str) -> FactorName | None:
    """A tensor's name as that of a factor; None where it is none."""
    found = _FACTOR.fullmatch(key) if len(key) <= 1000 else None
    if found is None:
        return None
    parts = found["module"].split(".")
    depth = next((count for count, part in enumerate(reversed(parts)) if part != "base_layer"), len(parts))
    module = plain_module(found["module"])
    return FactorName(module, found["letter"], found["adapter"] or "", bool(found["embedding"]), depth)


def plain_module(name: str) -> str:
    """The name of a module in the base model, without what wrappers have added."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    if parts[:2] == ["base_model", "model"]:
        parts = parts[2:]
    return ".".join(parts)


def rests(known: Iterable[str]) -> dict[tuple[str, ...], str]:
    """Names of a base model's modules and parameters by their parts from the layers on.

    A router was a module before it was a parameter, `weight`, so its name without that is known too; and a
    linear map may be named by its weight.
    """
    return {
        _rest(form): name for name in known for form in (name, name.removesuffix(".weight"), f"{name}.weight")
    }


def module_in(name: str, known: Mapping[tuple[str, ...], str]) -> str | None:
    """The module of a base model (see `rests`) that a name means, whatever is before the layers, or None."""
    return known.get(_rest(name))


def cause(name: str) -> str:
    """Why a base model has no module of this name among those that can be adapted, in a few words."""
    parts = name.split(".")
    if any(part in _HEADS for part in parts):
        return "its output layer has another name"
    if any(part in _EMBEDDINGS for part in parts):
        return "its embedding has another name"
    if any("experts" in part for part in parts):
        return "it has no such experts; use the mixture-of-experts model that the adapter was made for"
    if not any(part.isdigit() for part in parts):
        return "only linear maps in the layers, the embedding of tokens and the output layer are adapted"
    return "it is of another architecture, or has a prefix that is not known"


def _rest(name: str) -> tuple[str, ...]:
    """The parts after those that stand before the layers, as they are called now."""
    parts = [_RENAMED.get(part, part) for part in name.split(".")]
    while parts and parts[0] in _ROOTS:
        parts = parts[1:]
    return tuple(parts)
