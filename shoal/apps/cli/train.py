"""`shoal train`: a LoRA for one task, one for many, or a hypernetwork; experts have a module of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from shoal.apps.cli.model import AdapterSizes, Place, check_directories, load, shape_of, warn_of_another_base
from shoal.apps.cli.settings import Only, Output, check_extra
from shoal.apps.cli.tasks import Data, divided
from shoal.config import (
    HypernetworkTrainingConfig,
    LoraTrainingConfig,
    TextToLoRAConfig,
)
from shoal.errors import UsageError

if TYPE_CHECKING:
    from shoal.models.backbone import BackboneShape
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
    "shots",
    "inner_steps",
    "label_smoothing",
    "length_exponent",
    "label_mass_weight",
    "rehearse",
)


class Steering(BaseModel):
    """Adapters and descriptions that a hypernetwork learns from, besides the tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adapters: Path | None = Field(
        None, description="for reconstruction: folder with an adapter directory per task"
    )
    max_descriptions: int | None = Field(
        None, ge=1, description="first descriptions of each task that are used"
    )
    old_descriptions: Path | None = Field(
        None,
        description="for --rehearse: text file with an old description a line; none means those that come "
        "with the package, of tasks that the network knows",
    )
    monitor_examples: int = Field(4, ge=0, description="examples of each held-out task to watch the loss on")


def train_lora(place: Place, data: Data, sizes: AdapterSizes, training: LoraTrainingConfig) -> Output:
    """Train a LoRA on one task.

    It is written as a PEFT directory. The same command resumes a run that was stopped.
    """
    check_directories(start=data.start)
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
    check_directories(start=data.start)
    split = divided(data)
    return _train_adapter(place, data, sizes, training, split[0], split[1])


def train_text_to_lora(
    place: Place, data: Data, steering: Steering, sizes: TextToLoRAConfig, training: HypernetworkTraining
) -> Output:
    """Train the hypernetwork.

    It turns descriptions into LoRAs. The same command resumes a run that was stopped.
    """
    check_extra("training", "train", "accelerate", "tensorboard", "tqdm")
    _check_objective(training, steering)
    check_directories(start=data.start, adapters=steering.adapters)
    tasks, held_out = divided(data)
    from shoal.text_to_lora.recipe import check_network_training, make_hypernetwork
    from shoal.text_to_lora.rehearsal import old_descriptions
    from shoal.text_to_lora.starts import load_start

    shape = shape_of(place)
    common: dict[str, Any] = {
        "sizes": sizes,
        "training": training,
        "run": data.run_folder,
        "start": load_start(data.start) if data.start else None,
        "max_descriptions": steering.max_descriptions,
    }
    own = {name: common[name] for name in ("sizes", "training", "run", "start")}
    check_network_training(shape, data.out, **own)
    if steering.adapters is not None:
        summary = _reconstruct(place, shape, tasks, steering.adapters, data.out, common)
    else:
        watched: dict[str, Any] = {"held_out": held_out, "monitor_examples": steering.monitor_examples}
        old = old_descriptions(common["start"], tasks, steering.old_descriptions) if training.rehearse else ()
        summary = make_hypernetwork(load(place), tasks, data.out, old=old, **watched, **common)
    return summarised(summary, data, len(tasks), "hypernetwork")


def _check_objective(training: HypernetworkTrainingConfig, steering: Steering) -> None:
    """See that every flag acts on what the hypernetwork learns from."""
    reconstruct = training.objective == "reconstruction"
    if reconstruct != (steering.adapters is not None):
        fix = "needs --adapters DIR" if reconstruct else "takes no --adapters; add --objective reconstruction"
        raise UsageError(f"--objective {training.objective} {fix}")
    if steering.old_descriptions is not None and not training.rehearse:
        raise UsageError("--old-descriptions are rehearsed, and --rehearse is 0; add --rehearse 1")
    for name in ANSWERS_ALONE if reconstruct else ():
        if value := getattr(training, name):
            flag = name.replace("_", "-")
            raise UsageError(
                f"--{flag} {value:g}: reconstruction reads no answers and ignores it; set it to 0"
            )


def _reconstruct(
    place: Place,
    shape: BackboneShape,
    tasks: Sequence[Task],
    adapters: Path,
    out: Path,
    common: Mapping[str, Any],
) -> RunSummary:
    """Train on one adapter per task, each in a folder of the task's name."""
    from shoal.adapters.files import load_adapter
    from shoal.text_to_lora.heads import HEADS
    from shoal.text_to_lora.recipe import make_hypernetwork_from_adapters

    folders = [adapters / task.name for task in tasks]
    stored = [load_adapter(folder) for folder in folders]
    for adapter, folder in zip(stored, folders, strict=True):
        warn_of_another_base(adapter.base_model, shape.base_model, folder)
    loras = [adapter.lora for adapter in stored]
    base = load(place) if HEADS[common["sizes"].head].reads == "states" else shape
    return make_hypernetwork_from_adapters(base, tasks, loras, out, **common)


def _train_adapter(
    place: Place,
    data: Data,
    sizes: TextToLoRAConfig,
    training: LoraTrainingConfig,
    tasks: Sequence[Task],
    held_out: Sequence[Task],
) -> Output:
    check_extra("training", "train", "accelerate", "tensorboard", "tqdm")
    from shoal.text_to_lora.recipe import check_lora_training, make_lora
    from shoal.text_to_lora.starts import load_start

    start = load_start(data.start) if data.start else None
    check_lora_training(shape_of(place), data.out, sizes=sizes, run=data.run_folder, start=start)
    summary = make_lora(
        load(place),
        tasks,
        data.out,
        sizes=sizes,
        training=training,
        run=data.run_folder,
        start=start,
        held_out=held_out,
    )
    return summarised(summary, data, len(tasks), "adapter")


def summarised(summary: RunSummary, data: Data, tasks: int, kind: str) -> Output:
    """The output of a training that has ended."""
    record: Mapping[str, Any] = {
        **asdict(summary),
        "tasks": tasks,
        "out": str(data.out),
        "run": str(data.run_folder),
    }
    text = (
        f"trained on {tasks} task{'s' * (tasks != 1)}: {summary.steps} steps, {summary.tokens:,} tokens, "
        f"{summary.seconds:.0f} s ({summary.tokens / max(summary.seconds, 1e-9):,.0f} tokens/s), "
        f"loss {summary.final_loss:.3f}\n"
        f"{kind} written to {data.out}, checkpoints and logs to {data.run_folder}"
    )
    return Output(record, text)
