"""Linear maps of a model that an adapter may change: their names, sizes and how their weight is stored.

A module may be an `nn.Linear`, any quantised stand-in for one, or a `transformers` Conv1D, whose weight is
stored (in, out). Knows nothing of adapters or model families.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from shoal.errors import UsageError


@dataclass(frozen=True)
class TargetModule:
    """A linear map of the backbone that an adapter may change.

    Attributes:
        name: full module name, for example `model.layers.3.self_attn.q_proj`.
        layer: index of its decoder layer, from 0.
        type: its name within the layer, for example `self_attn.q_proj`.
        in_features: size of its input.
        out_features: size of its output.
        fan_in_fan_out: True where the weight is stored (in, out), as Conv1D does.
    """

    name: str
    layer: int
    type: str
    in_features: int
    out_features: int
    fan_in_fan_out: bool = False


def check_rank(targets: Sequence[TargetModule], rank: int) -> None:
    """Raise UsageError unless there are targets and the rank is between 1 and the smaller side of each."""
    if not targets:
        raise UsageError("an adapter needs at least one target module, got none; name some")
    smallest = min(targets, key=lambda t: min(t.in_features, t.out_features))
    limit = min(smallest.in_features, smallest.out_features)
    if not 1 <= rank <= limit:
        raise UsageError(
            f"adapter rank {rank} is outside 1..{limit} ({smallest.type} is "
            f"{smallest.out_features} x {smallest.in_features}); choose a rank in that range"
        )


def group_by_type(targets: Sequence[TargetModule]) -> list[list[TargetModule]]:
    """Targets of one type and size together; layers of an odd size are a group of their own."""
    groups: dict[tuple[str, int, int], list[TargetModule]] = {}
    for t in targets:
        groups.setdefault((t.type, t.in_features, t.out_features), []).append(t)
    return list(groups.values())


def is_conv1d(module: nn.Module) -> bool:
    """True for a `transformers` Conv1D, known by its own `nf` and `nx` sizes."""
    return hasattr(module, "nf") and hasattr(module, "nx")


def module_sizes(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) features of a linear map, None for any other module."""
    if is_conv1d(module):
        return int(module.nx), int(module.nf)  # type: ignore[arg-type]
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
    return None


def is_embedding(module: nn.Module) -> bool:
    """True for an embedding, also a quantised or scaled one."""
    return hasattr(module, "num_embeddings") and hasattr(module, "embedding_dim")


def any_sizes(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) features of a linear map, or of an embedding as that of one-hot tokens; None for others."""
    if is_embedding(module):
        return int(module.num_embeddings), int(module.embedding_dim)  # type: ignore[arg-type]
    return module_sizes(module)


def sized_module(model: nn.Module, name: str, sizes: tuple[int, int]) -> nn.Module:
    """The linear map or embedding of a name, which must have these (in, out) features.

    Raises:
        UsageError: there is none, or it has others.
    """
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise UsageError(
            f"the model has no module {name!r}; the adapter belongs to another architecture, or was named by "
            "another trainer (`shoal adapters import` reads such names)"
        ) from None
    if any_sizes(module) != sizes:
        raise UsageError(
            f"{name} is {any_sizes(module)} (in, out) but the adapter has {sizes}; use its base model"
        )
    return module
