"""The portable PEFT form of a LoRA: the keys of its configuration and the names of its tensors, both ways.

Written so that PEFT, vLLM, SGLang, LoRAX and llama.cpp's converter load it: few keys, one rank, alpha and
float dtype. Knows dictionaries and tensors, no files; `source` names in errors where they came from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from shoal.adapters.foreign_names import cause, factor_name, module_in, plain_module, rests
from shoal.adapters.lora import LoRA
from shoal.adapters.peft_scalings import Scalings
from shoal.config import MAX_ALPHA
from shoal.errors import ShoalError, UsageError
from shoal.models.ends import EndModule
from shoal.models.modules import TargetModule
from shoal.models.shapes import BackboneShape

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Coverage:
    """The modules of a model that an adapter directory holds.

    Loaders know an adapter by module types and layers, so each of the types is there in each of the layers.

    Attributes:
        targets: every module held inside the layers, in the model's order.
        ends: the ends of the model that are held.
        zero: those of them that the adapter leaves alone; their B is zero.
        target_modules: short names that match the types held and no other.
        layers: layer indices, ascending.
        num_layers: decoder layers of the model.
    """

    targets: tuple[TargetModule, ...]
    ends: tuple[EndModule, ...]
    zero: frozenset[TargetModule]
    target_modules: tuple[str, ...]
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
    adapted = adapted_targets(shape, lora)
    ends = tuple(end for end in shape.ends if end.name in lora.factors)
    types = {t.type for t in adapted}
    # A loader that is to adapt some layers adapts nothing outside them.
    layers = {t.layer for t in (shape.targets if adapted and (pad_layers or ends) else adapted)}
    targets = tuple(t for t in shape.targets if t.type in types and t.layer in layers)
    return Coverage(
        targets=targets,
        ends=ends,
        zero=frozenset(targets) - frozenset(adapted),
        target_modules=_short_names(
            types | {end.name for end in ends},
            {t.type for t in shape.targets} | {end.name for end in shape.ends},
        ),
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
    names = {target.name: "lora_{}.weight" for target in coverage.targets}
    names |= {end.name: "lora_embedding_{}" if end.embedding else "lora_{}.weight" for end in coverage.ends}
    tensors = {
        f"base_model.model.{module}.{ending.format(letter)}": factor.detach().to(dtype).contiguous()
        for module, ending in names.items()
        for letter, factor in zip("AB", factors[module], strict=True)
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
    if 0 < len(coverage.layers) < coverage.num_layers:
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
    scalings = Scalings(config, source)
    tensors = _factors_alone(tensors, source, is_copy)
    if not tensors:
        raise ShoalError(f"{source} holds no LoRA factor; the adapter is incomplete, write it again")
    _check_numbers(tensors, source)
    widest_dtype = reduce(torch.promote_types, (t.dtype for t in tensors.values()))
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name = factor_name(key)
        assert name is not None
        if name.letter in pairs.setdefault(name.module, {}):
            raise ShoalError(f"{source} holds {name.letter} of {name.module[:120]} twice; keep one adapter")
        pairs[name.module][name.letter] = tensor.to(widest_dtype)
    for module, pair in pairs.items():
        if len(pair) < 2:
            raise ShoalError(
                f"{source} lacks A or B of {module[:120]}; the adapter is incomplete, write it again"
            )
        if pair["A"].shape[0] != pair["B"].shape[1]:
            raise ShoalError(
                f"{source}: A of {module[:120]} has rank {pair['A'].shape[0]}, B has {pair['B'].shape[1]}; "
                "the adapter is damaged, write it again"
            )
    widest = max(pair["A"].shape[0] for pair in pairs.values())
    alpha = scalings.common * widest
    return LoRA({name: scalings.evened(name, pair, widest) for name, pair in pairs.items()}, alpha)


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
            named = factor_name(key)
            why = cause(named.module) if named and "experts" in key else "a factor is a matrix"
            raise ShoalError(f"{source}: {key[:120]} has shape {tuple(tensor.shape)}; {why}")
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


def adapted_targets(shape: BackboneShape, lora: LoRA) -> tuple[TargetModule, ...]:
    """The targets of a base model that an adapter changes, in the adapter's order; its ends are checked too.

    Raises:
        UsageError: the model has no such module, or one of another size.
    """
    by_name = {t.name: t for t in shape.targets}
    known = {t.name: t for t in shape.adaptable}
    for name, f in lora.factors.items():
        target, sizes = known.get(name), (f.a.shape[-1], f.b.shape[0])
        if target is None:
            raise UsageError(
                f"the adapter has {name[:120]}, and {shape.base_model} no such module: {cause(name)}"
            )
        if sizes != (target.in_features, target.out_features):
            raise UsageError(
                f"the adapter's {name} is {sizes[0]} x {sizes[1]} (in x out), in {shape.base_model} "
                f"{target.in_features} x {target.out_features}; use the model that it was made for"
            )
    return tuple(by_name[name] for name in lora.factors if name in by_name)


def named_as(lora: LoRA, shape: BackboneShape) -> LoRA:
    """The adapter under the names of a base model, where parts before the layers differ.

    Raises:
        ShoalError: two of its modules are one of the model's.
    """
    known = {t.name for t in shape.adaptable}
    if lora.factors.keys() <= known:
        return lora
    by_rest = rests(known)
    renamed = {module_in(name, by_rest) or name: factors for name, factors in lora.factors.items()}
    if len(renamed) < len(lora.factors):
        raise ShoalError("the adapter has two names for one module of the base model; keep one of them")
    return replace(lora, factors=renamed)
