"""Stream C: the shipped hypernetwork takes new tasks, with its old descriptions rehearsed and without."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from _merging_bench import SHIPPED, Bench, divided

from shoal.config import HypernetworkTrainingConfig
from shoal.tasks.loading import load_split
from shoal.tasks.records import Task
from shoal.text_to_lora.checkpoint import load_hypernetwork
from shoal.text_to_lora.generator import TextToLoRA
from shoal.text_to_lora.recipe import make_hypernetwork
from shoal.text_to_lora.rehearsal import old_descriptions
from shoal.text_to_lora.shipped import config_of

ADDED, KEPT = 8, 16
WEIGHTS: Mapping[str, float] = {"rehearsed": 1.0, "unrehearsed": 0.0}


def rehearse(bench: Bench) -> None:
    """The network before, with rehearsal and without, on added tasks and on those that may be lost."""
    start = load_hypernetwork(SHIPPED)
    known = set(start.known_tasks.names if start.known_tasks else ())
    split = load_split(bench.args.data)
    fresh = sorted((t for t in split.train if t.name not in known), key=_chance)
    added = [divided(t, 0)[0] for t in fresh[:ADDED]]
    added = [dataclasses.replace(t, train=t.train[: bench.args.train]) for t in added]
    held_out = {"held-out": fresh[ADDED : ADDED + KEPT]}
    if bench.args.validation:
        held_out["validation"] = list(split.validation)
    bench.cell("c/tasks", lambda: {"added": [t.name for t in added], "steps": bench.args.network_steps})
    for task in added:  # the oracle
        name = f"oracle-{task.name}"
        bench.scored(f"c/oracle/{task.name}", [task], partial(bench.trained, name, [task]))
    folders = {"before": SHIPPED}
    for row, weight in WEIGHTS.items():
        folders[row] = bench.args.out / "networks" / row
        bench.cell(f"c/train/{row}", partial(train, bench, start, added, weight, folders[row]))
    for row, folder in folders.items():
        generator = TextToLoRA(backbone=bench.backbone, hypernetwork=folder)
        for kind, tasks in {"added": added, **held_out}.items():
            for task in tasks:
                sentence = partial(_adapter, generator, task)
                bench.scored(f"c/{row}/{kind}/{task.name}", [task], sentence)


def train(bench: Bench, start: Any, added: Sequence[Task], weight: float, folder: Path) -> dict[str, Any]:
    """Train the network on the added tasks."""
    args = bench.args
    config = HypernetworkTrainingConfig(
        steps=args.network_steps,
        batch_size=args.batch,
        learning_rate=3e-4,
        offset_learning_rate=5e-4,
        max_length=160,
        checkpoint_every=20,
        rehearse=weight,
    )
    summary = make_hypernetwork(
        bench.backbone,
        added,
        folder,
        sizes=config_of(start.network, bench.backbone.shape),
        training=config,
        run=args.out / "runs" / folder.name,
        start=start,
        old=old_descriptions(start, added) if weight else (),
        show_progress=False,
    )
    return {"tokens": summary.tokens, "training_seconds": summary.seconds, "loss": summary.final_loss}


def _adapter(generator: TextToLoRA, task: Task) -> Any:
    return generator.generate(task.descriptions[0]).lora


def _chance(task: Task) -> bytes:
    return hashlib.sha256(f"c/{task.name}".encode()).digest()
