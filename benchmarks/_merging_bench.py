"""What all parts of the measurement of merges share: model, start, cells that are kept, LoRAs and scores."""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from shoal.adapters.card import AdapterCard
from shoal.adapters.files import load_adapter, save_adapter
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.adapters.merging import compose, truncate
from shoal.config import LoraTrainingConfig
from shoal.files import write_file
from shoal.inference.generate import generate_greedy
from shoal.inference.scoring import reference_losses
from shoal.models.backbone import DEFAULT_MODEL, load_backbone
from shoal.tasks.loading import Task
from shoal.tasks.metrics import exact_match, rouge_l
from shoal.text_to_lora.checkpoint import load_hypernetwork
from shoal.training.lora import train_lora

SHIPPED = Path(__file__).resolve().parents[1] / "shoal" / "weights" / DEFAULT_MODEL
CELLS = "cells.jsonl"
RATE = 2e-3  # of every LoRA that is trained here
Cell = Mapping[str, Any]


class Bench:
    """Model, start, and results: one JSON line for every cell, which is measured once."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.backbone = load_backbone(args.base)
        if args.start:
            self.start = load_adapter(args.start).lora
        else:
            shipped = load_hypernetwork(SHIPPED).multi_task
            assert shipped is not None
            factors = {n: LoraFactors(f.a.float(), f.b.float()) for n, f in shipped.factors.items()}
            self.start = LoRA(factors, shipped.alpha)
        self.targets = [t for t in self.backbone.shape.targets if t.name in self.start.factors]
        self.kept: dict[int, Any] = {}
        self._lines = args.out / CELLS
        self.cells: dict[str, Cell] = all_cells(args)

    def cell(self, key: str, measure: Callable[[], dict[str, Any]]) -> Cell:
        """A cell's value, measured unless it is there."""
        if key not in self.cells:
            started = time.perf_counter()
            value = measure()
            seconds = round(time.perf_counter() - started, 1)
            self.cells[key] = {"seconds": seconds, **value}
            self.args.out.mkdir(parents=True, exist_ok=True)
            with self._lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"cell": key, **self.cells[key]}) + "\n")
            say(f"{key}: {seconds:.0f} s {json.dumps(value)[:150]}")
        return self.cells[key]

    def trained(self, name: str, tasks: Sequence[Task], **settings: Any) -> LoRA:
        """A LoRA that goes on from the start with some tasks; its cell is `train/NAME`.

        Where the cell came with the page, without the adapter, both are made again.
        """

        def train() -> dict[str, Any]:
            own = {"steps": self.args.steps, "batch_size": self.args.batch, "learning_rate": RATE}
            config = LoraTrainingConfig(**{**own, "checkpoint_every": 10, "max_length": 160, **settings})
            run = self.args.out / "runs" / name
            lora, summary = train_lora(
                self.backbone, tasks, self.targets, run, config, start=self.start, show_progress=False
            )
            self.keep(name, lora)
            return {"tokens": summary.tokens, "training_seconds": summary.seconds, "loss": summary.final_loss}

        if not self.has(name):
            self.cells.pop(f"train/{name}", None)
        self.cell(f"train/{name}", train)
        return self.kept_lora(name)

    def keep(self, name: str, lora: LoRA) -> None:
        """Write an adapter under its name."""
        card = AdapterCard(generator="benchmark", trained=True, start_sha256=self.start.fingerprint())
        save_adapter(self.args.out / "loras" / name, lora, shape=self.backbone.shape, card=card)

    def merged(self, name: str, make: Callable[[], LoRA]) -> LoRA:
        """An adapter that is made once and kept."""
        if not self.has(name):
            self.keep(name, make())
        return self.kept_lora(name)

    def has(self, name: str) -> bool:
        """True where an adapter is kept under a name."""
        return (self.args.out / "loras" / name).is_dir()

    def kept_lora(self, name: str) -> LoRA:
        """The adapter that is kept under a name."""
        return load_adapter(self.args.out / "loras" / name).lora

    def scored(self, key: str, tasks: Sequence[Task], lora: LoRA | Callable[[], LoRA] | None) -> Cell:
        """ROUGE-L, exact match and `strict` on the first test examples of every task, example by example.

        `strict` is 1 where the answer is a reference to the letter, capitals and marks included.
        """

        def measure() -> dict[str, Any]:
            own = lora() if callable(lora) else lora
            asked = [(task, e) for task in tasks for e in task.test[: self.args.examples]]
            requests = [e.input for _, e in asked]
            answers = generate_greedy(self.backbone, requests, own, max_new_tokens=self.args.max_new_tokens)
            found: dict[str, dict[str, list[float]]] = {}
            for (task, example), answer in zip(asked, answers, strict=True):
                of = found.setdefault(task.name, {"rouge_l": [], "exact_match": [], "strict": []})
                of["rouge_l"].append(round(rouge_l(answer, example.outputs), 4))
                of["exact_match"].append(exact_match(answer, example.outputs))
                of["strict"].append(float(answer.strip() in [o.strip() for o in example.outputs]))
            return {"scores": found}

        return self.cell(key, measure)

    def loss(self, lora: LoRA, tasks: Sequence[Task], examples: int) -> float:
        """Mean NLL per token over the first training examples of every task."""
        chosen = [e for task in tasks for e in task.train[:examples]]
        losses = reference_losses(
            self.backbone, [e.input for e in chosen], [e.outputs[0] for e in chosen], lora
        )
        return sum(losses) / len(losses)

    def chosen(self, key: str, tasks: Sequence[Task], candidates: Mapping[str, Callable[[], LoRA]]) -> str:
        """The candidate with the least loss on the selection examples."""
        each = self.args.selection_a_candidate

        def measure() -> dict[str, Any]:
            losses = {name: self.loss(make(), tasks, each) for name, make in candidates.items()}
            return {"losses": losses, "chosen": min(losses, key=lambda name: losses[name])}

        return str(self.cell(f"choice/{key}", measure)["chosen"])

    def sum_of(self, parents: Sequence[LoRA], weight: float, rank: int | None = None) -> LoRA:
        """The start and a weight of every parent's delta from it; `rank` truncates."""
        shares = [weight] * len(parents)
        whole = compose([*parents, self.start], [*shares, 1 - sum(shares)])
        return truncate(whole, rank) if rank and rank < whole.rank else whole

    def random_like(self, lora: LoRA, seed: int) -> LoRA:
        """The start and a random delta with the norm of a parent's in every module, of its rank."""
        generator = torch.Generator().manual_seed(seed)
        factors = {}
        for name, f in self.start.factors.items():
            norm = (lora.delta_weight(name) - self.start.delta_weight(name)).norm()
            a = torch.randn(lora.rank, f.a.shape[1], generator=generator)
            b = torch.randn(f.b.shape[0], lora.rank, generator=generator)
            factors[name] = LoraFactors(a, b * norm / (b @ a).norm())
        return compose([self.start, LoRA(factors, float(lora.rank))], [1.0, 1.0])


def divided(task: Task, selection: int) -> tuple[Task, Task]:
    """(what parents train on, what candidates are chosen by), drawn from the `train` list alone."""
    examples = list(task.train)
    random.Random(task.name).shuffle(examples)
    ask = {e.input for e in task.test}
    examples = [e for e in examples if e.input not in ask]
    return (
        replace(task, train=tuple(examples[selection:])),
        replace(task, train=tuple(examples[:selection])),
    )


def inputs_of(task: Task, count: int) -> list[str]:
    """Inputs of training examples, without their answers."""
    return [e.input for e in task.train[:count]]


def read_cells(path: Path) -> dict[str, Cell]:
    """Cell -> value, of a file of JSON lines; none where it is not there."""
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return {row.pop("cell"): row for row in rows}


def all_cells(args: argparse.Namespace) -> dict[str, Cell]:
    """The cells of --out, and those beside the page that --out lacks."""
    beside = args.page.with_suffix(".json")
    known = json.loads(beside.read_text("utf-8")) if beside.is_file() else {}
    return {**known, **read_cells(args.out / CELLS)}


def write_page(args: argparse.Namespace, page: Callable[[Mapping[str, Cell]], str]) -> None:
    """Write the page, and beside it the cells that it is made of, by which a fresh machine goes on."""
    cells = {key: rounded(cell) for key, cell in all_cells(args).items()}
    lines = [f"{json.dumps(key)}: {json.dumps(cell, separators=(',', ':'))}" for key, cell in cells.items()]
    write_file(args.page, page(cells))
    write_file(args.page.with_suffix(".json"), "{\n" + ",\n".join(lines) + "\n}\n")


def rounded(value: Any) -> Any:
    """JSON with numbers of 5 digits; those without a fraction are integers."""
    if isinstance(value, Mapping):
        return {key: rounded(own) for key, own in value.items()}
    if isinstance(value, list):
        return [rounded(own) for own in value]
    if isinstance(value, float) and math.isfinite(value):
        near = float(f"{value:.5g}")
        return int(near) if near.is_integer() else near
    return value


def say(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)
