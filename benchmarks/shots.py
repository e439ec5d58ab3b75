"""How much each further solved example helps: every way to use k of them, paired over tasks and draws.

    python benchmarks/shots.py --counts 0 4 8 16 32 --draws 3

Each cell (method, task, number, draw) is kept under --work and not measured again, so a run that was stopped
goes on. Besides the rows of `shoal evaluate --shots-curve` there are the identity and the nearest training
task's LoRA, refined in the same way, and LoRAs of the whole task (oracle) at two rates. --methods takes some.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from _machine import DATA, ROOT, machine
from _unseen_tasks_rows import digest, say, tensors_of

from shoal.adapters.lora import LoRA
from shoal.config import LoraTrainingConfig
from shoal.evaluation.baselines import nearest_tasks
from shoal.evaluation.shots import Prepared, Shots, ShotsMethod, measure_shots
from shoal.evaluation.shots_methods import REFINED, curve_methods, in_prompt, refined_method
from shoal.files import write_file
from shoal.models.backbone import DEFAULT_MODEL, Backbone, load_backbone
from shoal.tasks.loading import Split, Task, load_split
from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.text_to_lora.generator import TextToLoRA
from shoal.training.lora import train_lora

SHIPPED = ROOT / "shoal" / "weights" / DEFAULT_MODEL
IDENTITY = "identity, refined"
NEAREST = "nearest task's LoRA, refined"
MULTI_TASK_PROMPT = "multi-task LoRA, description and shots in the prompt"
ORACLE = "oracle LoRA"
ORACLE_RATES = (1e-3, 3e-3)


def main() -> None:
    args = parse()
    split = load_split(args.data)
    tasks = getattr(split, args.split)[: args.tasks]
    backbone = load_backbone(args.base)
    generator = TextToLoRA(backbone=backbone, hypernetwork=args.hypernetwork)
    rows = curve_methods(backbone, generator.emitter, tasks)
    rows |= {row.name: row for row in more_rows(args, backbone, generator, split, tasks)}
    unknown = sorted(set(args.methods) - rows.keys())
    if unknown:
        sys.exit(f"unknown method {unknown[0]!r}; choose from " + ", ".join(map(repr, rows)))
    chosen = [row for name, row in rows.items() if not args.methods or name in args.methods]
    report = measure_shots(
        backbone,
        tasks,
        chosen,
        args.counts,
        args.work / "cells",
        draws=args.draws,
        examples=args.examples,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
        notes={"command": shlex.join(["python", *sys.argv]), "machine": machine(backbone.dtype)},
        on_cell=say,
    )
    table = report.to_markdown(REFINED if REFINED in report.cells else None)
    about = f"{report.notes['machine']}.\n\nMade by `{report.notes['command']}`."
    out: Path = args.out or args.work
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / "shots.json", json.dumps(report.to_json(), indent=1) + "\n")
    write_file(out / "shots.md", f"# Numbers of solved examples\n\n{table}\n\n{about}\n")
    print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--counts", type=int, nargs="+", default=[0, 4, 8, 16, 32], help="numbers of solved examples")
    add("--draws", type=int, default=1, help="draws of them for each task")
    add("--methods", nargs="+", default=[], metavar="NAME", help="rows; default all")
    add("--hypernetwork", type=Path, default=SHIPPED)
    add("--base", default=DEFAULT_MODEL)
    add("--data", type=Path, default=DATA)
    add("--split", choices=("validation", "validation_2"), default="validation", help="tasks that are asked")
    add("--tasks", type=int, help="take the first N of them; default all")
    add("--examples", type=int, default=20, help="test examples a task")
    add("--max-new-tokens", type=int, default=40, help="limit of an answer")
    add("--lora-steps", type=int, default=40, help="of each oracle and nearest task's LoRA, 8 examples each")
    add("--work", type=Path, default=ROOT / "runs" / "shots", help="finished cells and trained LoRAs")
    add("--out", type=Path, help="where shots.json and shots.md go; default --work")
    add("--seed", type=int, default=0, help="of draws and trainings")
    return parser.parse_args()


def more_rows(
    args: argparse.Namespace, backbone: Backbone, generator: TextToLoRA, split: Split, tasks: Sequence[Task]
) -> list[ShotsMethod]:
    """The rows that need trainings, or other networks than the generator's own."""
    checkpoint = generator.emitter.checkpoint
    learned, network = checkpoint.refining, tensors_of(args.hypernetwork)
    like = checkpoint.multi_task or checkpoint.network.offset_lora()
    identity = LoRA.identity(checkpoint.network.targets, like.rank, like.alpha)
    rows = [
        refined_method(IDENTITY, lambda shots: identity, network, backbone=backbone, learned=learned),
        in_prompt(MULTI_TASK_PROMPT, backbone, like, network),
    ]
    if not args.methods or NEAREST in args.methods:
        nearest = dict(
            zip((t.name for t in tasks), nearest_tasks(TaskEncoder(), tasks, split.train), strict=True)
        )
        key = digest(network, args.lora_steps, *(t.name for t in nearest.values()))

        def near(shots: Shots) -> LoRA:
            return whole_task_lora(args, backbone, like, nearest[shots.task.name], ORACLE_RATES[0])

        rows.append(refined_method(NEAREST, near, key, backbone=backbone, learned=learned))
    for rate in ORACLE_RATES:
        key = digest(network, args.lora_steps, rate)
        rows.append(
            ShotsMethod(
                f"{ORACLE}, rate {rate:g}",
                oracle(args, backbone, like, rate),
                uses_shots=False,
                depends_on=key,
            )
        )
    return rows


def oracle(args: argparse.Namespace, backbone: Backbone, like: LoRA, rate: float):
    """A LoRA trained on all of the task's `train` list, at one rate."""

    def prepare(shots: Shots) -> Prepared:
        started = time.perf_counter()
        lora = whole_task_lora(args, backbone, like, shots.task, rate)
        return Prepared(lora, time.perf_counter() - started)

    return prepare


def whole_task_lora(
    args: argparse.Namespace, backbone: Backbone, like: LoRA, task: Task, rate: float
) -> LoRA:
    """The LoRA of a task from the multi-task LoRA on, trained once and kept under the work directory."""
    steps = args.lora_steps
    config = LoraTrainingConfig(
        steps=steps, batch_size=8, learning_rate=rate, checkpoint_every=steps, seed=args.seed
    )
    targets = [t for t in backbone.shape.targets if t.name in like.factors]
    folder = args.work / "loras" / f"{task.name}-{digest(like.fingerprint(), config.model_dump_json())}"
    lora, _ = train_lora(backbone, [task], targets, folder, config, start=like, show_progress=False)
    return lora


if __name__ == "__main__":
    main()
