"""What a few solved examples beside the description cost and bring, on every validation task.

    python benchmarks/few_shot.py --examples 4 8 16 --scored 20

Without --scored only the time is measured. Answers are those to `test` examples, greedy.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from _machine import DATA, machine, table

from shoal.adapters.lora import LoRA
from shoal.evaluation.evaluate import Method, Report, evaluate
from shoal.evaluation.reports import METRICS, cell
from shoal.models.backbone import DEFAULT_MODEL
from shoal.tasks.loading import Task, load_split
from shoal.text_to_lora.generator import TextToLoRA

WITHOUT = "no examples"


def main() -> None:
    args = parse()
    generator = TextToLoRA(DEFAULT_MODEL)
    tasks = load_split(args.data).validation[: args.tasks]
    adapters = {WITHOUT: {t.name: generator.generate(t.descriptions[0]).lora for t in tasks}}
    rows = []
    for count in args.examples:
        made, seconds = refined(generator, tasks, count, args.seed)
        adapters[f"{count} examples"] = made
        rows.append([f"{count} examples", f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}"])
    print(f"{len(tasks)} tasks; {machine(generator.backbone.dtype)}\n")
    print(table(["", "median s", "longest s (target for 16: at most 30)"], rows) + "\n")
    if args.scored:
        methods = [Method(name, lambda task, own=own: own[task.name]) for name, own in adapters.items()]
        limits = {"examples": args.scored, "max_new_tokens": 40}
        print(scores(evaluate(generator.backbone, tasks, methods, samples=0, **limits)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--tasks", type=int, help="take the first N validation tasks; default all")
    parser.add_argument("--examples", type=int, nargs="+", default=[16])
    parser.add_argument("--scored", type=int, default=0, help="test examples a task to score answers on")
    parser.add_argument("--seed", type=int, default=0, help="of the examples")
    return parser.parse_args()


def refined(
    generator: TextToLoRA, tasks: Sequence[Task], count: int, seed: int
) -> tuple[dict[str, LoRA], list[float]]:
    """(adapter by task name, seconds of each) of first descriptions and `count` examples of `train`."""
    adapters, seconds = {}, []
    for task in tasks:
        chance = random.Random(f"{seed}/{task.name}")
        examples = chance.sample(task.train, min(count, len(task.train)))
        started = time.perf_counter()
        adapters[task.name] = generator.generate(task.descriptions[0], examples=examples).lora
        seconds.append(time.perf_counter() - started)
    return adapters, seconds


def scores(report: Report) -> str:
    """Every row's scores, its lead over no examples, and on how many tasks it is a point of ROUGE-L worse."""
    before = report.result(WITHOUT).scores["rouge_l"]
    rows = []
    for result in report.results:
        row = [result.name, *(cell(result.intervals[metric], metric) for metric in METRICS)]
        if result.name != WITHOUT:
            worse = sum(after < before[task] - 0.01 for task, after in result.scores["rouge_l"].items())
            row += [cell(report.difference(result.name, WITHOUT, "rouge_l"), "rouge_l"), str(worse)]
        rows.append(row + [""] * (len(METRICS) + 3 - len(row)))
    header = ["", *METRICS.values(), f"ROUGE-L minus that of {WITHOUT}", "tasks that lose a point"]
    return table(header, rows)


if __name__ == "__main__":
    main()
