"""`shoal compare` and `shoal scaling`: base models side by side, without loading their weights."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from shoal.apps.cli.model import AdapterSizes, GeneratedSizes
from shoal.apps.cli.settings import Output
from shoal.errors import ShoalError

if TYPE_CHECKING:
    from shoal.evaluation.compare import ComparedModel


class Comparing(BaseModel):
    """Base models, and descriptions to compare them on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[str, ...] = Field(
        ("smollm2-135m-instruct", "microsoft/DialoGPT-small", "gpt2-medium"),
        description="base models: aliases, directories or hub ids",
    )
    prompt: str | None = Field(None, description="the description; none means the guide's three examples")


def compare(comparing: Comparing, sizes: GeneratedSizes) -> Output:
    """Compare base models on the same descriptions.

    Shown are the time from a description to its adapter, the memory that the generator adds, the adapter's
    size and the skills. No base model's weights are loaded.
    """
    from shoal.evaluation.compare import GUIDE_PROMPTS, compare_models, comparison_table

    prompts = GUIDE_PROMPTS if comparing.prompt is None else (comparing.prompt,)
    rows = compare_models(comparing.models, prompts, sizes)
    if all(row.failure is not None for row in rows):
        raise ShoalError(f"no base model gave an adapter; {rows[0].base_model}: {rows[0].failure}")
    record = {"prompts": list(prompts), "models": [asdict(row) for row in rows]}
    return Output(record, comparison_table(rows) + "\n\n" + _skills(prompts, rows))


def _skills(prompts: tuple[str, ...], rows: list[ComparedModel]) -> str:
    """Skills are read from the description alone, so every base model has the same."""
    first = next(row for row in rows if row.failure is None)
    pairs = zip(prompts, first.skills, strict=True)
    return "\n".join(
        f"{prompt}: {', '.join(skills) or 'none of the known skills'}" for prompt, skills in pairs
    )


def scaling(sizes: AdapterSizes) -> Output:
    """Measure what an adapter costs as base models grow.

    The shapes are those of GPT-2 small and medium and of Llama-7B; each runs in a process of its own.
    """
    from shoal.evaluation.scaling import GUIDE_SHAPES, measure_shapes, scaling_table

    costs = measure_shapes(tuple(GUIDE_SHAPES.values()), sizes)
    return Output({"shapes": [asdict(cost) for cost in costs]}, scaling_table(costs))
