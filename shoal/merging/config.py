"""Settings of the search for a merge, and the methods that it searches with."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from shoal.adapters.merging.methods import METHODS, method_of
from shoal.config import MAX_COUNT, MAX_WIDTH, EvolutionConfig
from shoal.errors import UsageError

GENERATIONS = 12
SUMS = ("task_arithmetic", "regmean")  # of which candidates share forward passes
REBUILT = tuple(
    name for name, m in METHODS.items() if m.form in ("elements", "subspace") and m.parameter("weight")
)


class MergeSearchConfig(EvolutionConfig):
    """The search for the weights of a merge."""

    steps: int = Field(GENERATIONS, le=MAX_COUNT, ge=1, description="generations at most, also by the clock")
    batch_size: int = Field(30, le=MAX_WIDTH, ge=1, description="examples that judge a generation")
    sigma: float = Field(0.2, gt=0, le=1, description="first standard deviation of the weights")
    layer_groups: int = Field(
        3, le=MAX_WIDTH, ge=1, description="groups of neighbouring layers with weights of their own"
    )
    checkpoint_every: int = Field(1, le=MAX_COUNT, ge=1, description="generations between checkpoints")


def check_searched(method: str, parameters: Mapping[str, float | bool], *, by_inputs: bool) -> None:
    """See that a search can move the weights of a method.

    Args:
        method: of the table.
        parameters: of it, which stay.
        by_inputs: True where inputs of the parents are given.

    Raises:
        UsageError: a method without weights that a search moves, parameters that it does not take or that the
            search finds itself, or inputs that are missing or not read.
    """
    known = method_of(method)
    if method not in (*SUMS, *REBUILT):
        raise UsageError(f"a search moves no weights of {method}; choose from {', '.join((*SUMS, *REBUILT))}")
    if (method == "regmean") != by_inputs:
        raise UsageError(
            f"{method} {'reads no inputs' if by_inputs else 'needs inputs of every parent'}; regmean alone "
            "reads them"
        )
    for name, value in parameters.items():
        parameter = None if method in SUMS or name == "weight" else known.parameter(name)
        if parameter is None:
            kept = [p.name for p in known.parameters if p.name != "weight" and method not in SUMS]
            raise UsageError(
                f"a search with {method} takes no parameter {name!r}; it keeps {', '.join(kept) or 'none'}"
            )
        parameter.check(value)
