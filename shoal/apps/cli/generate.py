"""`shoal generate` and `shoal ask`: an adapter from a sentence, and answers of the model that it adapts."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, Field

from shoal.apps.cli.settings import Only, Output
from shoal.config import TextToLoRAConfig
from shoal.errors import ShoalError, UsageError

if TYPE_CHECKING:
    from shoal.adapters.files import StoredAdapter
    from shoal.adapters.lora import LoRA
    from shoal.models.backbone import Backbone
    from shoal.text_to_lora.generated_adapter import GeneratedAdapter

log = logging.getLogger(__name__)

BASE_HELP = "base model: alias, directory or hub id; none means the default (see `shoal models`)"
HYPERNETWORK_HELP = "directory of a hypernetwork; none means the shipped one for the base model"
AdapterSizes = Annotated[
    TextToLoRAConfig, Only("adapter_rank", "adapter_alpha", "num_layers_to_adapt", "target_modules")
]


class Place(BaseModel):
    """Where a model computes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str | None = Field(None, description=BASE_HELP)
    device: str | None = Field(None, description="cuda, mps or cpu; none means the best there is")
    dtype: str | None = Field(
        None, description="float32, bfloat16 or float16; none means what the device is fast in"
    )


class Generating(BaseModel):
    """What `generate` reads and writes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str | None = Field(None, description=BASE_HELP)
    out: Path | None = Field(None, description="write the adapter there, as a PEFT directory")
    gguf: Path | None = Field(None, description="also write it to this file, for llama.cpp")
    hypernetwork: Path | None = Field(None, description=HYPERNETWORK_HELP)
    examples: Path | None = Field(
        None,
        description="JSONL of at least 4 solved examples (`input`, `output`) to train the adapter on for "
        "some seconds; loads the base model",
    )


class Asking(BaseModel):
    """With which adapter `ask` answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    describe: str | None = Field(None, description="answer with the adapter of this task description")
    adapter: Path | None = Field(None, description="answer with the adapter in this directory")
    expert: Path | None = Field(None, description="answer with the expert or mixture in this directory")
    transformer2: bool = Field(
        False, description="let the model choose one of its experts for the request, or none"
    )
    experts: Path | None = Field(
        None, description="with --transformer2: directory of experts; none means the shipped ones"
    )
    strength: float = Field(1.0, ge=0, description="of an expert: 0 is the base model, 1 is as trained")
    hypernetwork: Path | None = Field(None, description=HYPERNETWORK_HELP)
    max_new_tokens: int = Field(128, ge=1, description="limit of the answer, in tokens")


def generate(
    description: Annotated[str, typer.Argument(help="what the adapter shall do, in English")],
    files: Generating,
    sizes: AdapterSizes,
) -> Output:
    """Turn a task description into a LoRA adapter.

    The base model's weights are loaded only if the hypernetwork reads its states, or with --examples.
    """
    from shoal.adapters.files import ADAPTER_FILES
    from shoal.files import check_place, check_writable
    from shoal.models.backbone import DEFAULT_MODEL
    from shoal.tasks.loading import load_jsonl
    from shoal.text_to_lora.generator import TextToLoRA

    base = files.base or DEFAULT_MODEL
    generator = TextToLoRA(base, sizes, hypernetwork=files.hypernetwork)
    if files.out is not None:  # before any work
        check_place(files.out, ADAPTER_FILES)
    if files.gguf is not None:
        check_writable(files.gguf)
    solved = load_jsonl(files.examples, definition=description, test_size=0).train if files.examples else ()
    adapter = generator.generate(description, solved)
    _write(adapter, files)
    written = {name: str(path) for name, path in (("gguf", files.gguf), ("out", files.out)) if path}
    record = {
        "description": adapter.description,
        "skills": dict(adapter.skills.weights),
        "rank": adapter.lora.rank,
        "alpha": adapter.lora.alpha,
        "modules": len(adapter.lora.factors),
        "hypernetwork": adapter.hypernetwork,
        "seconds": adapter.duration,
        "written": written,
    }
    return Output(record, _about(adapter, written))


def ask(
    request: Annotated[str, typer.Argument(help="the input; `-` reads standard input")],
    place: Place,
    choice: Asking,
) -> Output:
    """Answer a request, with an adapter or an expert, or without.

    --describe, --adapter, --expert and --transformer2 choose one; the base model answers by itself where none
    is given.
    """
    _check_choice(choice)
    text = sys.stdin.read() if request == "-" else request
    if not text.strip():
        raise UsageError(
            f"the request {text!r} is blank; at least 1 visible character is needed, ask something"
        )
    from shoal.inference.generate import generate_greedy

    base, lora, facts = _chosen(place.base, choice)
    backbone = load(place, base)
    expert: dict[str, Any] = {}
    started = time.perf_counter()
    with ExitStack() as stack:
        if choice.transformer2 or choice.expert is not None:
            expert = _attach_expert(stack, backbone, text, choice)
        answer = generate_greedy(backbone, [text], lora, max_new_tokens=choice.max_new_tokens)[0]
    seconds = time.perf_counter() - started
    record = {
        "request": text,
        "answer": answer,
        "base_model": backbone.shape.base_model,
        "description": choice.describe,
        "adapter": str(choice.adapter) if choice.adapter else None,
        "hypernetwork": facts,
        **expert,
        "seconds": seconds,
    }
    return Output(record, answer)


def _check_choice(choice: Asking) -> None:
    """See that one thing answers, and that every flag belongs to it."""
    ways = {
        "--describe": choice.describe is not None,
        "--adapter": choice.adapter is not None,
        "--expert": choice.expert is not None,
        "--transformer2": choice.transformer2,
    }
    given = [way for way, chosen in ways.items() if chosen]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} are given; one of them answers, leave the other out")
    if choice.hypernetwork is not None and choice.describe is None:
        raise UsageError("--hypernetwork makes adapters of descriptions; give --describe, or leave it out")
    if choice.experts is not None and not choice.transformer2:
        raise UsageError("--experts is what --transformer2 chooses from; give both, or leave it out")
    if "strength" in choice.model_fields_set and not choice.transformer2 and choice.expert is None:
        raise UsageError("--strength is that of an expert; give --transformer2 or --expert, or leave it out")


def _attach_expert(stack: ExitStack, backbone: Backbone, text: str, choice: Asking) -> dict[str, Any]:
    """Attach the chosen expert until the stack is left; what was chosen."""
    from shoal.adapters.svf_hooks import attach_expert
    from shoal.transformer2.experts import load_alone

    if choice.expert is not None:
        stored, basis = load_alone(choice.expert, backbone.model)
        stack.enter_context(attach_expert(backbone.model, basis, stored.expert.strengthened(choice.strength)))
        return {"expert": str(choice.expert), "skill": stored.skill}
    import torch

    from shoal.config import Transformer2Config
    from shoal.transformer2.model import Transformer2

    settings = Transformer2Config(expert_vector_dim=None, adaptation_strength=choice.strength)
    model = Transformer2.shipped(backbone.model, settings, folder=choice.experts)
    decisions = model.decide(torch.tensor([backbone.encode_prompt(text)], device=backbone.device))
    stack.enter_context(model.adapted(decisions))
    return {"skill": decisions[0].skill, "probabilities": dict(decisions[0].probabilities)}


def load(place: Place, base: str | None = None) -> Backbone:
    """The base model of a command.

    Raises:
        UsageError: no such model, device or dtype.
        ShoalError: the model is damaged.
    """
    import torch

    from shoal.models.backbone import DEFAULT_MODEL, DTYPES, load_backbone

    if place.dtype is not None and place.dtype not in DTYPES:
        raise UsageError(f"--dtype {place.dtype}: choose from {', '.join(DTYPES)}")
    try:
        device = torch.device(place.device) if place.device else None
    except RuntimeError:
        raise UsageError(f"--device {place.device}: choose from cuda, mps, cpu") from None
    dtype = DTYPES[place.dtype] if place.dtype else None
    return load_backbone(base or place.base or DEFAULT_MODEL, device=device, dtype=dtype)


def _chosen(base: str | None, choice: Asking) -> tuple[str | None, LoRA | None, Mapping[str, Any] | None]:
    """The base model to load, by default that of the adapter; the adapter; what is known of its generator."""
    from shoal.models.backbone import DEFAULT_MODEL

    if choice.adapter is not None:
        from shoal.adapters.files import load_adapter

        stored = load_adapter(choice.adapter)
        if base is None and stored.base_model is None:
            log.warning("%s names no base model; it is put on %s", choice.adapter, DEFAULT_MODEL)
        warn_of_another_base(stored, base, choice.adapter)
        return base or stored.base_model, stored.lora, None
    if choice.describe is not None:
        from shoal.text_to_lora.encoders.sentence import check_description
        from shoal.text_to_lora.generator import TextToLoRA

        check_description(choice.describe)  # before the slower search for a model
        generator = TextToLoRA(base or DEFAULT_MODEL, hypernetwork=choice.hypernetwork)
        adapter = generator.generate(choice.describe)
        return base, adapter.lora, adapter.hypernetwork
    return base, None, None


def warn_of_another_base(stored: StoredAdapter, base: str | None, directory: Path) -> None:
    """Say where an adapter is put on another base model than it names; the shapes may fit all the same."""
    from shoal.models.backbone import load_shape

    if base is not None and not stored.made_for(load_shape(base).base_model):
        log.warning("%s is for %s, and is put on %s", directory, stored.base_model, base)


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
    from shoal.models.sources import find_model, known_config, read_config

    base = adapter.shape.base_model
    config = known_config(base) or read_config(find_model(base))
    export_gguf(adapter.lora, path, config=config, name=adapter.description[:64])


def _about(adapter: GeneratedAdapter, written: dict[str, Any]) -> str:
    from shoal.text_to_lora.generated_adapter import few_shot_note

    lora, facts = adapter.lora, adapter.hypernetwork
    skills = ", ".join(f"{name} ({weight:.0%})" for name, weight in adapter.skills.weights.items())
    layers = len({t.layer for t in adapter.shape.targets if t.name in lora.factors})
    size = f"rank {lora.rank}, alpha {lora.alpha:g}, {len(lora.factors)} modules in {layers} layers"
    rows = {
        "description": adapter.description,
        "skills": skills or "none of the known ones",
        "base model": adapter.shape.base_model,
        "adapter": size,
        "trained": "yes"
        if adapter.trained
        else f"no: it changes nothing; train with {facts.get('how_to_train')}",
        "nearest task": _nearest(facts),
        "examples": few_shot_note(facts["few_shot"]) if "few_shot" in facts else None,
        "generated in": f"{adapter.duration * 1000:.0f} ms",
        "written to": ", ".join(written.values()) or "nowhere; give --out DIR",
    }
    return "\n".join(f"{name + ':':14}{value}" for name, value in rows.items() if value)


def _nearest(facts: Mapping[str, Any]) -> str | None:
    """What the description has to do with the training tasks, where those are known."""
    if "confidence" not in facts:
        return None
    name, confidence = next(iter(facts["nearest_tasks"])), facts["confidence"]
    text = f"{name}, distance {facts['distance']:.2f}, confidence {confidence:.2f}"
    if facts["nonsense"]:
        return f"{text}: the description reads as nonsense, so it gets the adapter of no task"
    return text if confidence == 1 else f"{text}: far from all training tasks, so less sure"
