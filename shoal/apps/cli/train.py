"""`shoal train`: a LoRA for one task, one for many, or a hypernetwork; experts have a module of their own."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from shoal.apps.cli.model import AdapterSizes, Place, load, warn_of_another_base
from shoal.apps.cli.settings import Only, Output, check_extra
from shoal.apps.cli.tasks import Data, divided
from shoal.config import (
    HypernetworkTrainingConfig,
    LoraTrainingConfig,
    TextToLoRAConfig,
)
from shoal.errors import UsageError

if TYPE_CHECKING:
    from shoal.tasks.loading import Task
    from shoal.training.loop import RunSummary

HypernetworkTraining = Annotated[
    HypernetworkTrainingConfig,
    # a description in the prompt would make the adapter's own one superfluous
    Only(*(name for name in HypernetworkTrainingConfig.model_fields if name != "describe")),
]
# What acts on descriptions or answers in SFT alone, each at 0 by default.
ANSWERS_ALONE = (
    "contrastive_weight",
    "description_dropout",
    "nonsense",
    "embedding_noise",
    "token_dropout",
    "label_smoothing",
)


class Steering(BaseModel):
    """What a hypernetwork learns from, besides the tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adapters: Path | None = Field(
        None, description="for reconstruction: folder of one adapter directory a task"
    )
    max_descriptions: int | None = Field(
        None, ge=1, description="first descriptions of each task that are used"
    )
    monitor_examples: int = Field(4, ge=0, description="examples of each held-out task to watch the loss on")


def train_lora(place: Place, data: Data, sizes: AdapterSizes, training: LoraTrainingConfig) -> Output:
    """Train a LoRA on one task.

    It is written as a PEFT directory. The same command resumes a run that was stopped.
    """
    tasks = [task for part in divided(data) for task in part]
    if len(tasks) != 1:
        raise UsageError(
            f"--tasks {data.tasks} gives {len(tasks)} tasks, one is trained here; name it with --task, or "
            "use `shoal train multi-task`"
        )
    return _train_adapter(place, data, sizes, training, tasks, ())


def train_multi_task(place: Place, data: Data, sizes: AdapterSizes, training: LoraTrainingConfig) -> Output:
    """Train one LoRA on many tasks.

    It is written as a PEFT directory. The same command resumes a run that was stopped.
    """
    split = divided(data)
    return _train_adapter(place, data, sizes, training, split[0], split[1])


def train_text_to_lora(
    place: Place, data: Data, steering: Steering, sizes: TextToLoRAConfig, training: HypernetworkTraining
) -> Output:
    """Train the hypernetwork.

    It turns descriptions into LoRAs. The same command resumes a run that was stopped.
    """
    check_extra("training", "train", "accelerate", "tensorboard", "tqdm")
    tasks, held_out = divided(data)
    reconstruct = training.objective == "reconstruction"
    if reconstruct != (steering.adapters is not None):
        fix = "needs --adapters DIR" if reconstruct else "takes no --adapters; add --objective reconstruction"
        raise UsageError(f"--objective {training.objective} {fix}")
    for name in ANSWERS_ALONE if reconstruct else ():
        if value := getattr(training, name):
            flag = name.replace("_", "-")
            raise UsageError(
                f"--{flag} {value:g}: reconstruction reads no answers and ignores it; set it to 0"
            )
    from shoal.adapters.files import load_adapter
    from shoal.models.backbone import DEFAULT_MODEL, Backbone, load_shape
    from shoal.text_to_lora.heads import READINGS
    from shoal.text_to_lora.recipe import load_start, make_hypernetwork, make_hypernetwork_from_adapters

    common: dict[str, Any] = {
        "sizes": sizes,
        "training": training,
        "run": data.run_folder,
        "start": load_start(data.start) if data.start else None,
        "max_descriptions": steering.max_descriptions,
        "show_progress": sys.stderr.isatty(),
    }
    if steering.adapters is not None:
        reads_states = READINGS.get(sizes.head) == "states"
        base = load(place) if reads_states else load_shape(place.base or DEFAULT_MODEL)
        name = base.shape.base_model if isinstance(base, Backbone) else base.base_model
        folders = [steering.adapters / task.name for task in tasks]
        stored = [load_adapter(folder) for folder in folders]
        for adapter, folder in zip(stored, folders, strict=True):
            warn_of_another_base(adapter, name, folder)
        loras = [adapter.lora for adapter in stored]
        summary = make_hypernetwork_from_adapters(base, tasks, loras, data.out, **common)
    else:
        watched: dict[str, Any] = {"held_out": held_out, "monitor_examples": steering.monitor_examples}
        summary = make_hypernetwork(load(place), tasks, data.out, **watched, **common)
    return summarised(summary, data, len(tasks), "hypernetwork")


def _train_adapter(
    place: Place,
    data: Data,
    sizes: TextToLoRAConfig,
    training: LoraTrainingConfig,
    tasks: Sequence[Task],
    held_out: Sequence[Task],
) -> Output:
    check_extra("training", "train", "accelerate", "tensorboard", "tqdm")
    from shoal.text_to_lora.recipe import load_start, make_lora

    summary = make_lora(
        load(place),
        tasks,
        data.out,
        sizes=sizes,
        training=training,
        run=data.run_folder,
        start=load_start(data.start) if data.start else None,
        held_out=held_out,
        show_progress=sys.stderr.isatty(),
    )
    return summarised(summary, data, len(tasks), "adapter")


def summarised(summary: RunSummary, data: Data, tasks: int, kind: str) -> Output:
    """What a training says at its end."""
    record: Mapping[str, Any] = {
        **asdict(summary),
        "tasks": tasks,
        "out": str(data.out),
        "run": str(data.run_folder),
    }
    text = (
        f"trained on {tasks} task{'s' * (tasks != 1)}: {summary.steps} steps, {summary.tokens:,} tokens, "
        f"{summary.seconds:.0f} s, loss {summary.final_loss:.3f}\n"
        f"{kind} written to {data.out}, checkpoints and logs to {data.run_folder}"
    )
    return Output(record, text)
