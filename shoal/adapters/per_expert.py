"""Adapters that name every expert, as models had them before `transformers` 5: stacked as the model is now.

`experts.3.w1` and `experts.3.w3` (or `gate_proj` and `up_proj`) became the halves of `experts.gate_up_proj`,
and their factors one pair of twice the rank: A has both below each other, B has both on its diagonal. Knows
names and values; nothing of files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch

from shoal.adapters.foreign_names import module_in, rests
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.errors import UsageError
from shoal.models.parameters import TargetParameter
from shoal.models.shapes import BackboneShape

_EXPERT = re.compile(r"(?P<experts>.+)\.(?P<index>\d{1,6})\.(?P<map>\w+)")
# The map of one expert -> the parameter that all experts share now, and which half of it the map is.
_FUSED: dict[str, tuple[str, int]] = {
    "w1": ("gate_up_proj", 0),
    "gate_proj": ("gate_up_proj", 0),
    "w3": ("gate_up_proj", 1),
    "up_proj": ("gate_up_proj", 1),
}
_ALONE = {"w2": "down_proj"}

Halves = dict[tuple[int, int], LoraFactors]  # (expert, half) -> factors


def stack_experts(lora: LoRA, shape: BackboneShape) -> LoRA:
    """The adapter with factors of single experts stacked, where the base model has them as one parameter.

    Raises:
        UsageError: an expert is missing, or one too many.
    """
    by_name = {p.name: p for p in shape.parameters if p.sizes.experts}
    by_rest = rests(by_name)
    single: dict[str, Halves] = {}
    others: dict[str, LoraFactors] = {}
    for name, factors in lora.factors.items():
        found = _EXPERT.fullmatch(name) if by_name else None
        place = _parameter_of(found["experts"], found["map"], by_rest) if found else None
        if found is None or place is None:
            others[name] = factors
            continue
        halves = single.setdefault(place[0], {})
        if halves.setdefault((int(found["index"]), place[1]), factors) is not factors:
            raise UsageError(f"the adapter has {name[:120]} under two names; keep one of them")
    if not single:
        return lora
    width = 2 if any(_halves(name) == 2 for name in single) else 1
    stacked = {name: _stacked(by_name[name], halves, shape.base_model) for name, halves in single.items()}
    padded = {name: factors.padded(width * lora.rank) for name, factors in (others | stacked).items()}
    return replace(lora, factors=padded, alpha=width * lora.alpha)


def _parameter_of(experts: str, own: str, by_rest: Mapping[tuple[str, ...], str]) -> tuple[str, int] | None:
    """The parameter that an expert's map is part of, and which half."""
    alone = module_in(f"{experts}.{_ALONE.get(own, own)}", by_rest)
    if alone is not None:
        return alone, 0
    fused, half = _FUSED.get(own, ("", 0))
    whole = module_in(f"{experts}.{fused}", by_rest)
    return None if whole is None else (whole, half)


def _halves(name: str) -> int:
    return 2 if name.endswith(".gate_up_proj") else 1


def _stacked(parameter: TargetParameter, parts: Halves, base_model: str) -> LoraFactors:
    """Factors of all experts of a parameter; a half that no expert has is zero."""
    count, wide, out = parameter.sizes.experts, parameter.sizes.in_features, parameter.sizes.out_features
    halves = _halves(parameter.name)
    if not parameter.halves_apart and halves > 1:
        raise UsageError(
            f"the adapter has single maps of {parameter.name}, whose halves {base_model} mixes; use the "
            "model that it was made for"
        )
    for (expert, _), (a, b) in parts.items():
        if expert >= count:
            raise UsageError(
                f"the adapter has expert {expert} of {parameter.name}, {base_model} has {count}; use the "
                "model that it was made for"
            )
        if (a.shape[-1], b.shape[0]) != (wide, out // halves):
            raise UsageError(
                f"expert {expert} of the adapter's {parameter.name} is {a.shape[-1]} x {b.shape[0]} (in x "
                f"out), in {base_model} {wide} x {out // halves}; use the model that it was made for"
            )
    own, (a, b) = sorted({half for _, half in parts}), next(iter(parts.values()))
    if missing := [e for e in range(count) for half in own if (e, half) not in parts]:
        raise UsageError(
            f"the adapter lacks expert {missing[0]} of {parameter.name} and has others; it is incomplete, "
            "write it again"
        )
    zero = LoraFactors(torch.zeros_like(a), torch.zeros_like(b))
    pairs = [[parts.get((expert, half), zero) for half in range(halves)] for expert in range(count)]
    return LoraFactors(
        torch.stack([torch.cat([pair.a for pair in expert]) for expert in pairs]),
        torch.stack([torch.block_diag(*(pair.b for pair in expert)) for expert in pairs]),
    )
