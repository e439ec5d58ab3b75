"""Settings of `shoal merge`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Merging(BaseModel):
    """Parents and method of a merge, and its target."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adapter: Mapping[str, str] = Field(
        default_factory=dict,
        description="a parent: NAME=DIR, NAME=ADAPTER[@VERSION] of the registry, or NAME='describe: TEXT', "
        "which is generated; give two or more",
    )
    model: tuple[str, ...] = Field(
        (), description="a whole model, fine-tuned from --base: a directory; give two or more"
    )
    method: str | None = Field(
        None,
        description="how to merge; none means regmean with --inputs, else linear, and with --evolve the sum",
    )
    weights: tuple[float, ...] = Field((), description="of each parent, in order; none means 1 each")
    parameters: tuple[str, ...] = Field((), description="of the method, as density=0.5,lambda=0.7")
    inputs: tuple[str, ...] = Field(
        (), description="for regmean: FILE of 16 or more inputs, or NAME=FILE for each parent; or task files"
    )
    start: Path | None = Field(
        None, description="adapter that the parents were trained on from; deltas count from it"
    )
    rank: int = Field(16, ge=1, description="of the result at most; vLLM serves 16 without a flag")
    evolve: bool = Field(
        False, description="search for weights by groups of layers, and for densities, with --tasks"
    )
    tasks: str | None = Field(
        None,
        description="of the parents: training examples judge in --evolve, test ones say whether to merge",
    )
    generations: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="of --evolve at most; none means 12, or as many as --budget allows",
    )
    budget: str | None = Field(None, description="of --evolve at most: 90s, 15m or 1.5h")
    run: Path | None = Field(
        None, description="of --evolve: folder of the search, which goes on there; none means OUT.run"
    )
    front: Path | None = Field(
        None,
        description="of --evolve: folder for an adapter of every trade-off, by the task that it leans to",
    )
    seed: int = Field(0, description="of random masks and of the search")
    out_dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        None, description="of the result; none means the recipe's, else the parents' own"
    )
    out: Path = Field(description="directory to write")


class Exact(BaseModel):
    """Weights and rank of a weighted sum, and its target."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: tuple[float, ...] = Field(
        (), description="of each adapter, in their order; none means equal shares"
    )
    rank: int | None = Field(
        None,
        ge=1,
        description="rank of the result, by singular value decomposition; none means the sum of the ranks",
    )
    out: Path = Field(description="PEFT directory to write")


class Base(BaseModel):
    """Base model of adapters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str | None = Field(None, description="base model, where the adapters name none")


WHOLE_RANK = 2**20  # above any sum of ranks
