"""LoRA of parameters in PEFT's form: which tensor is whose, and the factors of experts as matrices.

PEFT wraps a module once for each of its parameters that `target_parameters` names, the first one innermost:
factors of experts are called `experts.base_layer.lora_A` and `experts.lora_A`. A is (experts * rank, in), the
rows of an expert together, and B is (out, rank * experts), the columns of an expert that far apart. The rank
is the configured one, since no tensor shows it. Linear maps that are called as those of single experts once
were are named by their weight too, since PEFT takes their own names for those of experts. Knows names and
tensors, no files and no base model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from shoal.adapters.foreign_names import FactorName, factor_name
from shoal.adapters.lora import LoraFactors
from shoal.adapters.peft_scalings import Places, pattern_of, whole
from shoal.errors import ShoalError
from shoal.models.parameters import TargetParameter

# Parameters in the order in which modules define them; the last is a router's, and no stack of experts.
ROUTER = "weight"
ORDER = ("gate_up_proj", "up_proj", "down_proj", ROUTER)
# Maps of single experts before `transformers` 5; dense layers and shared experts still have maps so named.
OF_SINGLE_EXPERTS = ("gate_proj", "up_proj", "down_proj")


class StatedParameters:
    """The parameters that a configuration names, as `target_parameters` and patterns of ranks do."""

    def __init__(self, config: Mapping[str, Any], source: object) -> None:
        """Read it.

        Raises:
            ShoalError: it names what is no weight of experts or of a router, or a rank is out of range.
        """
        self._source = source
        stated = config.get("target_parameters") or []
        if not isinstance(stated, list) or not all(isinstance(name, str) for name in stated):
            shown = json.dumps(stated)[:80]
            raise ShoalError(f"{source} sets target_parameters to {shown}; it must be a list of names")
        self._own: dict[str, set[str]] = {}  # a module, or "" for any -> names of its parameters
        for name in stated:
            module, _, own = name.rpartition(".")
            if own not in ORDER:
                raise ShoalError(
                    f"{source} names {name[:120]!r} in target_parameters; only {', '.join(ORDER)} of experts "
                    "and routers are supported"
                )
            self._own.setdefault(module, set()).add(own)
        modules = config.get("target_modules")
        self._modules = modules if isinstance(modules, (str, list)) else []
        self._rank = whole(config.get("r"), "r", source)
        self._ranks = pattern_of(config, "rank_pattern", source)
        self._places = Places(self._ranks if stated else {}, "rank_pattern", source)

    def names(self, factors: Iterable[FactorName]) -> dict[tuple[str, int], str]:
        """(module, depth) of the factors of parameters -> the parameter's full name; linear maps are none.

        Raises:
            ShoalError: a module has more or fewer factors than parameters that are named.
        """
        depths: dict[str, set[int]] = {}
        for factor in factors if self._own else ():
            depths.setdefault(factor.module, set()).add(factor.depth)
        names: dict[tuple[str, int], str] = {}
        for module, found in depths.items():
            own = sorted(self._parameters_of(module), key=ORDER.index)
            if own and found != set(range(len(own))):
                raise ShoalError(
                    f"{self._source} names {', '.join(own)} of {module[:120]} in target_parameters and holds "
                    f"factors of {len(found)} parameters; the adapter is incomplete, write it again"
                )
            if own == [ROUTER] and module.rpartition(".")[2] in OF_SINGLE_EXPERTS:
                continue
            names |= {(module, len(own) - 1 - place): f"{module}.{name}" for place, name in enumerate(own)}
        return names

    def tensor_ranks(self, keys: Iterable[str]) -> dict[str, int]:
        """Names of tensors that are factors of experts -> the rank of each expert's."""
        factors = {key: name for key in keys if self._own and (name := factor_name(key)) is not None}
        names = self.names(factors.values())
        own = {key: names.get((factor.module, factor.depth)) for key, factor in factors.items()}
        return {key: self.rank_of(name) for key, name in own.items() if name and not is_router(name)}

    def rank_of(self, name: str) -> int:
        """The configured rank of a parameter, by its full name."""
        return whole(self._ranks.get(self._places.key_of(name), self._rank), "rank_pattern", self._source)

    def _parameters_of(self, module: str) -> set[str]:
        parts = module.split(".")
        endings = (".".join(parts[place:]) for place in range(len(parts)))
        stated = [self._own[ending] for ending in endings if ending in self._own]
        if stated:
            return set().union(*stated)
        last = parts[-1]
        if isinstance(self._modules, str):
            targeted = last in self._modules
        else:
            targeted = any(str(name).rpartition(".")[2] == last for name in self._modules)
        return set() if targeted else self._own.get("", set())


def named_by_weight(kind: str, parameters: Sequence[TargetParameter]) -> bool:
    """True for a type of linear maps that PEFT would take for those of experts beside these parameters."""
    fused = any(p.type.endswith(".gate_up_proj") for p in parameters)
    return fused and kind.rpartition(".")[2] in OF_SINGLE_EXPERTS


def is_router(name: str) -> bool:
    """True where a parameter is a router's one matrix."""
    return name.rpartition(".")[2] == ROUTER


def stacked(
    name: str, a: Float[Tensor, "rows in"], b: Float[Tensor, "out rows"], rank: int, source: object
) -> LoraFactors:
    """Factors of experts (experts, rank, in) and (experts, out, rank) from PEFT's matrices.

    Raises:
        ShoalError: the rank does not divide the rows.
    """
    if a.shape[0] % rank:
        raise ShoalError(
            f"{source}: A of {name[:120]} has {a.shape[0]} rows, which are not divided into experts by "
            f"rank {rank}; correct r or rank_pattern"
        )
    return LoraFactors(
        a.reshape(-1, rank, a.shape[1]), b.reshape(b.shape[0], rank, -1).permute(2, 0, 1).contiguous()
    )


def unstacked(factors: LoraFactors) -> LoraFactors:
    """The inverse of `stacked`; factors of a router are matrices already."""
    a, b = factors
    return factors if a.dim() == 2 else LoraFactors(a.flatten(0, 1), b.permute(1, 2, 0).flatten(1))


def wrapped_names(parameters: Sequence[TargetParameter]) -> dict[str, str]:
    """Full names of parameters that one adapter changes -> PEFT's names, which stand before `.lora_A`."""
    modules: dict[str, list[str]] = {}
    for parameter in parameters:
        module, _, own = parameter.name.rpartition(".")
        modules.setdefault(module, []).append(own)
    return {
        f"{module}.{name}": module + ".base_layer" * depth
        for module, own in modules.items()
        for depth, name in enumerate(sorted(own, key=ORDER.index, reverse=True))
    }
