"""A recipe of a merge: method, parents, and parameters that may differ by parent, layer and module.

Parameters are found as mergekit finds them: of the parent, else of the slice, else of the whole recipe, else
the method's default. A list of numbers is a gradient over the layers. Knows no files and no tensors of
adapters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from shoal.adapters.merging.methods import Parameter, method_of
from shoal.errors import UsageError

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Clause:
    """A value, or a gradient of values, for the modules whose name contains a text.

    Attributes:
        values: one, or several from the first layer to the last, straight lines between them.
        filter: part of a module's name; None is every module.
    """

    values: tuple[float | bool, ...]
    filter: str | None = None

    def at(self, place: float | None) -> float | bool:
        """The value at a place from 0 (first layer) to 1 (last); None is outside the layers.

        Raises:
            UsageError: a gradient outside the layers.
        """
        if len(self.values) == 1:
            return self.values[0]
        if place is None:
            raise UsageError("a gradient needs modules of numbered layers and their number; give one value")
        along = place * (len(self.values) - 1)
        low = min(int(along), len(self.values) - 2)
        share = along - low
        return (1 - share) * self.values[low] + share * self.values[low + 1]


Setting = tuple[Clause, ...]
Settings = Mapping[str, Setting]


def constant(value: float | bool) -> Setting:
    """The setting that is one value everywhere."""
    return (Clause((value,)),)


@dataclass(frozen=True)
class Slice:
    """Some layers, or all, with what is set for them.

    Attributes:
        layers: first, and the one behind the last; None is all.
        each: settings of every parent.
        shared: settings of the slice.
    """

    layers: tuple[int, int] | None = None
    each: tuple[Settings, ...] = ()
    shared: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A merge before it is run.

    Attributes:
        method: its name.
        parents: path of every parent, or its name.
        slices: of the layers, in order.
        settings: for all of them.
        base_model: that the parents adapt; None where nothing names it.
        start: path of the adapter that deltas count from; None is the base model.
        dtype: of the result, `float32`, `float16` or `bfloat16`; None is the parents' own.
        notes: on how it was read, for people.
        names: of the parents, where `parents` are paths.
        whole: True where the parents are whole models, not adapters.
    """

    method: str
    parents: tuple[str, ...]
    slices: tuple[Slice, ...] = (Slice(),)
    settings: Settings = field(default_factory=dict)
    base_model: str | None = None
    start: str | None = None
    dtype: str | None = None
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    whole: bool = False

    @classmethod
    def of(
        cls,
        method: str,
        parents: Sequence[str],
        weights: Sequence[float] = (),
        parameters: Mapping[str, float | bool] | None = None,
        names: Sequence[str] = (),
    ) -> Recipe:
        """The recipe with the same parameters in every module.

        Raises:
            UsageError: as many weights as parents are not given.
        """
        if weights and len(weights) != len(parents):
            raise UsageError(
                f"{len(weights)} weights for {len(parents)} adapters; give one for each, or none"
            )
        each = tuple({"weight": constant(float(weight))} for weight in weights)
        shared = {name: constant(value) for name, value in (parameters or {}).items()}
        return cls(method, tuple(parents), (Slice(each=each),), shared, names=tuple(names))

    @property
    def labels(self) -> tuple[str, ...]:
        """The parents' names, else their paths."""
        return self.names or self.parents

    def check(self) -> None:
        """See that the method takes these parents and parameters.

        Raises:
            UsageError: too few or too many parents, an unknown parameter, or a value out of its range.
        """
        method, count = method_of(self.method), len(self.parents)
        if count < 2 or count > (method.most or count):
            limit = "2" if method.most == 2 else "2 or more"
            what = "models" if self.whole else "adapters"
            raise UsageError(f"{self.method} merges {limit} {what}, got {count}; name others")
        for settings in (self.settings, *(s for part in self.slices for s in (part.shared, *part.each))):
            for name, setting in settings.items():
                known = method.parameter(name)
                if known is None:
                    names = ", ".join(p.name for p in method.parameters) or "none"
                    raise UsageError(f"{self.method} has no parameter {name!r}; it has {names}")
                for value in (v for clause in setting for v in clause.values):
                    known.check(value)

    def values(
        self, module: str, num_layers: int | None = None, behind: bool | None = None
    ) -> dict[str, Any]:
        """Parameter -> value for one module: a tensor (parents,) in float64, or one number.

        Args:
            module: its full name.
            num_layers: of the model; only gradients need it.
            behind: of a module outside the layers, True behind them and False before; there a gradient has
                its first value, as in mergekit. None is neither.

        Raises:
            UsageError: no slice has the module's layer, a gradient where the layers are not known, weights
                that sum to 0 where they are divided by their sum, or a density and epsilon that leave (0, 1).
        """
        part, place = self._place(module, num_layers, behind)
        found: dict[str, Any] = {}
        for known in method_of(self.method).parameters:
            if known.each:
                own = [
                    self._value(known, module, place, (each, part.shared))
                    for each in part.each or ({},) * len(self.parents)
                ]
                found[known.name] = torch.tensor(own, dtype=torch.float64)
            else:
                found[known.name] = self._value(known, module, place, (part.shared,))
        _check_together(found, self.method)
        return found

    def _value(
        self, known: Parameter, module: str, place: float | None, levels: Sequence[Settings]
    ) -> float | bool:
        for settings in (*levels, self.settings):
            for clause in settings.get(known.name, ()):
                if clause.filter is None or clause.filter in f"{module}.weight":
                    return clause.at(place)
        return known.default

    def _place(self, module: str, num_layers: int | None, behind: bool | None) -> tuple[Slice, float | None]:
        found = _LAYER.search(module)
        layer = int(found[1]) if found else None
        if layer is None and behind is not None:
            return self.slices[-1 if behind else 0], 0.0
        for part in self.slices:
            if part.layers is None:
                first, end = 0, num_layers
            elif layer is not None and part.layers[0] <= layer < part.layers[1]:
                first, end = part.layers
            else:
                continue
            if layer is None or end is None:
                return part, None
            return part, (layer - first) / (end - first - 1) if end - first > 1 else 1.0
        raise UsageError(f"no slice of the recipe has the layer of {module}; let its layer_range end later")


def _check_together(values: Mapping[str, Any], method: str) -> None:
    weight: Tensor | None = values.get("weight")
    divides = values.get("normalize") or values.get("normalize_weights") or method == "nuslerp"
    if weight is not None and divides and abs(float(weight.sum())) < 1e-8:
        raise UsageError(
            f"the weights {', '.join(f'{w:g}' for w in weight.tolist())} sum to 0 and {method} divides by "
            "their sum; change one, or set normalize to false"
        )
    if "epsilon" in values:
        for share, half in zip(values["density"].tolist(), values["epsilon"].tolist(), strict=True):
            if share < 1 and not (half < share < 1 - half):
                raise UsageError(
                    f"density {share:g} with epsilon {half:g} gives chances from {share - half:g} to "
                    f"{share + half:g}, which must stay inside 0 to 1; choose a smaller epsilon"
                )
