"""From tasks to what is kept: train, and write the adapter or the hypernetwork with its provenance.

A recipe joins training with the formats on disk and decides neither. A place that it could not write to is
refused before it trains. Checkpoints and logs go to a folder of their own, from which a run resumes.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from shoal.adapters.card import AdapterCard
from shoal.adapters.files import ADAPTER_FILES, StoredAdapter, load_adapter, save_adapter
from shoal.adapters.lora import LoRA
from shoal.config import HypernetworkTrainingConfig, LoraTrainingConfig, TextToLoRAConfig
from shoal.errors import UsageError
from shoal.files import check_place
from shoal.models.backbone import Backbone, BackboneShape
from shoal.tasks.loading import Task
from shoal.tasks.procedural.relabel import is_copy
from shoal.text_to_lora.checkpoint import (
    CONFIG_FILE,
    HYPERNETWORK_FILES,
    HypernetworkCheckpoint,
    load_hypernetwork,
    save_hypernetwork,
)
from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.text_to_lora.familiarity import KnownTasks
from shoal.text_to_lora.hypernetwork import Hypernetwork
from shoal.text_to_lora.nonsense import gibberish, vocabulary, word_salad
from shoal.text_to_lora.shipped import new_hypernetwork
from shoal.text_to_lora.train import train_hypernetwork, train_reconstruction
from shoal.training.checkpoints import check_run_folder
from shoal.training.loop import RunSummary
from shoal.training.lora import train_lora

log = logging.getLogger(__name__)

Start = StoredAdapter | HypernetworkCheckpoint  # what a hypernetwork's training may go on from
DESCRIPTIONS_A_TASK = 24  # that familiarity is measured on
LEAST_NONSENSE, MOST_NONSENSE = 100, 1000  # texts of each kind; between these, one for every 4 descriptions


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
    lora, summary = train_lora(
        backbone,
        tasks,
        targets,
        run,
        training,
        rank=sizes.adapter_rank,
        alpha=sizes.adapter_alpha,
        start=_lora_of(start),
        held_out=held_out,
        show_progress=show_progress,
    )
    one = len(tasks) == 1
    notes = [f"Trained on {tasks[0].name}." if one else f"Trained on {len(tasks)} tasks."]
    if start is not None:
        notes.append(_before(start))
    card = AdapterCard(
        generator="lora training" if one else "multi-task lora training",
        trained=True,
        description=tasks[0].definition if one else None,
        seed=training.seed,
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
    _check_start(start, shape)
    _check_sizes(_lora_of(start), sizes)
    shape.select(sizes.target_modules, sizes.num_layers_to_adapt)


def check_network_training(shape: BackboneShape, directory: Path, *, run: Path, start: Start | None) -> None:
    """Refuse before the base model is loaded what `make_hypernetwork` would refuse after; as there."""
    check_place(directory, HYPERNETWORK_FILES)
    check_run_folder(run, directory)
    _check_start(start, shape)


def load_start(directory: Path) -> Start:
    """The adapter or the hypernetwork of a directory.

    Raises:
        ShoalError: it holds neither, or one that is damaged.
    """
    if (directory / CONFIG_FILE).is_file():
        return load_hypernetwork(directory)
    return load_adapter(directory)


def make_hypernetwork(
    backbone: Backbone,
    tasks: Sequence[Task],
    directory: Path,
    *,
    sizes: TextToLoRAConfig,
    training: HypernetworkTrainingConfig,
    run: Path,
    start: Start | None = None,
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
            else its shared adapter. By default the identity.
        held_out: tasks that must share no example with `tasks`.
        monitor_examples: examples of each held-out task whose loss is logged at every checkpoint; 0 for none.
        max_descriptions: the first so many descriptions of each task are used; None for all.
        show_progress: draw a progress bar.

    Raises:
        UsageError: the directory holds something else, `start` does not fit, or as `train_hypernetwork`.
        ShoalError: as `train_hypernetwork` and `save_hypernetwork`.
    """
    check_network_training(backbone.shape, directory, run=run, start=start)
    encoder = TaskEncoder()
    network = _fresh(backbone.shape, sizes, encoder, training.seed, start)
    summary = train_hypernetwork(
        network,
        backbone,
        encoder,
        _described(tasks, max_descriptions),
        run,
        training,
        held_out=_described(held_out, 1),  # the monitor reads the first
        monitor_size=monitor_examples,
        show_progress=show_progress,
    )
    facts = _provenance(summary, tasks, training, start, max_descriptions)
    _write(network, backbone.shape, encoder, tasks, directory, facts)
    return summary


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
    """Train a hypernetwork to reproduce one adapter a task, and write it.

    Args and errors as `make_hypernetwork`; `adapters` go task by task. A head that reads the base model's
    states needs the model, the others its shape alone.
    """
    backbone, shape = (base, base.shape) if isinstance(base, Backbone) else (None, base)
    check_network_training(shape, directory, run=run, start=start)
    encoder = TaskEncoder()
    network = _fresh(shape, sizes, encoder, training.seed, start)
    described = _described(tasks, max_descriptions)
    summary = train_reconstruction(
        network, encoder, described, adapters, run, training, backbone=backbone, show_progress=show_progress
    )
    facts = _provenance(summary, tasks, training, start, max_descriptions)
    _write(network, shape, encoder, tasks, directory, facts)
    return summary


def known_tasks(encoder: TaskEncoder, tasks: Sequence[Task]) -> KnownTasks | None:
    """Where training tasks are, by their first descriptions, and what tells those from nonsense.

    Tasks made of others' examples are no places, as copies are beside their originals and no unseen task is
    beside a trained one; but what describes them is no nonsense. None, with a warning, where that tells
    nothing: a few tasks are as far from one another as from nonsense.
    """
    originals = [task for task in tasks if not is_copy(task)]
    texts = [list(task.descriptions[:DESCRIPTIONS_A_TASK]) for task in originals]
    made = [text for task in tasks if is_copy(task) for text in task.descriptions[:DESCRIPTIONS_A_TASK]]
    log.info("measuring how far the descriptions of %d tasks are from one another", len(tasks))
    words = vocabulary(texts)
    read = encoder.encode([*(text for own in texts for text in own), *made])
    own, others = read.split([sum(map(len, texts)), len(made)])
    chance = random.Random("known tasks")
    count = min(MOST_NONSENSE, max(LEAST_NONSENSE, sum(map(len, texts)) // 4))
    lengths = [chance.randint(3, 16) for _ in range(count)]
    letters = [gibberish(f"known tasks/{number}", length) for number, length in enumerate(lengths)]
    salad = [word_salad(f"known tasks/{number}", words, length) for number, length in enumerate(lengths)]
    try:
        return KnownTasks.measure(
            [task.name for task in originals],
            list(own.split([len(some) for some in texts])),
            encoder.encode(letters),
            encoder.encode(salad),
            others if made else None,
        )
    except UsageError as error:
        log.warning("the hypernetwork cannot tell how near a description is to its tasks: %s", error)
        return None


def _fresh(
    shape: BackboneShape,
    sizes: TextToLoRAConfig,
    encoder: TaskEncoder,
    seed: int,
    start: Start | None,
) -> Hypernetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = new_hypernetwork(shape, sizes, encoder.dim)
    before = _lora_of(start)
    if isinstance(start, HypernetworkCheckpoint) and _same_weights(network, start.network):
        network.load_state_dict(start.network.state_dict())
    elif before is not None:
        network.start_from(before)
    return network


def _lora_of(start: Start | None) -> LoRA | None:
    """The adapter to start from; of a hypernetwork, its shared one."""
    if isinstance(start, HypernetworkCheckpoint):
        return start.network.offset_lora()
    return start.lora if start is not None else None


def _same_weights(one: Hypernetwork, other: Hypernetwork) -> bool:
    """Whether the weights of one make sense in the other."""
    shapes = [{name: tensor.shape for name, tensor in net.state_dict().items()} for net in (one, other)]
    means = [(net.targets, net.architecture.head, net.architecture.alpha) for net in (one, other)]
    return means[0] == means[1] and shapes[0] == shapes[1]


def _check_start(start: Start | None, shape: BackboneShape) -> None:
    if start is not None and not start.made_for(shape.base_model):
        raise UsageError(
            f"what training is to start from is for {start.base_model}, not {shape.base_model}; train one "
            "for it"
        )


def _check_sizes(start: LoRA | None, sizes: TextToLoRAConfig) -> None:
    """Rank and alpha are those of the adapter at the start: others that were asked for cannot be had."""
    if start is None:
        return
    for name, has in (("adapter_rank", start.rank), ("adapter_alpha", start.alpha)):
        asked = getattr(sizes, name)
        if name in sizes.model_fields_set and asked != has:
            raise UsageError(f"{name} {asked:g}: the LoRA to start from has {has:g}; leave it out")


def _before(start: Start) -> str:
    """What the adapter that training went on from had behind it."""
    if isinstance(start, HypernetworkCheckpoint):
        return "It went on from the shared adapter of a hypernetwork."
    tokens = None if start.card is None else start.card.scores.get("training tokens")
    return "It went on from an adapter" + (f" of {tokens:,.0f} training tokens." if tokens else ".")


def _described(tasks: Sequence[Task], limit: int | None) -> list[Task]:
    return [replace(task, descriptions=task.descriptions[:limit]) for task in tasks]


def _provenance(
    summary: RunSummary,
    tasks: Sequence[Task],
    training: HypernetworkTrainingConfig,
    start: Start | None,
    max_descriptions: int | None,
) -> dict[str, Any]:
    before: Mapping[str, Any] | None = None
    if isinstance(start, HypernetworkCheckpoint):
        before = {"generator": "hypernetwork", **start.provenance}
    elif start is not None and start.card is not None:
        before = start.card.model_dump(mode="json")
    return {
        **asdict(summary),
        "seed": training.seed,
        "tasks": len(tasks),
        "max_descriptions": max_descriptions,
        "start": before,
        "config": training.model_dump(mode="json"),
    }


def _measured(summary: RunSummary) -> Mapping[str, float]:
    return {
        "training steps": summary.steps,
        "training tokens": summary.tokens,
        "training seconds": summary.seconds,
        "training loss": summary.final_loss,
    }


def _write(
    network: Hypernetwork,
    shape: BackboneShape,
    encoder: TaskEncoder,
    tasks: Sequence[Task],
    directory: Path,
    provenance: Mapping[str, Any],
) -> None:
    if not PartialState().is_main_process:
        return
    known = known_tasks(encoder, tasks)
    checkpoint = HypernetworkCheckpoint(network, shape.base_model, encoder.name, True, provenance, known)
    save_hypernetwork(checkpoint, directory, torch.bfloat16)
