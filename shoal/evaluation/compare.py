"""Several base models side by side on the same prompts: the time an adapter takes, memory, skills.

Adapters come through `SakanaAIIntegration`, as the guide's loop makes them. Each base model is measured in
this process, one after the other; memory is what its generator added. Knows nothing of how adapters are made.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shoal.config import TextToLoRAConfig
from shoal.errors import ShoalError, UsageError
from shoal.integration import SakanaAIIntegration
from shoal.process import resident

GUIDE_PROMPTS = (
    "Make this model excel at code generation and debugging",
    "Optimize this model for mathematical reasoning and problem solving",
    "Enhance creative writing and storytelling capabilities",
)


@dataclass(frozen=True)
class ComparedModel:
    """One base model's row.

    Attributes:
        base_model: as it was named.
        seconds: from each prompt to its adapter, in their order.
        memory: bytes that the process held more after the first adapter than before.
        skills: detected in each prompt.
        adapter_parameters: of one adapter.
        trained: whether a trained hypernetwork made the adapters; else they change nothing.
        confidence: mean trust in the descriptions, in [0, 1]; None where that is not known.
        failure: why there are no adapters; the other fields are then empty.
    """

    base_model: str
    seconds: tuple[float, ...] = ()
    memory: int = 0
    skills: tuple[tuple[str, ...], ...] = ()
    adapter_parameters: int = 0
    trained: bool = False
    confidence: float | None = None
    failure: str | None = None


def compare_models(
    models: Sequence[str],
    prompts: Sequence[str] = GUIDE_PROMPTS,
    config: TextToLoRAConfig | None = None,
) -> list[ComparedModel]:
    """One row a base model; one that fails has a row that says why, and the others go on.

    Args:
        models: aliases, directories or hub ids.
        prompts: descriptions.
        config: of the adapters; by default the guide's, or that of a trained hypernetwork.

    Raises:
        UsageError: no models, no prompts, or one model twice.
    """
    for kind, given in (("models", models), ("prompts", prompts)):
        if isinstance(given, str) or not given or len(set(given)) != len(given):
            raise UsageError(f"{kind} {given!r}: at least 1 is needed, each once, as a list; correct it")
    integration = SakanaAIIntegration(config)
    # What all models share is loaded before any of them is measured.
    integration.metrics()
    return [_row(integration, model, prompts) for model in models]


def comparison_table(rows: Sequence[ComparedModel]) -> str:
    """The rows as Markdown."""
    lines = [
        "| base model | description to adapter | memory added | adapter | trained | confidence |",
        "|---|---:|---:|---:|---|---:|",
    ]
    for row in rows:
        if row.failure is not None:
            lines.append(f"| {row.base_model} | failed: {row.failure.replace('|', '/')} | | | | |")
            continue
        known = "" if row.confidence is None else f"{row.confidence:.2f}"
        cells = [
            row.base_model,
            f"{statistics.median(row.seconds) * 1e3:.0f} ms",
            f"{row.memory / 1e6:.0f} MB",
            f"{row.adapter_parameters / 1e6:.2f}M parameters",
            "yes" if row.trained else "no: the identity",
            known,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _row(integration: SakanaAIIntegration, model: str, prompts: Sequence[str]) -> ComparedModel:
    before = resident()
    results: list[dict[str, Any]] = []
    memory = 0
    try:
        for prompt in prompts:
            results.append(integration.generate_adapter_from_text(prompt, model))
            memory = memory or max(0, resident() - before)
    except ShoalError as error:
        return ComparedModel(model, failure=str(error))
    infos = [r["adapter_info"] for r in results]
    trust = [i["hypernetwork"]["confidence"] for i in infos if "confidence" in i["hypernetwork"]]
    return ComparedModel(
        model,
        seconds=tuple(r["duration"] for r in results),
        memory=memory,
        skills=tuple(tuple(i["detected_skills"]) for i in infos),
        adapter_parameters=sum(t.numel() for t in infos[0]["adapters"].values()),
        trained=bool(infos[0]["hypernetwork"]["trained"]),
        confidence=statistics.mean(trust) if trust else None,
    )
