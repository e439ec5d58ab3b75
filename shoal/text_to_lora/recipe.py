"""From tasks to what is kept: train, and write the adapter or the hypernetwork with its provenance.

A recipe joins training with the formats on disk and decides neither. A place that it could not write to is
refused before it trains. Checkpoints and logs go to a folder of their own, from which a run resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from shoal.adapters.card import AdapterCard
from shoal.adapters.files import ADAPTER_FILES, save_adapter
from shoal.adapters.lora import LoRA
from shoal.config import HypernetworkTrainingConfig, LoraTrainingConfig, TextToLoRAConfig
from shoal.files import check_place
from shoal.models.backbone import Backbone, BackboneShape
from shoal.tasks.loading import Task
from shoal.tasks.procedural.relabel import is_copy
from shoal.tasks.sketches import sketch_of
from shoal.text_to_lora.checkpoint import HYPERNETWORK_FILES, HypernetworkCheckpoint, save_hypernetwork
from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.text_to_lora.hypernetwork import Hypernetwork, check_shots
from shoal.text_to_lora.known_tasks import first_descriptions, known_tasks
from shoal.text_to_lora.reconstruction import train_reconstruction
from shoal.text_to_lora.shipped import new_hypernetwork
from shoal.text_to_lora.starts import (
    Start,
    check_sizes,
    check_start,
    lora_of,
    origin,
    rehearsing_sizes,
    same_weights,
)
from shoal.text_to_lora.train import train_hypernetwork
from shoal.training.checkpoints import check_run_folder
from shoal.training.loop import RunSummary
from shoal.training.lora import train_lora


def make_lora(
    backbone: Backbone,
    tasks: Sequence[Task],
    directory: Path,
    *,
    sizes: TextToLoRAConfig,
    training: LoraTrainingConfig,
    run: Path,
    start: Start | None = None,
    held_out: Sequence[Task] = (),
    show_progress: bool = True,
) -> RunSummary:
    """Train one LoRA on one or many tasks and write it as a PEFT adapter directory.

    Args:
        backbone: the frozen model.
        tasks: what to train on.
        directory: of the adapter.
        sizes: layers and modules of the adapter; without `start`, its rank and alpha too.
        training: optimisation settings.
        run: folder of checkpoints and logs.
        start: adapter to go on from, or a hypernetwork for its shared adapter; by default a fresh identity.
        held_out: tasks that must share no example with `tasks`.
        show_progress: draw a progress bar.

    Raises:
        UsageError: the directory holds something else, `start` does not fit, or as `train_lora`.
        ShoalError: as `train_lora` and `save_adapter`.
    """
    check_lora_training(backbone.shape, directory, sizes=sizes, run=run, start=start)
    targets = backbone.shape.select(sizes.target_modules, sizes.num_layers_to_adapt)
    first = lora_of(start)
    lora, summary = train_lora(
        backbone,
        tasks,
        targets,
        run,
        training,
        rank=sizes.adapter_rank,
        alpha=sizes.adapter_alpha,
        start=first,
        held_out=held_out,
        show_progress=show_progress,
    )
    one = len(tasks) == 1
    notes = [f"Trained on {tasks[0].name}." if one else f"Trained on {len(tasks)} tasks."]
    if start is not None:
        notes.append(origin(start))
    card = AdapterCard(
        generator="lora training" if one else "multi-task lora training",
        trained=True,
        description=tasks[0].definition if one else None,
        seed=training.seed,
        start_sha256=first.fingerprint() if first else None,
        trained_on=sketch_of(example for task in tasks for example in task.train),
        scores=_measured(summary),
        notes=tuple(notes),
    )
    if PartialState().is_main_process:
        save_adapter(directory, lora, shape=backbone.shape, card=card)
    return summary


def check_lora_training(
    shape: BackboneShape, directory: Path, *, sizes: TextToLoRAConfig, run: Path, start: Start | None
) -> None:
    """Refuse before the base model is loaded what `make_lora` would refuse after; as there."""
    check_place(directory, ADAPTER_FILES)
    check_run_folder(run, directory)
    check_start(start, shape)
    check_sizes(lora_of(start), sizes)
    shape.select(sizes.target_modules, sizes.num_layers_to_adapt)


def check_network_training(
    shape: BackboneShape,
    directory: Path,
    *,
    sizes: TextToLoRAConfig,
    training: HypernetworkTrainingConfig,
    run: Path,
    start: Start | None,
) -> None:
    """Refuse before the base model is loaded what `make_hypernetwork` would refuse after; as there."""
    check_place(directory, HYPERNETWORK_FILES)
    check_run_folder(run, directory)
    check_start(start, shape)
    if training.rehearse:
        sizes = rehearsing_sizes(start, sizes, shape)
    check_shots(sizes.head, training.shots)


def make_hypernetwork(
    backbone: Backbone,
    tasks: Sequence[Task],
    directory: Path,
    *,
    sizes: TextToLoRAConfig,
    training: HypernetworkTrainingConfig,
    run: Path,
    start: Start | None = None,
    old: Sequence[Sequence[str]] = (),
    held_out: Sequence[Task] = (),
    monitor_examples: int = 0,
    max_descriptions: int | None = None,
    show_progress: bool = True,
) -> RunSummary:
    """Train a hypernetwork end to end (SFT) and write it in bfloat16.

    Args:
        backbone: the frozen model.
        tasks: what to train on, with descriptions.
        directory: of the hypernetwork.
        sizes: of the adapters and of the hypernetwork.
        training: optimisation settings.
        run: folder of checkpoints and logs.
        start: multi-task LoRA to start from; or a hypernetwork, all of it where the architecture is the same,
            else its shared adapter. By default the identity. With `training.rehearse` it is a hypernetwork
            and gives the sizes.
        old: descriptions of old tasks, which are rehearsed where `training.rehearse` is above 0.
        held_out: tasks that must share no example with `tasks`.
        monitor_examples: examples of each held-out task whose loss is logged at every checkpoint; 0 for none.
        max_descriptions: the first so many descriptions of each task are used; None for all.
        show_progress: draw a progress bar.

    Raises:
        UsageError: the directory holds something else, `start` does not fit, or as `train_hypernetwork`.
        ShoalError: as `train_hypernetwork` and `save_hypernetwork`.
    """
    check_network_training(backbone.shape, directory, sizes=sizes, training=training, run=run, start=start)
    if training.rehearse:
        sizes = rehearsing_sizes(start, sizes, backbone.shape)

    def train(network: Hypernetwork, encoder: TaskEncoder) -> RunSummary:
        return train_hypernetwork(
            network,
            backbone,
            encoder,
            _described(tasks, max_descriptions),
            run,
            training,
            old=[own[:max_descriptions] for own in old],
            held_out=_described(held_out, 1),  # the monitor reads the first
            monitor_size=monitor_examples,
            show_progress=show_progress,
        )

    network = _Network(backbone.shape, sizes, training, start, tasks, max_descriptions)
    return network.trained(train, directory)


def make_hypernetwork_from_adapters(
    base: Backbone | BackboneShape,
    tasks: Sequence[Task],
    adapters: Sequence[LoRA],
    directory: Path,
    *,
    sizes: TextToLoRAConfig,
    training: HypernetworkTrainingConfig,
    run: Path,
    start: Start | None = None,
    max_descriptions: int | None = None,
    show_progress: bool = True,
) -> RunSummary:
    """Train a hypernetwork to reproduce one adapter per task, and write it.

    Args and errors as `make_hypernetwork`; `adapters` go task by task. A head that reads the base model's
    states needs the model, the others its shape alone.
    """
    backbone, shape = (base, base.shape) if isinstance(base, Backbone) else (None, base)
    check_network_training(shape, directory, sizes=sizes, training=training, run=run, start=start)

    def train(network: Hypernetwork, encoder: TaskEncoder) -> RunSummary:
        return train_reconstruction(
            network,
            encoder,
            _described(tasks, max_descriptions),
            adapters,
            run,
            training,
            backbone=backbone,
            show_progress=show_progress,
        )

    network = _Network(shape, sizes, training, start, tasks, max_descriptions)
    return network.trained(train, directory)


@dataclass(frozen=True, eq=False)
class _Network:
    """A hypernetwork before its training: all that decides its weights at the start and its provenance."""

    shape: BackboneShape
    sizes: TextToLoRAConfig
    training: HypernetworkTrainingConfig
    start: Start | None
    tasks: Sequence[Task]
    max_descriptions: int | None

    def trained(
        self, train: Callable[[Hypernetwork, TaskEncoder], RunSummary], directory: Path
    ) -> RunSummary:
        """Train it by a function, and write it with what is known of its tasks."""
        encoder = TaskEncoder()
        network = self._fresh(encoder)
        summary = train(network, encoder)
        if PartialState().is_main_process:
            facts = self._provenance(summary)
            checkpoint = HypernetworkCheckpoint(
                network, self.shape.base_model, encoder.name, True, facts, shots=self.training.shots
            )
            save_hypernetwork(self._knowing(checkpoint, encoder), directory, torch.bfloat16)
        return summary

    def _knowing(self, checkpoint: HypernetworkCheckpoint, encoder: TaskEncoder) -> HypernetworkCheckpoint:
        """With where its tasks are; one that has rehearsed knows its old ones too, and keeps their LoRA."""
        before = self.start if isinstance(self.start, HypernetworkCheckpoint) else None
        if not self.training.rehearse or before is None or before.known_tasks is None:
            return replace(checkpoint, known_tasks=known_tasks(encoder, self.tasks))
        added = {
            task.name: encoder.encode(first_descriptions(task)) for task in self.tasks if not is_copy(task)
        }
        known = before.known_tasks.with_tasks(added)
        return replace(checkpoint, known_tasks=known, multi_task=before.multi_task)

    def _fresh(self, encoder: TaskEncoder) -> Hypernetwork:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.training.seed)
            network = new_hypernetwork(self.shape, self.sizes, encoder.dim)
        before = lora_of(self.start)
        if isinstance(self.start, HypernetworkCheckpoint) and same_weights(network, self.start.network):
            network.load_state_dict(self.start.network.state_dict())
        elif before is not None:
            network.start_from(before)
        return network

    def _provenance(self, summary: RunSummary) -> dict[str, Any]:
        before: Mapping[str, Any] | None = None
        if isinstance(self.start, HypernetworkCheckpoint):
            before = {"generator": "hypernetwork", **self.start.provenance}
        elif self.start is not None and self.start.card is not None:
            before = self.start.card.model_dump(mode="json")
        return {
            **asdict(summary),
            "seed": self.training.seed,
            "tasks": len(self.tasks),
            "max_descriptions": self.max_descriptions,
            "start": before,
            "config": self.training.model_dump(mode="json"),
        }


def _described(tasks: Sequence[Task], limit: int | None) -> list[Task]:
    return [replace(task, descriptions=task.descriptions[:limit]) for task in tasks]


def _measured(summary: RunSummary) -> Mapping[str, float]:
    return {
        "training steps": summary.steps,
        "training tokens": summary.tokens,
        "training seconds": summary.seconds,
        "training loss": summary.final_loss,
    }
