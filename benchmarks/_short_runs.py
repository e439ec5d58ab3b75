"""Short trainings of hypernetworks, scored on the validation tasks: what several scripts compare.

Runs that are finished are kept in a folder each and reused; one that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from _machine import DATA, ROOT, machine
from pydantic import BaseModel

from shoal.adapters.files import load_adapter
from shoal.config import HypernetworkTrainingConfig, LoraTrainingConfig, TextToLoRAConfig
from shoal.evaluation.evaluate import Method, evaluate
from shoal.files import write_file
from shoal.models.backbone import Backbone
from shoal.tasks.loading import Split, Task, remove_leaks
from shoal.tasks.procedural.catalogue import procedural_tasks
from shoal.tasks.procedural.derived import derived_tasks
from shoal.text_to_lora.checkpoint import load_hypernetwork
from shoal.text_to_lora.recipe import (
    make_hypernetwork,
    make_hypernetwork_from_adapters,
    make_lora,
)
from shoal.text_to_lora.starts import load_start

WARMUP = 0.04  # of the steps: few of a short run
Recipe = Mapping[str, Any]


def shipped_recipe() -> dict[str, Any]:
    """The settings of configs/text_to_lora.yaml."""
    return yaml.safe_load((ROOT / "configs" / "text_to_lora.yaml").read_text("utf-8"))


def add_arguments(parser: argparse.ArgumentParser, *, steps: int, work: str) -> None:
    """What every script of short runs takes; `work` names its folder under runs/."""
    add = parser.add_argument
    add("--start", type=Path, help="PEFT directory of the multi-task LoRA that runs start from")
    add("--steps", type=int, default=steps, help="of each run")
    add("--examples", type=int, default=20, help="test examples a task")
    add("--data", type=Path, default=DATA)
    add("--work", type=Path, default=ROOT / "runs" / work, help="finished runs, and checkpoints")
    add("--out", type=Path, default=ROOT / "docs" / "results")
    add("--report", action="store_true", help="only write the results of the runs that are there")


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments; training needs a start."""
    args = parser.parse_args()
    if not args.report and not args.start:
        parser.error("--start DIR is needed to train")
    return args


def train(
    place: Path,
    backbone: Backbone,
    split: Split,
    tasks: Sequence[Task],
    recipe: Recipe,
    *,
    steps: int,
    seed: int,
    start: Path | None,
) -> None:
    """Train a hypernetwork into `place`/network, unless it is there; its run goes beside it.

    Args:
        place: folder of this training alone.
        backbone: the frozen model.
        split: whose validation tasks are watched.
        tasks: to train on.
        recipe: settings, by the names of the flags of `shoal train text-to-lora`.
        steps: of the optimiser.
        seed: of initialisation and batches.
        start: directory of the adapter or hypernetwork to start from; None for the identity.
    """
    own = {"steps": steps, "warmup": WARMUP, "seed": seed, "checkpoint_every": 40}
    training = HypernetworkTrainingConfig(**settings(recipe, HypernetworkTrainingConfig) | own)
    if (place / "network").is_dir():
        if load_hypernetwork(place / "network").provenance["config"] != training.model_dump(mode="json"):
            sys.exit(f"{place} was trained with other settings; name another --work")
        return
    say(f"{place.name}: {len(tasks)} tasks")
    make_hypernetwork(
        backbone,
        tasks,
        place / "network",
        sizes=sizes_of(recipe),
        training=training,
        run=place / "run",
        start=load_start(start) if start else None,
        held_out=split.validation,
        monitor_examples=recipe["monitor_examples"],
        max_descriptions=recipe["max_descriptions"],
        show_progress=False,
    )


def reproduce(
    place: Path, backbone: Backbone, tasks: Sequence[Task], recipe: Recipe, *, start: Path, steps: int
) -> tuple[Path, int]:
    """A hypernetwork that was trained to reproduce each task's own LoRA, and the tokens that those read.

    The LoRAs have 30 steps of 8 examples each, from `start`; they and the hypernetwork are kept in `place`.
    """
    config = LoraTrainingConfig(steps=30, batch_size=8, learning_rate=1e-3, checkpoint_every=30)
    before, sizes = load_adapter(start), sizes_of(recipe)
    tokens, adapters = 0, []
    for task in tasks:
        directory, run = place / "adapters" / task.name, place / "adapter_runs" / task.name
        summary = make_lora(
            backbone,
            [task],
            directory,
            sizes=sizes,
            training=config,
            run=run,
            start=before,
            show_progress=False,
        )
        say(f"  LoRA of {task.name}: loss {summary.final_loss:.2f}, {summary.seconds:.0f} s")
        tokens += summary.tokens
        adapters.append(load_adapter(directory).lora)
    training = {k: recipe[k] for k in ("learning_rate", "offset_learning_rate", "weight_decay")}
    training |= {"objective": "reconstruction", "steps": steps, "batch_size": 8, "warmup": WARMUP}
    summary = make_hypernetwork_from_adapters(
        backbone,
        tasks,
        adapters,
        place / "reproducing",
        sizes=sizes,
        training=HypernetworkTrainingConfig(**training),
        run=place / "reproducing.run",
        start=before,
        max_descriptions=recipe["max_descriptions"],
        show_progress=False,
    )
    say(f"  {len(tasks)} LoRAs reproduced: distance {summary.final_loss:.3g}, {summary.seconds:.0f} s")
    return place / "reproducing", tokens


def sizes_of(recipe: Recipe) -> TextToLoRAConfig:
    """Sizes of a recipe's adapters and network; all layers unless it says how many."""
    return TextToLoRAConfig(**{"num_layers_to_adapt": None, **settings(recipe, TextToLoRAConfig)})


def limits(args: argparse.Namespace, recipe: Recipe, start: Path | None) -> dict[str, Any]:
    """What a report that may be reused has in its notes."""
    same = {"steps": args.steps, "examples": args.examples, "start": start and os.path.relpath(start, ROOT)}
    return {**same, "settings": json.loads(json.dumps(recipe))}


def settings(recipe: Recipe, config: type[BaseModel]) -> dict[str, Any]:
    """What a recipe says of this configuration."""
    return {k: v for k, v in recipe.items() if k in config.model_fields and v != "none"}


def training_tasks(split: Split, recipe: Recipe, seed: int = 0) -> list[Task]:
    """The training tasks and procedural ones in an order of the seed."""
    size = recipe["procedural"]
    given = [*split.train, *(procedural_tasks(size=size, test_size=size // 8) if size else ())]
    random.Random(seed).shuffle(given)
    return given


def with_made_ones(tasks: Sequence[Task], split: Split, recipe: Recipe, share: float = 1) -> Sequence[Task]:
    """The tasks, their relabelled copies and, in that share, others made of them, as the recipe has them."""
    sets, texts = (round(share * recipe.get(name, 0)) for name in ("label_sets", "rewrites"))
    made = derived_tasks(tasks, copies=recipe["relabelled"], sets=sets, texts=texts)
    return remove_leaks([*tasks, *made], split.validation)


def scored(place: Path, limits: Mapping[str, Any]) -> bool:
    """Whether a run's report is there; ends the script if that run was another one.

    Args:
        place: folder of the run.
        limits: what its notes must say, by flag.
    """
    if not (place / "report.json").is_file():
        return False
    notes = json.loads((place / "report.json").read_text("utf-8"))["notes"]
    for name, value in limits.items():
        if notes.get(name) != value:
            sys.exit(f"{place} was made with {name} {notes.get(name)}, not {value}; name another --work")
    return True


def score(
    place: Path,
    backbone: Backbone,
    split: Split,
    methods: Sequence[Method],
    examples: int,
    facts: Mapping[str, Any],
) -> None:
    """Score methods on the validation tasks and write their report, with these facts, to `place`."""
    limits = {"examples": examples, "max_new_tokens": 40}
    notes = {**facts, "machine": machine(backbone.dtype), **limits}
    report = evaluate(backbone, split.validation, methods, samples=0, notes=notes, **limits)
    write_file(place / "report.json", json.dumps(report.to_json()))


def curve(place: Path) -> list[dict[str, float]]:
    """Unseen loss and steering margin at every checkpoint of a run."""
    log = (place / "run" / "log.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in log.splitlines()]
    return [
        {key: row[key] for key in ("step", "unseen_loss", "unseen_margin")}
        for row in rows
        if "unseen_loss" in row
    ]


def say(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)
