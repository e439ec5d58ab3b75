"""`shoal generate`: an adapter from a sentence."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field

from shoal.apps.cli.model import HYPERNETWORK_HELP, GeneratedSizes, Place, check_directories, usable_place
from shoal.apps.cli.settings import Output
from shoal.apps.cli.tasks import better, solved_examples
from shoal.config import CAREFUL_HELP, MIN_EXAMPLES, REFINE_HELP
from shoal.errors import ShoalError, UsageError, shorten

if TYPE_CHECKING:
    from shoal.tasks.loading import Example
    from shoal.text_to_lora.generated_adapter import GeneratedAdapter

log = logging.getLogger(__name__)

OPEN = ("none",)  # as labels: answers are not closed


class Generating(Place):
    """Files that `generate` reads and writes."""

    out: Path | None = Field(None, description="write the adapter there, as a PEFT directory")
    gguf: Path | None = Field(None, description="also write it to this file, for llama.cpp")
    hypernetwork: Path | None = Field(None, description=HYPERNETWORK_HELP)
    examples: Path | None = Field(
        None,
        description="JSONL of at least 4 solved examples (`input`, `output`) to train the adapter on; "
        "loads the base model",
    )
    refine: bool = Field(True, description=REFINE_HELP)
    careful: bool = Field(False, description=CAREFUL_HELP)
    suggest: int = Field(
        0,
        ge=0,
        le=64,
        description="with --examples and --inputs: name so many of the inputs that are worth labelling next",
    )
    inputs: Path | None = Field(
        None,
        description="at least 4 inputs without answers, one per line or JSONL (`input`), on which labels are "
        "calibrated and the adapter trained, in minutes; loads the base model",
    )
    labels: tuple[str, ...] | None = Field(
        None,
        description="the answers that there are, separated by commas; by default what the description names, "
        "else what at least 8 examples show; none leaves the answers open",
    )
    sample_inputs: bool = Field(
        False,
        description="in place of --inputs: inputs that the package ships, of the kind that fits the "
        "description best; for closed labels",
    )
    distil: bool = Field(
        False,
        description="with --inputs: no hypernetwork; teach the adapter what the base model answers with the "
        "description in its prompt, in minutes, for any base model",
    )


def generate(
    description: Annotated[str, typer.Argument(help="what the adapter shall do, in English")],
    files: Generating,
    sizes: GeneratedSizes,
) -> Output:
    """Turn a task description into a LoRA adapter.

    The base model's weights are loaded only if the hypernetwork reads its states, or with --examples,
    --inputs, --sample-inputs, --labels or --distil.
    """
    solved, inputs = _read(files, description)  # what is refused is refused before anything heavy is loaded
    from shoal.text_to_lora.encoders.sentence import check_description
    from shoal.text_to_lora.generator import TextToLoRA

    check_description(description)
    labels = () if files.labels == OPEN else files.labels
    chosen = usable_place(files)
    generator = TextToLoRA(
        files.base, sizes, device=chosen.device, dtype=chosen.dtype, hypernetwork=files.hypernetwork
    )
    if files.distil:
        adapter = generator.distil(description, inputs, labels=labels)
    else:
        adapter = generator.generate(
            description,
            solved,
            inputs=inputs,
            labels=labels,
            sample_inputs=files.sample_inputs,
            refine=files.refine,
            careful=files.careful,
            suggest=files.suggest,
        )
    _write(adapter, files)
    written = {name: str(path) for name, path in (("gguf", files.gguf), ("out", files.out)) if path}
    record = {
        "description": adapter.description,
        "skills": dict(adapter.skills.weights),
        "rank": adapter.lora.rank,
        "alpha": adapter.lora.alpha,
        "modules": len(adapter.lora.factors),
        "hypernetwork": adapter.hypernetwork,
        "label_set": adapter.label_set.model_dump(mode="json") if adapter.label_set else None,
        "seconds": adapter.duration,
        "written": written,
        "notes": adapter.notes,
    }
    return Output(record, _about(adapter, written, len(solved)))


def _read(files: Generating, description: str) -> tuple[Sequence[Example], Sequence[str]]:
    """(solved examples, inputs) of the files, after a look at every path; errors where one cannot be used."""
    from shoal.adapters.files import ADAPTER_FILES
    from shoal.files import check_place, check_writable
    from shoal.tasks.inputs import read_inputs

    others = files.examples or files.hypernetwork or files.sample_inputs
    if files.distil and (files.inputs is None or others):
        raise UsageError(
            "--distil learns from --inputs alone; give that file, and leave --examples, --sample-inputs and "
            "--hypernetwork out"
        )
    check_directories(hypernetwork=files.hypernetwork)
    if files.out is not None:
        check_place(files.out, ADAPTER_FILES)
    if files.gguf is not None:
        check_writable(files.gguf)
    fewest = MIN_EXAMPLES if files.refine else 1  # a network may read fewer
    solved = solved_examples(files.examples, description, fewest) if files.examples else ()
    return solved, read_inputs(files.inputs) if files.inputs else ()


def _write(adapter: GeneratedAdapter, files: Generating) -> None:
    """Write what is asked for; where the adapter cannot be written, a new GGUF goes too."""
    new = files.gguf is not None and not files.gguf.exists()
    if files.gguf is not None:
        _write_gguf(adapter, files.gguf)
    try:
        if files.out is not None:
            adapter.save(files.out)
    except ShoalError:
        if files.gguf is not None and new:
            files.gguf.unlink()
        raise


def _write_gguf(adapter: GeneratedAdapter, path: Path) -> None:
    from shoal.adapters.export import export_gguf
    from shoal.models.sources import find_config

    config = find_config(adapter.shape.base_model)
    export_gguf(adapter.lora, path, config=config, name=adapter.description[:64])


def _about(adapter: GeneratedAdapter, written: dict[str, Any], examples: int) -> str:
    from shoal.text_to_lora.generated_adapter import material_notes

    lora = adapter.lora
    facts = adapter.hypernetwork
    skills = ", ".join(f"{name} ({weight:.0%})" for name, weight in adapter.skills.weights.items())
    layers = len({t.layer for t in adapter.shape.targets if t.name in lora.factors})
    size = f"rank {lora.rank}, alpha {lora.alpha:g}, {len(lora.factors)} modules in {layers} layers"
    uncalibrated = adapter.label_set is not None and not {"self_training", "distilled"} & facts.keys()
    rows = {
        "description": adapter.description,
        "skills": skills or "none of the known ones",
        "base model": adapter.shape.base_model,
        "adapter": size,
        "trained": "yes" if adapter.trained else "no",
        "nearest task": _nearest(facts),
        "labels": ", ".join(adapter.label_set.labels) if adapter.label_set else None,
        **material_notes(facts),
        "label next": " | ".join(map(shorten, facts.get("next_examples", {}).get("inputs", ()))),
        "generated in": f"{adapter.duration * 1000:.0f} ms",
        "written to": ", ".join(written.values()) or "nowhere; give --out DIR",
        "better": better(examples, uncalibrated=uncalibrated) if adapter.trained else None,
    }
    return "\n".join(f"{name + ':':14}{value}" for name, value in rows.items() if value)


def _nearest(facts: Mapping[str, Any]) -> str | None:
    """The nearest training task with its distance, where it is known; `notes` say what follows."""
    if "confidence" not in facts:
        return None
    name = next(iter(facts["nearest_tasks"]))
    return f"{name}, distance {facts['distance']:.2f}, confidence {facts['confidence']:.2f}"
