"""`shoal train`: a LoRA for one task, one for many, or a hypernetwork; experts have a module of their own."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from shoal.apps.cli.generate import AdapterSizes, Place, load, warn_of_another_base
from shoal.apps.cli.settings import Only, Output, check_extra
from shoal.config import (
    HypernetworkTrainingConfig,
    LoraTrainingConfig,
    TextToLoRAConfig,
)
from shoal.errors import UsageError

if TYPE_CHECKING:
    from shoal.tasks.loading import Split, Task
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
TEST_SIZE = 60  # of JSONL
TASKS_HELP = (
    "data directory with splits.json, folder of task JSON files, one such file, or JSONL with --definition"
)


class Data(BaseModel):
    """Which tasks, from which adapter on, and where results go."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: Path | None = Field(None, description=TASKS_HELP)
    definition: str | None = Field(None, description="for JSONL: the instruction that its examples follow")
    test_size: int = Field(
        TEST_SIZE, ge=0, description="for JSONL: examples that are not trained on, at most half of them"
    )
    task: tuple[str, ...] = Field((), description="take only the tasks of these names")
    procedural: int = Field(
        0, ge=0, description="examples of every procedural task to add, 0 for none; these need no --tasks"
    )
    relabelled: int = Field(
        0, ge=0, description="copies with other label names to add of every task with a closed label set"
    )
    label_sets: int = Field(
        0, ge=0, description="tasks to add that have a few of the labels of others, and name them"
    )
    rewrites: int = Field(
        0, ge=0, description="tasks to add that change the texts of others, or label them by simple rules"
    )
    start: Path | None = Field(
        None,
        description="directory of the LoRA to start from, or of a hypernetwork",
    )
    out: Path = Field(description="directory to write the result to")
    run: Path | None = Field(
        None, description="folder of checkpoints, from which a run resumes; none means OUT.run"
    )

    @property
    def run_folder(self) -> Path:
        """Beside the result, which is replaced as a whole."""
        return self.run or self.out.with_name(self.out.name + ".run")


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


class Averaged(BaseModel):
    """Which hypernetworks, and where their mean goes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: tuple[Path, ...] = Field((), description="directory of a hypernetwork; give at least two")
    out: Path = Field(description="directory to write the result to")


def average_networks(averaged: Averaged) -> Output:
    """Average the weights of hypernetworks.

    They must be of one architecture, such as one and what it was trained on to; facts are the last one's.
    """
    import torch

    from shoal.files import check_place
    from shoal.text_to_lora.checkpoint import (
        HYPERNETWORK_FILES,
        average,
        load_hypernetwork,
        save_hypernetwork,
    )

    check_place(averaged.out, HYPERNETWORK_FILES)
    mean = average([load_hypernetwork(folder) for folder in averaged.network])
    save_hypernetwork(mean, averaged.out, torch.bfloat16)
    count = len(averaged.network)
    return Output(
        {"averaged": count, "path": str(averaged.out)}, f"mean of {count} written to {averaged.out}"
    )


class Fallback(BaseModel):
    """Which hypernetwork, which adapter, and where both go."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: Path = Field(description="directory of a hypernetwork")
    adapter: Path = Field(description="directory of the LoRA, as of `shoal train multi-task`")
    out: Path = Field(description="directory to write the result to")


def set_fallback(given: Fallback) -> Output:
    """Give a hypernetwork the LoRA that nonsense gets.

    Without one, nonsense gets the hypernetwork's own adapter of no description. Only a hypernetwork that
    knows where its training tasks are tells nonsense.
    """
    import torch

    from shoal.adapters.files import load_adapter
    from shoal.files import check_place
    from shoal.text_to_lora.checkpoint import HYPERNETWORK_FILES, load_hypernetwork, save_hypernetwork

    check_place(given.out, HYPERNETWORK_FILES)
    network, adapter = load_hypernetwork(given.network), load_adapter(given.adapter)
    if not adapter.made_for(network.base_model):
        raise UsageError(
            f"{given.adapter} is for {adapter.base_model}, not {network.base_model}; train another"
        )
    card = adapter.card.model_dump(mode="json") if adapter.card else None
    facts = {**network.provenance, "multi_task": card}
    both = replace(network, multi_task=adapter.lora, provenance=facts)
    save_hypernetwork(both, given.out, torch.bfloat16)
    return Output(
        {"path": str(given.out)}, f"hypernetwork with {given.adapter} for nonsense written to {given.out}"
    )


def read_tasks(
    data: Path, definition: str | None, names: Sequence[str] = (), test_size: int = TEST_SIZE
) -> Split:
    """The tasks of a path; those without a splits.json are all training tasks.

    Raises:
        UsageError: there is nothing of that kind there, or a name is not among the tasks.
        ShoalError: a file is malformed.
    """
    from shoal.tasks.loading import Split, load_jsonl, load_split, load_task_directory, load_task_json

    if data.suffix == ".jsonl":
        if definition is None:
            raise UsageError(f"--tasks {data} is JSONL, which holds no instruction; add --definition TEXT")
        split = Split((load_jsonl(data, definition=definition, test_size=test_size),), ())
    elif definition is not None:
        raise UsageError(f"--definition is for JSONL, but --tasks is {data}; leave it out")
    elif data.is_file():
        split = Split((load_task_json(data),), ())
    elif (data / "splits.json").is_file():
        split = load_split(data)
    else:
        split = Split(tuple(load_task_directory(data)), ())
    return Split(*_named((split.train, split.validation), names))


def _named(parts: Sequence[Sequence[Task]], names: Sequence[str]) -> tuple[tuple[Task, ...], ...]:
    """Every part with only the tasks of these names; all of them where none are given."""
    known = {task.name for part in parts for task in part}
    for name in names:
        if name not in known:
            raise UsageError(f"--task {name}: not among the {len(known)} tasks; check the name")
    return tuple(tuple(t for t in part if not names or t.name in names) for part in parts)


def divided(data: Data) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    """(training tasks, held-out tasks): those of the files, then procedural ones, then those made of both.

    Where tasks are made, training examples that are evaluation data of another task are left out; among files
    alone such a leak is an error of the training that follows.
    """
    if data.tasks is None and not data.procedural:
        raise UsageError("there is nothing to train on: give --tasks, or --procedural for tasks made in code")
    from shoal.tasks.loading import remove_leaks
    from shoal.tasks.procedural.catalogue import procedural_tasks
    from shoal.tasks.procedural.derived import made_of

    filed: tuple[Task, ...] = ()
    held_out: tuple[Task, ...] = ()
    procedural: tuple[Task, ...] = ()
    if data.tasks is not None:
        split = read_tasks(data.tasks, data.definition, test_size=data.test_size)
        filed, held_out = split.train, split.validation
    if data.procedural:
        procedural = tuple(procedural_tasks(size=data.procedural, test_size=data.procedural // 8))
    filed, held_out, procedural = _named((filed, held_out, procedural), data.task)
    own = (*filed, *procedural)
    made = made_of(own, copies=data.relabelled, sets=data.label_sets, texts=data.rewrites)
    return remove_leaks((*own, *made), held_out) if procedural or made else filed, held_out


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
