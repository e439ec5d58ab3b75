"""A table of LoRA runs, on which ways of tuning are compared in seconds: `shoal.tuning` reads it in CI.

    python benchmarks/tuning_table.py [--work runs/tuning_table] [--minutes M] [--report]

Every cell is one setting on one training task: a run whose rate is stable, then falls, with losses of single
examples every five steps on the way, and after shorter lengths that share its stable part, on examples of the
`train` list that it was not trained on (`selection`) and of the `test` list. Cells that are there are not run
again, and after `--minutes` none is begun; `--report` runs nothing, and prints what the written table says.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _machine import DATA, ROOT, machine
from scipy.stats import qmc

from shoal.adapters.lora import LoRA
from shoal.config import LoraTrainingConfig
from shoal.files import write_file
from shoal.models.backbone import Backbone, load_backbone
from shoal.tasks.loading import Task, load_task_directory
from shoal.tasks.metrics import bootstrap_interval
from shoal.tasks.records import divide
from shoal.training.batches import Corpus, tokenise
from shoal.training.loop import Diverged, run
from shoal.training.lora import LoraObjective, set_for_training
from shoal.training.prefix_cache import PrefixCache

TASKS = (
    "names_gender",
    "fv_present_past",
    "math_sort_ascending",
    "ppdb_british_to_american",
    "ii_larger_animal",
    "oewn_quality_noun",
)
LENGTHS, EVERY = (20, 40, 60), 5  # steps of whole runs, and between looks at the longest one's losses
FIXED = {"batch_size": 4, "warmup_steps": 2, "decay": 0.25, "checkpoint_every": 1000}
ASKED, FIT, LAYERS = 16, 120, 8
PLAIN = LoraTrainingConfig()
ALL = ("q_proj", "k_proj", "v_proj", "o_proj")
DEFAULT = {"learning_rate": 1e-3, "adapter_rank": 16, "target_modules": ALL}
SEEDS = 3  # of the defaults


def settings() -> list[dict[str, Any]]:
    """The defaults, higher rates, then a quasi-random sequence over rate, rank and modules."""
    points = qmc.Sobol(3, scramble=True, rng=0).random(32)[:21]
    rows = [DEFAULT, *({**DEFAULT, "learning_rate": rate} for rate in (2e-3, 4e-3))]
    for rate, rank, modules in points:
        rows.append(
            {
                "learning_rate": float(f"{3e-4 * (1.2e-2 / 3e-4) ** rate:.3g}"),
                "adapter_rank": (4, 8, 16)[int(3 * rank)],
                "target_modules": (("q_proj", "v_proj"), ALL)[int(2 * modules)],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "tuning_table")
    parser.add_argument("--out", type=Path, default=ROOT / "shoal" / "tuning" / "table.json")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which no cell is begun")
    parser.add_argument("--report", action="store_true", help="print what the written table says")
    args = parser.parse_args()
    if args.report:
        record = json.loads(args.out.read_text("utf-8"))
        compare(record["cells"], record["lengths"])
        return
    until = time.monotonic() + 60 * args.minutes
    tasks = load_task_directory(args.data / "tasks", TASKS)
    wanted = [(number, row, 0) for number, row in enumerate(settings())]
    wanted += [(0, DEFAULT, seed) for seed in range(1, SEEDS)]
    bench = Bench(load_backbone(), tasks)
    for number, row, seed in wanted:
        for task in tasks:
            path = args.work / f"{task.name}-{LENGTHS[-1]}-{number}-{seed}.json"
            if not path.exists() and time.monotonic() < until:
                cell = bench.cell(task, row, seed, args.work / "run")
                write_file(path, json.dumps(cell))
                print(
                    path.stem,
                    row,
                    cell["seconds"],
                    {k: _mean(v["selection"]) for k, v in cell["losses"].items()},
                    flush=True,
                )
    cells = []
    for number, row, seed in wanted:
        for task in tasks:
            path = args.work / f"{task.name}-{LENGTHS[-1]}-{number}-{seed}.json"
            if path.exists():
                cells.append(
                    {"task": task.name, "setting": row, "seed": seed, **json.loads(path.read_text())}
                )
    about = {
        "machine": machine(bench.dtype),
        "command": "python benchmarks/tuning_table.py",
        "fixed": FIXED,
        "lengths": LENGTHS,
        "looks_every": EVERY,
        "layers": LAYERS,
        "descriptions": {task.name: task.descriptions[0] for task in tasks},
    }
    write_file(args.out, json.dumps({**about, "cells": cells}, separators=(",", ":")) + "\n")
    print(f"{len(cells)} of {len(wanted) * len(tasks)} cells written to {args.out}")
    compare(cells, LENGTHS)


def compare(cells: Sequence[Mapping[str, Any]], lengths: Sequence[int]) -> None:
    """Print how much lower than the defaults' the loss of every setting is on `test`, over the tasks."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for cell in cells:
        if cell["seed"] == 0:
            found.setdefault(json.dumps(cell["setting"]), {})[cell["task"]] = cell["losses"]
    base = found[json.dumps(DEFAULT)]
    for setting, by_task in found.items():
        for end in (f"end {steps}" for steps in lengths):
            both = [task for task in base if end in base[task] and end in by_task.get(task, {})]
            gains = [_mean(base[task][end]["test"]) - _mean(by_task[task][end]["test"]) for task in both]
            if len(gains) > 1 and any(gains):
                i = bootstrap_interval(gains)
                print(f"{setting}, {end}: {i.mean:.3f} ({i.low:.3f} to {i.high:.3f}) over {i.n} tasks")


class Bench:
    """One model, with the examples of every task tokenised once and passed through the frozen layers once."""

    def __init__(self, backbone: Backbone, tasks: Sequence[Task]) -> None:
        self._backbone, self.dtype = backbone, backbone.dtype
        self._parts: dict[str, Any] = {}
        start = min(t.layer for t in backbone.shape.select(ALL, LAYERS))
        for task in tasks:
            rest, selection = divide(task.train, test_size=ASKED, seed=0)
            fit = replace(task, train=tuple(rest[:FIT]), test=())
            asked = {"selection": selection, "test": task.test[:ASKED]}
            given = {"fit": fit, **{part: replace(fit, train=tuple(own)) for part, own in asked.items()}}
            self._parts[task.name] = {
                part: (tokenise([own], backbone, PLAIN.max_length), PrefixCache(backbone, start))
                for part, own in given.items()
            }

    def cell(self, task: Task, row: Mapping[str, Any], seed: int, folder: Path) -> dict[str, Any]:
        """Losses of one run at its looks, and where its rate has fallen after each of the lengths."""
        shutil.rmtree(folder, ignore_errors=True)
        started, tokens, losses = time.perf_counter(), {}, {}
        parts = dict(self._parts[task.name])
        corpus, prefix = parts.pop("fit")
        targets = self._backbone.shape.select(row["target_modules"], LAYERS)
        config = LoraTrainingConfig(**FIXED, learning_rate=row["learning_rate"], seed=seed, steps=LENGTHS[-1])

        def go_on(place: str, until: int, steps: int, name: str) -> None:
            generator = torch.Generator().manual_seed(seed)
            lora = LoRA.identity(targets, row["adapter_rank"], 2.0 * row["adapter_rank"], generator=generator)
            own = config.model_copy(update={"steps": steps})
            objective = LoraObjective(self._backbone, corpus, targets, lora, own, prefix)
            with set_for_training(self._backbone):
                summary = run(objective, own, folder / place, show_progress=False, until=until)
            tokens[name] = summary.tokens
            adapter = objective.lora()
            losses[name] = {part: self._losses(*own, adapter) for part, own in parts.items()}

        try:
            for steps in LENGTHS:
                stable = steps - round(steps * FIXED["decay"])
                for look in range(EVERY, stable + 1, EVERY):
                    if f"stable {look}" not in losses:
                        go_on("trunk", look, LENGTHS[-1], f"stable {look}")
                shutil.copytree(folder / "trunk", folder / f"{steps}")
                if steps == LENGTHS[-1]:
                    for look in range(stable + EVERY, steps, EVERY):
                        go_on(f"{steps}", look, steps, f"falling {look}")
                go_on(f"{steps}", steps, steps, f"end {steps}")
        except Diverged:
            pass  # what is missing was not reached
        return {"losses": losses, "tokens": tokens, "seconds": round(time.perf_counter() - started, 1)}

    def _losses(self, corpus: Corpus, prefix: PrefixCache, adapter: LoRA) -> list[float]:
        with torch.no_grad(), set_for_training(self._backbone):
            losses, _ = prefix.answer_losses(corpus.examples[0], adapter, PLAIN)
        return [round(loss, 4) for loss in losses.tolist()]


def _mean(losses: Sequence[float]) -> float:
    return round(math.fsum(losses) / len(losses), 3)


if __name__ == "__main__":
    main()
