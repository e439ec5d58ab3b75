"""All that a study is besides what it trains and the space of its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.tuning.limits import Limit


@dataclass(frozen=True)
class StudyPlan:
    """All that a study is besides its workload and space.

    Attributes:
        name: of the study in its storage.
        sampler: one of `SAMPLERS`.
        pruner: one of `PRUNERS`.
        budget: seconds for search and confirmation; the first trial turns them into tokens.
        trials: of the search, at most.
        seed: of proposals and runs.
        first: settings that are tried after the defaults.
        limits: that settings must keep.
        second: name of what is kept small beside the loss, one of `SMALL`; such trials are not pruned.
    """

    name: str
    sampler: str = "tpe"
    pruner: str = "median"
    budget: float | None = None
    trials: int | None = None
    seed: int = 0
    first: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    limits: Sequence[Limit] = ()
    second: str | None = None
