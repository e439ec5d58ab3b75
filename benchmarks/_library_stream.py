"""One order of the tasks: every method's adapter after every task, on all tasks, cell by cell."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from _merging_apart import SELECTION, TASKS
from _merging_bench import RATE, Bench, divided

from shoal.adapters.lora import LoRA
from shoal.config import LoraTrainingConfig
from shoal.evaluation.predictors import Predictor
from shoal.evaluation.retention import base_ability
from shoal.inference.generate import generate_greedy
from shoal.tasks.loading import Task, load_split
from shoal.tasks.metrics import rouge_l
from shoal.training.continual import learn_stream

# Row of the page -> method of the table, and share of old examples that is kept.
ROWS: dict[str, tuple[str, float]] = {
    "sequential": ("sequential", 0),
    "replay, 16 a task": ("replay", 16 / 240),
    "replay, 1%": ("replay", 0.01),
    "replay, 5%": ("replay", 0.05),
    "replay, 20%": ("replay", 0.2),
    "ewc": ("ewc", 0),
    "orthogonal": ("orthogonal", 0),
    "slao": ("slao", 0),
    "regmean": ("regmean", 0),
    "joint": ("joint", 1),
}


def learn_order(bench: Bench, order: int) -> None:
    """Learn the tasks in one order by every method, and score every stage on all of them."""
    args = bench.args
    known = {t.name: t for t in load_split(args.data).train}
    tasks = [divided(known[name], SELECTION)[0] for name in TASKS[: args.tasks]]
    tasks = [dataclasses.replace(t, train=t.train[: args.train]) for t in tasks]
    bench.scored("base", tasks, None)
    bench.cell("base, described", partial(described, bench, tasks))
    bench.scored("start", tasks, bench.start)
    general(bench, "base", lambda: None)
    general(bench, "start", lambda: bench.start)
    for task in tasks:  # a library's adapters: the same in every order
        name = f"own/{task.name}"
        bench.scored(
            name, tasks, partial(bench.trained, name.replace("/", "-"), [task], batch_size=args.batch)
        )
    sequence = list(tasks)
    random.Random(order).shuffle(sequence)
    bench.cell(f"order/{order}", lambda: {"tasks": [t.name for t in sequence]})
    for row in args.methods or ROWS:
        learn_row(bench, order, row, sequence)


def learn_row(bench: Bench, order: int, row: str, tasks: Sequence[Task]) -> None:
    """Every stage of one method, unless its last cell is there."""
    prefix = f"{row}/{order}"
    if f"{prefix}/general" in bench.cells:
        return
    args, (method, share) = bench.args, ROWS[row]
    config = LoraTrainingConfig(
        steps=args.steps, batch_size=args.batch, learning_rate=RATE, checkpoint_every=10, max_length=160
    )
    folder = args.out / "streams" / prefix.replace("%", "").replace(", ", "-").replace(" ", "-")
    keep = round(share * args.train) if method == "replay" else 0
    settings: dict[str, Any] = {"method": method, "start": bench.start, "show_progress": False, "keep": keep}
    lora = bench.start
    stages = learn_stream(bench.backbone, tasks, bench.targets, folder, config, **settings)
    for number, stage in enumerate(stages, start=1):
        lora = stage.lora
        bench.cell(
            f"{prefix}/learnt {number}",
            lambda stage=stage: {
                "task": stage.task,
                "tokens": stage.summary.tokens,
                "training_seconds": stage.summary.seconds,
                "rank": stage.lora.rank,
                "bytes": stage.lora.nbytes,
            },
        )
        bench.scored(f"{prefix}/{number}", tasks, lora)
    general(bench, prefix, lambda: lora)


def general(bench: Bench, prefix: str, lora: Callable[[], LoRA | None]) -> None:
    """General questions under an adapter."""
    bench.cell(
        f"{prefix}/general", lambda: dataclasses.asdict(base_ability(Predictor(bench.backbone, lora())))
    )


def described(bench: Bench, tasks: Sequence[Task]) -> dict[str, Any]:
    """The base model with the description in its prompt."""
    found = {}
    for task in tasks:
        asked = task.test[: bench.args.examples]
        requests = [task.described(e.input) for e in asked]
        answers = generate_greedy(bench.backbone, requests, max_new_tokens=bench.args.max_new_tokens)
        scores = [round(rouge_l(a, e.outputs), 4) for a, e in zip(answers, asked, strict=True)]
        found[task.name] = {"rouge_l": scores}
    return {"scores": found}
