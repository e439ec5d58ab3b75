"""Settings of the benchmark."""

from __future__ import annotations

from pydantic import Field

from shoal.config import DEFAULT_MODEL, MAX_COUNT, MAX_WIDTH, Frozen


class BenchmarkConfig(Frozen):
    """Methods that are compared, their tasks and their effort."""

    base: str = Field(DEFAULT_MODEL, description="base model: alias, directory or hub id")
    methods: tuple[str, ...] = Field(
        ("base", "lora", "text-to-lora", "transformer2"),
        min_length=1,
        description="what is compared; base alone is what the others are measured against",
    )
    tasks: str | None = Field(
        None, description="directory of task data, whose validation tasks are used; none means tasks in code"
    )
    num_tasks: int = Field(16, le=MAX_COUNT, ge=1, description="tasks, evenly chosen from all there are")
    examples: int = Field(20, le=MAX_COUNT, ge=1, description="test examples per task")
    lora_steps: int = Field(40, le=MAX_COUNT, ge=1, description="optimiser steps of each classic LoRA")
    lora_batch: int = Field(8, le=MAX_WIDTH, ge=1, description="examples per step of it")
    max_new_tokens: int = Field(40, le=MAX_WIDTH, ge=1, description="limit of an answer, in tokens")
    single_requests: int = Field(4, le=MAX_COUNT, ge=1, description="requests per task that are timed singly")
    base_questions: int = Field(
        32, le=32, ge=1, description="general questions that say what an adapter made the model forget"
    )
    shapes: bool = Field(True, description="also measure adapters for the shapes of larger models")
    seed: int = Field(0, lt=2**63, ge=0, description="of tasks made in code and of LoRA training")
