"""Ranges over fields of settings models, as YAML writes them under the flags' names, for Optuna to draw from.

    learning_rate: {low: 3e-4, high: 1e-2, log: true}
    adapter_rank: [4, 8, 16]
    target_modules: [[q_proj, v_proj], [q_proj, k_proj, v_proj, o_proj]]
    warmup: {low: 0, high: 0.2, when: {objective: rloo}}

Every bound and choice is checked against the limits of its own field. Knows nothing of what settings mean.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from pydantic import ValidationError

from shoal.config import Frozen, first_mistake
from shoal.errors import UsageError, shorten

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

MOST_CHOICES = 64
# They decide where a run is, how long it may take or what chance gives it, not how good its settings are.
NOT_SEARCHED = ("seed", "minutes", "checkpoint_every", "fresh_workers", "gradient_checkpointing", "describe")


@dataclass(frozen=True)
class Dimension:
    """One field's range or choices.

    Attributes:
        name: of the field.
        low: least value of a range; None for choices.
        high: greatest value of a range, included.
        log: draw the logarithm evenly.
        whole: only integers.
        choices: values, in order; empty for a range.
        when: name of another field -> values of it with which this one is searched; else it has its default.
    """

    name: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] = ()
    when: Mapping[str, tuple[Any, ...]] | None = None

    def draw(self, trial: BaseTrial) -> Any:
        """The value of a trial."""
        if self.choices:
            return self._choices_by_text()[
                trial.suggest_categorical(self.name, list(self._choices_by_text()))
            ]
        assert self.low is not None and self.high is not None
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def encoded(self, value: Any) -> Any:
        """A value as Optuna keeps it: choices as numbers or text, the rest as it is."""
        if not self.choices:
            return value
        return next((text for text, own in self._choices_by_text().items() if own == value), None)

    def holds(self, value: Any) -> bool:
        """True for one of the choices, or a number in the range."""
        if self.choices:
            return value in self.choices
        assert self.low is not None and self.high is not None
        return isinstance(value, (int, float)) and self.low <= value <= self.high

    def _choices_by_text(self) -> dict[Any, Any]:
        plain = (str, int, float, bool)
        return {c if isinstance(c, plain) or c is None else ",".join(map(str, c)): c for c in self.choices}


@dataclass(frozen=True)
class SearchSpace:
    """The dimensions of a search, those of conditions before what hangs on them."""

    dimensions: tuple[Dimension, ...]

    def draw(self, trial: BaseTrial) -> dict[str, Any]:
        """The settings of a trial; fields whose condition does not hold are left out."""
        drawn: dict[str, Any] = {}
        for dimension in self.dimensions:
            if _holds(dimension, drawn):
                drawn[dimension.name] = dimension.draw(trial)
        return drawn

    def fixed(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Settings as a trial that is enqueued has them; None where one of them is outside the space."""
        chosen: dict[str, Any] = {}
        for dimension in self.dimensions:
            if _holds(dimension, settings):
                if not dimension.holds(settings.get(dimension.name)):
                    return None
                chosen[dimension.name] = dimension.encoded(settings[dimension.name])
        return chosen

    def __getitem__(self, name: str) -> Dimension | None:
        return next((d for d in self.dimensions if d.name == name), None)

    @property
    def sha256(self) -> str:
        """Of its dimensions, in hex."""
        rows = [vars(dimension) for dimension in self.dimensions]
        return hashlib.sha256(json.dumps(rows, sort_keys=True, default=list).encode()).hexdigest()


def read_space(
    content: Mapping[str, Any], models: Sequence[type[Frozen]], fixed: Mapping[str, Any] | None = None
) -> SearchSpace:
    """Check a space before any work.

    Args:
        content: field -> range or choices, as in the head of this module.
        models: whose fields can be searched.
        fixed: fields that flags or a file set already.

    Raises:
        UsageError: no field, one that is unknown, fixed or not to be searched, no range or choices, low above
            high, a logarithm of low 0 or less, a value outside its field's limits, or a condition on a field
            that is not searched before.
    """
    if not content:
        raise UsageError(
            "the space has 0 fields; give ranges, such as learning_rate: {low: 3e-4, high: 1e-2}"
        )
    owners = {name: model for model in models for name in model.model_fields}
    found: dict[str, Dimension] = {}
    for key, spelled in content.items():
        name = key.replace("-", "_")
        if name not in owners or name in NOT_SEARCHED:
            known = ", ".join(sorted(set(owners) - set(NOT_SEARCHED)))
            raise UsageError(
                f"the space names {_shown(key)}, which cannot be searched; the fields are {known}"
            )
        if name in (fixed or {}):
            raise UsageError(
                f"{name} is {_shown((fixed or {})[name])} by its flag and in the space; leave one of them out"
            )
        found[name] = _dimension(name, spelled, owners[name], found)
    return SearchSpace(tuple(found.values()))


def numeric_fields(models: Sequence[type[Frozen]]) -> list[str]:
    """The fields whose values are numbers."""
    return [name for model in models for name in model.model_fields if _kinds(model, name) & {int, float}]


def _dimension(name: str, spelled: Any, model: type[Frozen], before: Mapping[str, Dimension]) -> Dimension:
    entry = {"choices": spelled} if isinstance(spelled, (list, tuple)) else spelled
    if not isinstance(entry, Mapping):
        raise UsageError(
            f"{name}: {_shown(spelled)} is no range; write {{low: 1, high: 8}}, or a list of choices"
        )
    entry = dict(entry)
    when = _condition(name, entry.pop("when", None), before)
    if set(entry) == {"choices"}:
        return Dimension(name, choices=_choices(name, entry["choices"], model), when=when)
    if not {"low", "high"} <= set(entry) <= {"low", "high", "log"}:
        raise UsageError(
            f"{name}: the keys are {', '.join(map(str, entry)) or 'none'}; give low and high, perhaps log "
            "and when, or choices"
        )
    kinds = _kinds(model, name)
    if not kinds & {int, float} or bool in kinds:
        raise UsageError(f"{name} is no number and has no range; write a list of choices")
    low, high, log = _number(name, "low", entry), _number(name, "high", entry), entry.get("log", False)
    if not isinstance(log, bool):
        raise UsageError(f"{name}: log is {_shown(log)}; write true or false")
    if low > high:
        raise UsageError(f"{name}: low {low:g} is above high {high:g}; exchange them")
    if log and low <= 0:
        raise UsageError(
            f"{name}: low is {low:g}, and a logarithm needs more than 0; raise it, or leave log out"
        )
    whole = float not in kinds
    for bound in (low, high):
        _checked(name, int(bound) if whole and bound == int(bound) else bound, model)
    return Dimension(name, low, high, log, whole, when=when)


def _choices(name: str, given: Any, model: type[Frozen]) -> tuple[Any, ...]:
    if not isinstance(given, (list, tuple)) or not 1 <= len(given) <= MOST_CHOICES:
        count = len(given) if isinstance(given, (list, tuple)) else 0
        raise UsageError(f"{name}: {count} choices; give a list of 1 to {MOST_CHOICES}")
    checked = tuple(_checked(name, value, model) for value in given)
    if len({repr(value) for value in checked}) < len(checked):
        raise UsageError(f"{name}: a choice is given twice in {_shown(given)}; give each once")
    return checked


def _condition(
    name: str, given: Any, before: Mapping[str, Dimension]
) -> Mapping[str, tuple[Any, ...]] | None:
    if given is None:
        return None
    if not isinstance(given, Mapping) or not given:
        raise UsageError(f"{name}: when is {_shown(given)}; write {{field: value}}")
    conditions = {}
    for other, values in given.items():
        other = str(other).replace("-", "_")
        dimension = before.get(other)
        if dimension is None or not dimension.choices:
            raise UsageError(
                f"{name}: when names {_shown(other)}; give a field with choices that stands before"
            )
        wanted = tuple(values) if isinstance(values, (list, tuple)) else (values,)
        missing = next((value for value in wanted if not dimension.holds(value)), None)
        if missing is not None or not wanted:
            raise UsageError(f"{name}: when {other} is {_shown(missing)}, which is none of its choices")
        conditions[other] = wanted
    return conditions


def _holds(dimension: Dimension, settings: Mapping[str, Any]) -> bool:
    return all(settings.get(other) in values for other, values in (dimension.when or {}).items())


def _checked(name: str, value: Any, model: type[Frozen]) -> Any:
    """A value as the field has it, within the field's own limits."""
    if isinstance(value, list):
        value = tuple(value)
    try:
        return getattr(model.model_validate({name: value}), name)
    except ValidationError as error:
        field, mistake = first_mistake(error)
        raise UsageError(
            f"the space's {field} {mistake}; change it ({model.model_fields[field].description})"
        ) from None


def _number(name: str, bound: str, entry: Mapping[str, Any]) -> float:
    value = entry[bound]
    if isinstance(value, str):  # YAML takes 1e-3 for text
        try:
            value = float(value)
        except ValueError:
            value = None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UsageError(f"{name}: {bound} is {_shown(entry[bound])}, which is no number; write one")
    return value


def _kinds(model: type[Frozen], name: str) -> set[Any]:
    annotation = model.model_fields[name].annotation
    if get_origin(annotation) in (Union, UnionType):
        return set(get_args(annotation)) - {NoneType}
    return {annotation}


def _shown(value: Any) -> str:
    return shorten(value).strip("'")
