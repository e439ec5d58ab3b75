"""Text-to-LoRA's score on unseen tasks by training tasks and tokens: short runs, some seeds.

    python benchmarks/task_scaling.py --start DIR

Each run trains the recipe of configs/text_to_lora.yaml for few steps on a share of the training tasks, from
one multi-task LoRA, and is scored on the validation tasks. Runs are kept under --work and go on where they
stopped; two processes may work on different --shares or --seeds, and --report joins what is there. Writes
docs/results/task_scaling.json, .md and .png.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from _machine import table
from _short_runs import (
    add_arguments,
    curve,
    limits,
    parsed,
    score,
    scored,
    shipped_recipe,
    train,
    training_tasks,
    with_made_ones,
)
from matplotlib.figure import Figure

from shoal.adapters.files import load_adapter
from shoal.evaluation.baselines import other_description, right_description
from shoal.evaluation.evaluate import Method, Report
from shoal.evaluation.reports import METRICS, cell
from shoal.files import write_file
from shoal.models.backbone import DEFAULT_MODEL, Backbone, load_backbone
from shoal.tasks.loading import Split, load_split
from shoal.tasks.metrics import bootstrap_difference
from shoal.text_to_lora.emission import Emitter
from shoal.text_to_lora.generator import TextToLoRA

START = "multi-task LoRA that all start from"


def main() -> None:
    args = parse()
    if not args.report:
        backbone, split = load_backbone(DEFAULT_MODEL), load_split(args.data)
        for share in args.shares:
            for seed in args.seeds:
                one_run(args, backbone, split, share, seed)
        start_report(args, backbone, split)
    runs = sorted(args.work.glob("*/report.json"))
    facts = [json.loads(path.read_text("utf-8")) for path in runs]
    write(args, facts)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, steps=240, work="task_scaling")
    add = parser.add_argument
    add("--shares", type=float, nargs="+", default=[0.1, 0.25, 0.5, 1.0], help="of the training tasks")
    add("--seeds", type=int, nargs="+", default=[0], help="of the drawn tasks, initialisation and batches")
    return parsed(parser)


def one_run(args: argparse.Namespace, backbone: Backbone, split: Split, share: float, seed: int) -> None:
    """Train and score one network, unless it was."""
    place = args.work / f"share{share:g}-seed{seed}"
    recipe = shipped_recipe()
    same = limits(args, recipe, args.start)
    if scored(place, same):
        return
    given = training_tasks(split, recipe, seed)
    tasks = given[: max(2, round(share * len(given)))]
    every = with_made_ones(tasks, split, recipe, share)
    train(place, backbone, split, every, recipe, steps=args.steps, seed=seed, start=args.start)
    generator = TextToLoRA(backbone=backbone, hypernetwork=place / "network")
    checkpoint = replace(generator.checkpoint, known_tasks=None)  # few tasks cannot fit them
    unguarded = Emitter(checkpoint, generator.encoder, backbone)
    methods = [right_description(unguarded), other_description(unguarded, split.validation)]
    facts = {**same, "share": share, "seed": seed, "tasks": len(tasks)}
    facts |= {"tokens": generator.checkpoint.provenance["tokens"], "curve": curve(place)}
    score(place, backbone, split, methods, args.examples, facts)


def start_report(args: argparse.Namespace, backbone: Backbone, split: Split) -> None:
    """Score what every run starts from."""
    place, same = args.work / "start", limits(args, shipped_recipe(), args.start)
    if not scored(place, same):
        lora = load_adapter(args.start).lora
        facts = {**same, "share": 0}
        score(place, backbone, split, [Method(START, lambda task: lora)], args.examples, facts)


def write(args: argparse.Namespace, facts: Sequence[dict[str, Any]]) -> None:
    reports = [Report.from_json(f) for f in facts]
    runs = sorted((r for r in reports if r.notes["share"]), key=lambda r: (r.notes["share"], r.notes["seed"]))
    start = [r for r in reports if not r.notes["share"]]
    rows = [result_row(r) for r in [*start, *runs]]
    header = [
        "training tasks",
        "seed",
        "tokens",
        "ROUGE-L",
        "exact match",
        "NLL per token",
        "steering margin",
    ]
    notes = runs[0].notes
    text = [
        "# Text-to-LoRA's score on unseen tasks by the number of training tasks\n",
        table(header, rows),
        f"\n{len(runs[0].tasks)} validation tasks, at most {notes['examples']} test examples each, first "
        "description; mean over tasks with its 95% bootstrap interval. ROUGE-L and exact match in percent, "
        "NLL and margin (another task's description minus the right one) in nats. Every run has "
        f"{notes['steps']} steps of the recipe in configs/text_to_lora.yaml, whose relabelled copies and "
        "label sets are made of these tasks alone and are not counted. All start from one multi-task LoRA, "
        "which was trained on all tasks: the number is that of tasks from which steering is learned.\n",
        *seeds_said(runs),
        "![NLL and ROUGE-L by number of tasks, and unseen loss by step](task_scaling.png)\n",
        "Dashed: the multi-task LoRA at the start. The unseen loss is that on at most "
        f"{shipped_recipe()['monitor_examples']} `train` examples a validation task.\n",
        f"{notes['machine']}.\n",
        "Commands: " + ", ".join(f"`{command}`" for command in commands(runs)) + "\n",
    ]
    write_file(args.out / "task_scaling.md", "\n".join(text))
    write_file(
        args.out / "task_scaling.json", json.dumps([r.to_json() for r in [*start, *runs]], indent=1) + "\n"
    )
    draw(runs, start, args.out / "task_scaling.png")
    print("\n".join(text))


def commands(runs: Sequence[Report]) -> list[str]:
    """What trains and scores these runs: one command for the seeds that have the same shares."""
    shares = {r.notes["seed"]: [] for r in runs}
    for run in runs:
        shares[run.notes["seed"]].append(f"{run.notes['share']:g}")
    seeds: dict[str, list[str]] = {}
    for seed, own in shares.items():
        seeds.setdefault(" ".join(own), []).append(str(seed))
    return [
        f"python benchmarks/task_scaling.py --start DIR --steps {runs[0].notes['steps']} "
        f"--examples {runs[0].notes['examples']} --shares {own} --seeds {' '.join(numbers)}"
        for own, numbers in seeds.items()
    ]


def result_row(report: Report) -> list[str]:
    first, *others = report.results
    cells = [cell(first.intervals[metric], metric) for metric in METRICS]
    margin = ""
    if others:
        wrong, right = (list(result.scores["nll"].values()) for result in (others[0], first))
        margin = cell(bootstrap_difference(wrong, right), "nll")
    if not report.notes["share"]:
        return [START, "", "", *cells, margin]
    return [
        str(report.notes["tasks"]),
        str(report.notes["seed"]),
        f"{report.notes['tokens']:,}",
        *cells,
        margin,
    ]


def mean(report: Report, metric: str) -> float:
    return report.results[0].intervals[metric].mean


def seeds_said(runs: Sequence[Report]) -> list[str]:
    """The spread between seeds of the largest share, where there are several."""
    largest = max(r.notes["share"] for r in runs)
    scores = [100 * mean(r, "rouge_l") for r in runs if r.notes["share"] == largest]
    if len(scores) < 2:
        return []
    return [
        f"All tasks, {len(scores)} seeds: ROUGE-L {statistics.mean(scores):.1f}, standard deviation between "
        f"seeds {statistics.stdev(scores):.1f}.\n"
    ]


def draw(runs: Sequence[Report], start: Sequence[Report], path: Path) -> None:
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    tasks = [r.notes["tasks"] for r in runs]
    for axis, metric, scale, name in (
        (axes[0], "nll", 1, "NLL per token"),
        (axes[1], "rouge_l", 100, "ROUGE-L"),
    ):
        axis.plot(tasks, [scale * mean(r, metric) for r in runs], "o", color="#0072b2")
        for report in start:
            axis.axhline(scale * mean(report, metric), color="#7a8594", linestyle="--")
        axis.set(xlabel="training tasks", ylabel=f"{name}, unseen tasks", xscale="log")
        axis.set_xticks(sorted(set(tasks)), [str(t) for t in sorted(set(tasks))])
        axis.minorticks_off()
    for report in runs:
        points = report.notes["curve"]
        label = f"{report.notes['tasks']} tasks, seed {report.notes['seed']}"
        axes[2].plot([p["step"] for p in points], [p["unseen_loss"] for p in points], label=label)
    axes[2].set(xlabel="step", ylabel="unseen loss")
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
