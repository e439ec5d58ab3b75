"""The portable PEFT form of a LoRA: the keys of its configuration and the names of its tensors, both ways.

Written so that PEFT, vLLM, SGLang, LoRAX and llama.cpp's converter load it: few keys, one rank, alpha and
float dtype. Knows dictionaries and tensors, no files; `source` names in errors where they came from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from shoal.adapters.foreign_names import factor_name, plain_module
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.adapters.matching import check_targets
from shoal.adapters.peft_parameters import (
    StatedParameters,
    is_router,
    named_by_weight,
    stacked,
    unstacked,
    wrapped_names,
)
from shoal.adapters.peft_scalings import Scalings
from shoal.config import MAX_ALPHA
from shoal.errors import ShoalError, UsageError
from shoal.models.ends import EndModule
from shoal.models.modules import TargetModule
from shoal.models.parameters import TargetParameter
from shoal.models.shapes import BackboneShape

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Coverage:
    """The modules of a model that an adapter directory holds.

    Loaders know an adapter by module types and layers, so each of the types is there in each of the layers.

    Attributes:
        targets: modules held inside the layers and named as such, in the model's order.
        weights: the others, named by their weight as parameters are.
        ends: the ends of the model that are held.
        zero: those of them that the adapter leaves alone; their B is zero.
        target_modules: short names that match the types held and no other.
        parameters: every parameter held, in the model's order.
        target_parameters: types of these and of `weights` where all layers hold them, else their names.
        layers: layer indices of all, ascending.
        num_layers: decoder layers of the model.
    """

    targets: tuple[TargetModule, ...]
    weights: tuple[TargetModule, ...]
    ends: tuple[EndModule, ...]
    zero: frozenset[TargetModule]
    target_modules: tuple[str, ...]
    parameters: tuple[TargetParameter, ...]
    target_parameters: tuple[str, ...]
    layers: tuple[int, ...]
    num_layers: int


def cover(lora: LoRA, shape: BackboneShape, *, pad_layers: bool = False) -> Coverage:
    """The modules of which an adapter directory must hold factors.

    Args:
        lora: the adapter.
        shape: its base model, with all its linear maps.
        pad_layers: hold every layer of the model, as LoRAX needs.

    Raises:
        UsageError: the model has no such module, or one of another size.
    """
    check_targets(shape, lora)
    held = [t for t in shape.targets if t.name in lora.factors]
    weights = tuple(t for t in held if named_by_weight(t.type, shape.parameters))
    adapted = [t for t in held if t not in weights]
    ends = tuple(end for end in shape.ends if end.name in lora.factors)
    parameters = tuple(p for p in shape.parameters if p.name in lora.factors)
    inside: tuple[TargetModule | TargetParameter, ...] = (*shape.targets, *shape.parameters)
    partly = {t.type for t in inside if t.name not in lora.factors}
    stated = [p.name if p.type in partly else p.type for p in parameters]
    stated += [f"{t.name if t.type in partly else t.type}.weight" for t in weights]
    types = {t.type for t in adapted}
    # A loader that is to adapt some layers adapts no module outside them.
    everywhere = bool(adapted) and (pad_layers or bool(ends))
    layers = {t.layer for t in (shape.targets if everywhere else held)} | {p.layer for p in parameters}
    targets = tuple(t for t in shape.targets if t.type in types and t.layer in layers)
    return Coverage(
        targets=targets,
        weights=weights,
        ends=ends,
        zero=frozenset(targets) - frozenset(adapted),
        target_modules=_short_names(
            types | {end.name for end in ends},
            {t.type for t in shape.targets} | {end.name for end in shape.ends},
        ),
        parameters=parameters,
        target_parameters=tuple(dict.fromkeys(stated)),
        layers=tuple(sorted(layers)),
        num_layers=shape.num_layers,
    )


def peft_tensors(lora: LoRA, coverage: Coverage, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """PEFT's tensor names -> A (rank, in) and B (out, rank), in one dtype (by default its own) and finite.

    Raises:
        UsageError: another dtype than float32, float16 and bfloat16, or a value that is not finite in it.
    """
    own = {x.dtype for f in lora.factors.values() for x in f}
    dtype = dtype or (own.pop() if len(own) == 1 and own <= set(DTYPES) else torch.float32)
    if dtype not in DTYPES:
        raise UsageError(
            f"adapters are stored in float32, float16 or bfloat16, not {dtype}; choose one of these"
        )
    factors = dict(lora.factors)
    if coverage.zero:
        padded = [t for t in coverage.targets if t in coverage.zero]
        factors |= LoRA.identity(padded, lora.rank, 1.0, generator=torch.Generator().manual_seed(0)).factors
    modules = (*coverage.targets, *coverage.weights)
    names = {target.name: f"{target.name}.lora_{{}}.weight" for target in modules}
    for end in coverage.ends:
        names[end.name] = f"{end.name}.lora_" + ("embedding_{}" if end.embedding else "{}.weight")
    wrapped = wrapped_names(coverage.parameters)
    names |= {name: f"{module}.lora_{{}}.weight" for name, module in wrapped.items()}
    tensors = {
        f"base_model.model.{key.format(letter)}": factor.detach().to(dtype).contiguous()
        for name, key in names.items()
        for letter, factor in zip("AB", unstacked(factors[name]), strict=True)
    }
    if broken := _first_not_finite(tensors):
        raise UsageError(f"{broken} is not finite in {dtype}; use float32, or look for what made it so")
    return tensors


def peft_config(lora: LoRA, coverage: Coverage, *, base_model: str, revision: str | None) -> dict[str, Any]:
    """Content of adapter_config.json: few keys, since old versions of PEFT fail on those they do not know.

    Raises:
        UsageError: alpha is not above 0, which llama.cpp would read as a scaling of 1.
    """
    if not 0 < lora.alpha <= MAX_ALPHA:
        raise UsageError(
            f"alpha {lora.alpha} is outside 0..{MAX_ALPHA:g}; fold the scale into B with `lora * scale`"
        )
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "revision": revision,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(coverage.target_modules),
        "bias": "none",
        "fan_in_fan_out": any(t.fan_in_fan_out for t in coverage.targets),
        "modules_to_save": None,
        "inference_mode": True,
    }
    if coverage.target_parameters:
        config["target_parameters"] = list(coverage.target_parameters)
    if coverage.targets and len(coverage.layers) < coverage.num_layers:
        config["layers_to_transform"] = list(coverage.layers)
    return config


def read_lora(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    source: object,
    *,
    is_copy: Callable[[str, Tensor], bool] | None = None,
) -> LoRA:
    """The adapter that a PEFT configuration and its tensors describe; rsLoRA is folded into alpha.

    Ranks are those of the tensors: modules of a smaller one than others are padded with zeros, and those of
    another alpha (`alpha_pattern`) have it folded into B. Of several float dtypes the widest is taken.

    Args:
        config: content of adapter_config.json.
        tensors: by PEFT's names, also as wrappers change them.
        source: of both, for messages.
        is_copy: (module's tensor, values) -> True where they are the base model's own, and may be left out.

    Raises:
        ShoalError: the adapter is more than plain LoRA, incomplete, or not finite.
    """
    scalings, parameters = Scalings(config, source), StatedParameters(config, source)
    tensors = _factors_alone(tensors, source, is_copy)
    if not tensors:
        raise ShoalError(f"{source} holds no LoRA factor; the adapter is incomplete, write it again")
    _check_numbers(tensors, source)
    widest_dtype = reduce(torch.promote_types, (t.dtype for t in tensors.values()))
    factors = {key: found for key in tensors if (found := factor_name(key)) is not None}
    of_parameters = parameters.names(factors.values())
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, factor in factors.items():
        name = of_parameters.get((factor.module, factor.depth), factor.module)
        if factor.letter in pairs.setdefault(name, {}):
            raise ShoalError(f"{source} holds {factor.letter} of {name[:120]} twice; keep one adapter")
        pairs[name][factor.letter] = tensors[key].to(widest_dtype)
    stated = set(of_parameters.values())
    own = {}
    for name, pair in pairs.items():
        own[name] = _checked(name, pair, source)
        if name in stated and not is_router(name):
            own[name] = stacked(name, *own[name], parameters.rank_of(name), source)
    widest = max(pair.a.shape[-2] for pair in own.values())
    alpha = scalings.common * widest
    return LoRA({name: scalings.evened(name, pair, widest) for name, pair in own.items()}, alpha)


def _checked(name: str, pair: Mapping[str, Tensor], source: object) -> LoraFactors:
    """Both factors of a module, which must be there and of one rank."""
    if len(pair) < 2:
        raise ShoalError(f"{source} lacks A or B of {name[:120]}; the adapter is incomplete, write it again")
    factors = LoraFactors(pair["A"], pair["B"])
    if factors.a.shape[0] != factors.b.shape[1]:
        raise ShoalError(
            f"{source}: A of {name[:120]} has rank {factors.a.shape[0]}, B has {factors.b.shape[1]}; "
            "the adapter is damaged, write it again"
        )
    return factors


def _factors_alone(
    tensors: Mapping[str, Tensor], source: object, is_copy: Callable[[str, Tensor], bool] | None
) -> dict[str, Tensor]:
    """The factors, without copies of the base model's own tensors.

    Raises:
        ShoalError: there is anything else, or the factors of several adapters.
    """
    kept, adapters = {}, set()
    for key, tensor in tensors.items():
        name = factor_name(key)
        if name is None:
            if "lora_" not in key and is_copy is not None and is_copy(plain_module(key), tensor):
                continue
            what = (
                "differs from the base model's own" if is_copy and "lora_" not in key else "is no LoRA factor"
            )
            raise ShoalError(f"{source} holds {key[:120]!r}, which {what}; only plain LoRA is supported")
        adapters.add(name.adapter)
        kept[key] = tensor
    if len(adapters) > 1:
        raise ShoalError(f"{source} holds the adapters {', '.join(sorted(adapters))[:120]}; keep one of them")
    return kept


def _check_numbers(tensors: Mapping[str, Tensor], source: object) -> None:
    """See that factors are finite matrices of floats."""
    for key, tensor in tensors.items():
        if tensor.dim() != 2 or 0 in tensor.shape:
            raise ShoalError(f"{source}: {key[:120]} has shape {tuple(tensor.shape)}; a factor is a matrix")
    dtypes = {t.dtype for t in tensors.values()}
    if not dtypes <= set(DTYPES):
        names = ", ".join(sorted(map(str, dtypes)))
        raise ShoalError(f"{source} holds {names}; convert it to one of float32, float16 and bfloat16")
    if broken := _first_not_finite(tensors):
        raise ShoalError(
            f"{source}: {broken[:120]} holds NaN or infinity; the adapter is broken, make it again"
        )


def _first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    return next((name for name, t in tensors.items() if not torch.isfinite(t).all()), None)


def _short_names(types: set[str], all_types: set[str]) -> tuple[str, ...]:
    """The shortest ending of each type that matches only wanted types: `c_attn`, but `attn.c_proj`."""

    def matches(ending: str) -> set[str]:
        return {t for t in all_types if t == ending or t.endswith("." + ending)}

    def endings(kind: str) -> Sequence[str]:
        parts = kind.split(".")
        return [".".join(parts[i:]) for i in reversed(range(len(parts)))]

    return tuple(sorted({next(e for e in endings(kind) if matches(e) <= types) for kind in types}))
