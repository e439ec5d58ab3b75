"""Scalings of the modules of a PEFT adapter, as its configuration states them; refuses what is no plain LoRA.

Knows the keys of adapter_config.json and names of modules; `source` names in errors where they came from.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from typing import Any

import regex
from torch.nn import functional as F

from shoal.adapters.lora import LoraFactors
from shoal.config import MAX_ALPHA
from shoal.errors import ShoalError, reason

# Keys of adapter_config.json that change nothing of what a finished LoRA computes. Any other must be unset.
_READ_OR_HARMLESS = frozenset(
    {"peft_type", "r", "lora_alpha", "bias", "use_rslora", "init_lora_weights"}
    | {"base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping", "peft_version"}
    | {"target_modules", "layers_to_transform", "layers_pattern", "exclude_modules", "fan_in_fan_out"}
    | {"rank_pattern", "alpha_pattern", "lora_dropout", "runtime_config", "ensure_weight_tying"}
    | {"modules_to_save", "target_parameters"}  # their tensors are looked at
    | {"megatron_core", "qalora_group_size"}
    | {"loftq_config", "eva_config", "corda_config", "lora_ga_config"}
)
# Names of modules as keys of a pattern. PEFT takes any regular expression, which a stranger could make slow:
# so many are matched, of so many characters. A match has some microseconds of its thread's processor, which
# a harmless one hardly needs; beyond those all matches together have so many seconds.
_PLAIN_NAME = re.compile(r"\^?[A-Za-z0-9_.-]{1,200}")
MAX_EXPRESSIONS, MAX_EXPRESSION = 32, 200
FREE_SECONDS, MATCH_SECONDS = 20e-6, 0.25
# Ways of initialising A and B that leave the base weights alone. PiSSA, OLoRA, CorDA, LoRA-GA and LoftQ
# change them: their factors mean nothing beside the base as it is, unless PEFT has converted them.
_HARMLESS_INITS = ("gaussian", "eva", "orthogonal", "mica")


class Scalings:
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
        rank = whole(config.get("r"), "r", source)
        self._alpha = _positive(config.get("lora_alpha", 8), "lora_alpha", source)
        for own in pattern_of(config, "rank_pattern", source).values():
            whole(own, "rank_pattern", source)
        alphas = pattern_of(config, "alpha_pattern", source)
        self._alphas = {key: _positive(value, "alpha_pattern", source) for key, value in alphas.items()}
        self._places = Places(alphas, "alpha_pattern", source)
        self.common = self._scaling(rank, self._alpha)

    def evened(self, module: str, factors: LoraFactors, rank: int) -> LoraFactors:
        """Its factors with this rank and the common scaling."""
        a, b = factors
        own = a.shape[-2]
        scaling = self._scaling(own, self._alphas.get(self._places.key_of(module), self._alpha))
        if scaling != self.common:
            b = b * (scaling / self.common)
        if own < rank:
            a, b = F.pad(a, (0, 0, 0, rank - own)), F.pad(b, (0, rank - own))
        return LoraFactors(a, b)

    def _scaling(self, rank: int, alpha: float) -> float:
        return alpha / (math.sqrt(rank) if self._root else rank)


class Places:
    """Places of the keys of a pattern (`alpha_pattern`, `rank_pattern`) in their order.

    Plain names take one look-up per part of a module's name; the few that are regular expressions are matched
    within a limit of time.
    """

    def __init__(self, pattern: Mapping[str, Any], title: str, source: object) -> None:
        """Read the keys of a pattern, which has this title in messages.

        Raises:
            ShoalError: too many regular expressions, or one that is none.
        """
        self._source = source
        self._title = title
        self._keys = list(pattern)
        self._places = {key: place for place, key in enumerate(self._keys)}
        self._left = MATCH_SECONDS
        self._expressions: list[tuple[int, Any]] = []
        odd = [key for key in self._keys if not _PLAIN_NAME.fullmatch(key)]
        if len(odd) > MAX_EXPRESSIONS or any(len(key) > MAX_EXPRESSION for key in odd):
            raise ShoalError(
                f"{source} has {len(odd)} regular expressions in {title}, of up to "
                f"{max(map(len, odd))} characters; at most {MAX_EXPRESSIONS} of {MAX_EXPRESSION} are matched"
            )
        for key in odd:
            try:
                self._expressions.append((self._places[key], regex.compile(rf"(.*\.)?({key})$")))
            except (regex.error, RecursionError, OverflowError, MemoryError) as error:
                raise ShoalError(
                    f"{source} has {json.dumps(key)[:80]} in {title}, which is no regular expression "
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
                f"{self._source} has a regular expression in {self._title} that takes too long; name modules"
            )
        return found


def pattern_of(config: Mapping[str, Any], name: str, source: object) -> Mapping[str, Any]:
    """The object under a key of a configuration, or ShoalError."""
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
    if isinstance(init, str) and init.lower() not in _HARMLESS_INITS:
        extra.append("init_lora_weights")
    if config.get("bias", "none") != "none":
        extra.append("bias")
    if extra:
        stated = json.dumps(config[extra[0]])[:80]
        raise ShoalError(
            f"{source} sets {extra[0][:80]} to {stated}; only plain LoRA is supported, convert the adapter"
        )


def whole(rank: Any, name: str, source: object) -> int:
    """A rank, or ShoalError."""
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
