"""Settings of learning how a network's adapters are refined."""

from __future__ import annotations

from pydantic import Field

from shoal.config import MAX_COUNT, MAX_WIDTH, Frozen


class RefiningTrainingConfig(Frozen):
    """Learning how to refine on few examples: curves that tell when to stop, then rates and decay."""

    shots: tuple[int, ...] = Field(
        (2, 4, 8, 16, 32, 64), min_length=1, description="numbers of examples that steps are learned for"
    )
    queries: int = Field(
        16, le=MAX_WIDTH, ge=1, description="other examples of a task, on which refining is judged"
    )
    curve_tasks: int = Field(
        12,
        le=MAX_COUNT,
        ge=1,
        description="tasks whose curves are drawn, for each number, and tasks that choose",
    )
    max_steps: int = Field(64, le=1000, ge=4, description="optimiser steps of a curve, at most")
    episodes: int = Field(
        48, le=MAX_COUNT, ge=0, description="trainings that rates and decay are learned from; 0 for none"
    )
    episodes_a_step: int = Field(4, le=MAX_WIDTH, ge=1, description="of these for a step of rates and decay")
    rate_step: float = Field(0.15, gt=0, le=1, description="step of the logarithm of a rate")
    decay_step: float = Field(0.003, ge=0, le=0.1, description="step of the decay towards the start")
    learning_rate: float = Field(1e-3, ge=1e-6, le=1e-1, description="of every module at first")
    held_out: float = Field(0.2, gt=0, lt=1, description="share of the tasks that chooses what is kept")
    max_length: int = Field(256, le=MAX_COUNT, ge=8, description="tokens; longer examples are left out")
    seed: int = Field(0, lt=2**63, ge=0, description="of tasks, examples and their order")
