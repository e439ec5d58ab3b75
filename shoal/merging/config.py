"""Settings of the search for a merge."""

from __future__ import annotations

from pydantic import Field

from shoal.config import MAX_COUNT, MAX_WIDTH, EvolutionConfig

GENERATIONS = 12


class MergeSearchConfig(EvolutionConfig):
    """The search for the weights of a merge."""

    steps: int = Field(GENERATIONS, le=MAX_COUNT, ge=1, description="generations at most, also by the clock")
    batch_size: int = Field(30, le=MAX_WIDTH, ge=1, description="examples that judge a generation")
    sigma: float = Field(0.2, gt=0, le=1, description="first standard deviation of the weights")
    layer_groups: int = Field(
        3, le=MAX_WIDTH, ge=1, description="groups of neighbouring layers with weights of their own"
    )
    checkpoint_every: int = Field(1, le=MAX_COUNT, ge=1, description="generations between checkpoints")
