"""The portable PEFT form of a LoRA: the keys of its configuration and the names of its tensors, both ways.

Written so that PEFT, vLLM, SGLang, LoRAX and llama.cpp's converter load it: few keys, one rank, alpha and
float dtype. Knows dictionaries and tensors, no files; `source` names in errors where they came from.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import regex
import torch
from torch import Tensor
from torch.nn import functional as F

from shoal.adapters.foreign_names import cause, factor_name, module_in, plain_module, rests
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.config import MAX_ALPHA
from shoal.errors import ShoalError, UsageError, reason
from shoal.models.modules import TargetModule
from shoal.models.shapes import BackboneShape

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Keys of adapter_config.json that change nothing of what a finished LoRA computes. Any other must be unset.
_READ_OR_HARMLESS = frozenset(
    {"peft_type", "r", "lora_alpha", "bias", "use_rslora", "init_lora_weights"}
    | {"base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping", "peft_version"}
    | {"target_modules", "layers_to_transform", "layers_pattern", "exclude_modules", "fan_in_fan_out"}
    | {"rank_pattern", "alpha_pattern", "lora_dropout", "runtime_config", "ensure_weight_tying"}
    | {"modules_to_save"}  # their tensors are looked at
    | {"megatron_core", "qalora_group_size"}
    | {"loftq_config", "eva_config", "corda_config", "lora_ga_config"}
)
# Names of modules as keys of a pattern. PEFT takes any regular expression, which a stranger could make slow:
# so many are matched, of so many characters. A match has some microseconds of its thread's processor, which
# a harmless one hardly needs; beyond those all matches together have so many seconds.
_PLAIN_NAME = re.compile(r"\^?[A-Za-z0-9_.-]{1,200}")
MAX_EXPRESSIONS, MAX_EXPRESSION = 32, 200
FREE_SECONDS, MATCH_SECONDS = 20e-6, 0.25
# Ways of initialising A and B that leave the base weights alone; PiSSA, OLoRA, CorDA and LoftQ change them.
_HARMLESS_INITS = ("gaussian", "eva", "orthogonal", "lora_ga")


@dataclass(frozen=True)
class Coverage:
    """The modules of a model that an adapter directory holds.

    Loaders know an adapter by module types and layers, so each of the types is there in each of the layers.

    Attributes:
        targets: every module held, in the model's order.
        zero: those of them that the adapter leaves alone; their B is zero.
        target_modules: short names that match the types held and no other.
        layers: layer indices, ascending.
        num_layers: decoder layers of the model.
    """

    targets: tuple[TargetModule, ...]
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
    types = {t.type for t in adapted}
    layers = {t.layer for t in (shape.targets if pad_layers else adapted)}
    targets = tuple(t for t in shape.targets if t.type in types and t.layer in layers)
    return Coverage(
        targets=targets,
        zero=frozenset(targets) - frozenset(adapted),
        target_modules=_short_names(types, {t.type for t in shape.targets}),
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
    tensors = {
        f"base_model.model.{target.name}.lora_{letter}.weight": factor.detach().to(dtype).contiguous()
        for target in coverage.targets
        for letter, factor in zip("AB", factors[target.name], strict=True)
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
    if len(coverage.layers) < coverage.num_layers:
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
    scalings = _Scalings(config, source)
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
        if name.embedding:
            raise ShoalError(f"{source} holds {key[:120]!r}: {cause(name.module)}; train without it")
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


class _Scalings:
    """Scaling of every module, as a configuration states it and its rank decides.

    Attributes:
        common: of modules that have the configured rank and that no pattern names.
    """

    def __init__(self, config: Mapping[str, Any], source: object) -> None:
        """Read it.

        Raises:
            ShoalError: it is no plain LoRA, or a rank or alpha is outside its range.
        """
        _check_plain(config, source)
        self._root = bool(config.get("use_rslora"))
        rank = _whole(config.get("r"), "r", source)
        self._alpha = _positive(config.get("lora_alpha", 8), "lora_alpha", source)
        for own in _pattern(config, "rank_pattern", source).values():
            _whole(own, "rank_pattern", source)
        alphas = _pattern(config, "alpha_pattern", source)
        self._alphas = {key: _positive(value, "alpha_pattern", source) for key, value in alphas.items()}
        self._places = _Places(alphas, source)
        self.common = self._scaling(rank, self._alpha)

    def evened(self, module: str, pair: Mapping[str, Tensor], rank: int) -> LoraFactors:
        """Its factors with this rank and the common scaling."""
        a, b = pair["A"], pair["B"]
        own = a.shape[0]
        scaling = self._scaling(own, self._alphas.get(self._places.key_of(module), self._alpha))
        if scaling != self.common:
            b = b * (scaling / self.common)
        if own < rank:
            a, b = F.pad(a, (0, 0, 0, rank - own)), F.pad(b, (0, rank - own))
        return LoraFactors(a, b)

    def _scaling(self, rank: int, alpha: float) -> float:
        return alpha / (math.sqrt(rank) if self._root else rank)


class _Places:
    """Places of the keys of a pattern in their order.

    Plain names take one look-up per part of a module's name; the few that are regular expressions are matched
    within a limit of time.
    """

    def __init__(self, pattern: Mapping[str, Any], source: object) -> None:
        self._source = source
        self._keys = list(pattern)
        self._places = {key: place for place, key in enumerate(self._keys)}
        self._left = MATCH_SECONDS
        self._expressions: list[tuple[int, Any]] = []
        odd = [key for key in self._keys if not _PLAIN_NAME.fullmatch(key)]
        if len(odd) > MAX_EXPRESSIONS or any(len(key) > MAX_EXPRESSION for key in odd):
            raise ShoalError(
                f"{source} has {len(odd)} regular expressions in alpha_pattern, of up to "
                f"{max(map(len, odd))} characters; at most {MAX_EXPRESSIONS} of {MAX_EXPRESSION} are matched"
            )
        for key in odd:
            try:
                self._expressions.append((self._places[key], regex.compile(rf"(.*\.)?({key})$")))
            except (regex.error, RecursionError, OverflowError, MemoryError) as error:
                raise ShoalError(
                    f"{source} has {json.dumps(key)[:80]} in alpha_pattern, which is no regular expression "
                    f"({reason(error, 80)}); correct it"
                ) from None

    def key_of(self, module: str) -> str:
        """The first key that names a module, as in PEFT; empty where none does."""
        parts = module.split(".")
        endings = [".".join(parts[i:]) for i in range(len(parts))]
        found = [self._places[name] for name in (f"^{module}", *endings) if name in self._places]
        found += [place for place, expression in self._expressions if self._matches(expression, module)]
        return self._keys[min(found)] if found else ""

    def _matches(self, expression: Any, module: str) -> bool:
        begun = time.thread_time()
        try:
            found = expression.match(module, timeout=MATCH_SECONDS) is not None
        except TimeoutError:
            self._left = 0.0
        else:
            self._left -= max(time.thread_time() - begun - FREE_SECONDS, 0.0)
        if self._left <= 0:
            raise ShoalError(
                f"{self._source} has a regular expression in alpha_pattern that takes too long; name modules"
            )
        return found


def _pattern(config: Mapping[str, Any], name: str, source: object) -> Mapping[str, Any]:
    pattern = config.get(name) or {}
    if not isinstance(pattern, dict):
        raise ShoalError(f"{source} has {json.dumps(pattern)[:80]} in {name}; it must be an object")
    return pattern


def _check_plain(config: Mapping[str, Any], source: object) -> None:
    """Refuse all that is more than plain LoRA."""
    if config.get("peft_type") != "LORA":
        kind = json.dumps(config.get("peft_type"))[:80]
        raise ShoalError(f"{source} has peft_type {kind}; only LORA is supported")
    extra = [key for key in config if key not in _READ_OR_HARMLESS and config[key]]
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init not in _HARMLESS_INITS:
        extra.append("init_lora_weights")
    if config.get("bias", "none") != "none":
        extra.append("bias")
    if "target_parameters" in extra:
        stated = json.dumps(config["target_parameters"])[:80]
        raise ShoalError(
            f"{source} sets target_parameters to {stated}: a LoRA of experts is not supported, only of "
            "linear maps outside them; train it with target_modules alone"
        )
    if extra:
        stated = json.dumps(config[extra[0]])[:80]
        raise ShoalError(
            f"{source} sets {extra[0][:80]} to {stated}; only plain LoRA is supported, convert the adapter"
        )


def _whole(rank: Any, name: str, source: object) -> int:
    if type(rank) is not int or rank < 1:
        raise ShoalError(
            f"{source} sets {name} to {json.dumps(rank)[:80]}; a rank is a whole number of at least 1"
        )
    return rank


def _positive(alpha: Any, name: str, source: object) -> float:
    if type(alpha) not in (int, float) or not 0 < alpha <= MAX_ALPHA:
        raise ShoalError(
            f"{source} sets {name} to {json.dumps(alpha)[:80]}; it must be above 0, at most {MAX_ALPHA:g}"
        )
    return float(alpha)


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
    """The targets of a base model that an adapter changes, in the adapter's order.

    Raises:
        UsageError: the model has no such module, or one of another size.
    """
    by_name = {t.name: t for t in shape.targets}
    for name, f in lora.factors.items():
        target, sizes = by_name.get(name), (f.a.shape[-1], f.b.shape[0])
        if target is None:
            raise UsageError(
                f"the adapter has {name[:120]}, and {shape.base_model} no such module: {cause(name)}"
            )
        if sizes != (target.in_features, target.out_features):
            raise UsageError(
                f"the adapter's {name} is {sizes[0]} x {sizes[1]} (in x out), in {shape.base_model} "
                f"{target.in_features} x {target.out_features}; use the model that it was made for"
            )
    return tuple(by_name[name] for name in lora.factors)


def named_as(lora: LoRA, shape: BackboneShape) -> LoRA:
    """The adapter under the names of a base model, where parts before the layers differ.

    Raises:
        ShoalError: two of its modules are one of the model's.
    """
    known = {t.name for t in shape.targets}
    if lora.factors.keys() <= known:
        return lora
    by_rest = rests(known)
    renamed = {module_in(name, by_rest) or name: factors for name, factors in lora.factors.items()}
    if len(renamed) < len(lora.factors):
        raise ShoalError("the adapter has two names for one module of the base model; keep one of them")
    return replace(lora, factors=renamed)
