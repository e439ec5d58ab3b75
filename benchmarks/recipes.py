"""Which recipe steers unseen tasks after a short training: heads, data, losses, starts and adapted modules.

    python benchmarks/recipes.py --start DIR

Every recipe differs from configs/text_to_lora.yaml as its row says, and trains for as many steps of one seed.
Runs are kept under --work and go on where they stopped; several processes may work on different --only, and
--report joins what is there. Writes docs/results/recipes.md and recipes.json.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import dataclass, field, replace
from typing import Any

from _machine import table
from _short_runs import (
    add_arguments,
    curve,
    limits,
    parsed,
    reproduce,
    say,
    score,
    scored,
    shipped_recipe,
    train,
    training_tasks,
    with_made_ones,
)

from shoal.evaluation.baselines import right_description
from shoal.evaluation.evaluate import Report
from shoal.evaluation.reports import METRICS, cell
from shoal.files import write_file
from shoal.models.backbone import DEFAULT_MODEL, Backbone, load_backbone
from shoal.tasks.loading import Split, load_split
from shoal.tasks.metrics import bootstrap_difference
from shoal.text_to_lora.emission import Emitter
from shoal.text_to_lora.generator import TextToLoRA

# For heads that read one vector a description, which takes noise in place of hidden tokens.
SENTENCE = {"learning_rate": 3e-4, "dropout": 0.05, "embedding_noise": 0.1, "token_dropout": 0.0}


@dataclass(frozen=True)
class Change:
    """How a recipe differs from that of configs/text_to_lora.yaml.

    Attributes:
        said: in words.
        settings: other values of configs/text_to_lora.yaml.
        started: whether it starts from the multi-task LoRA.
        reproduced: so many training tasks' own LoRAs are reproduced first, for as many steps as follow.
    """

    said: str
    settings: dict[str, Any] = field(default_factory=dict)
    started: bool = True
    reproduced: int = 0


FIRST = "reader"
RECIPES = {
    FIRST: Change("head reader, as in configs/text_to_lora.yaml"),
    "perceiver": Change("head perceiver", {"head": "perceiver"}),
    "large": Change("head L", {"head": "L", **SENTENCE}),
    "medium": Change("head M", {"head": "M", **SENTENCE}),
    "small": Change("head S", {"head": "S", **SENTENCE}),
    "mixture": Change("head mixture, 16 bases", {"head": "mixture", **SENTENCE}),
    "modulation": Change("head modulation", {"head": "modulation", **SENTENCE}),
    "no-contrast": Change("without the wrong-description term", {"contrastive_weight": 0.0}),
    "more-contrast": Change("that term on a quarter of the batch", {"contrastive_share": 0.25}),
    "dropped": Change("a fifth of the descriptions dropped", {"description_dropout": 0.2}),
    "few-texts": Change("4 descriptions a task", {"max_descriptions": 4}),
    "data-alone": Change("data tasks alone", {"procedural": 0, "label_sets": 0, "relabelled": 0}),
    "rewrites": Change("and 120 tasks over the texts of others", {"rewrites": 120}),
    "reconstruction": Change("after reproducing the LoRAs of 24 training tasks", reproduced=24),
    "scratch": Change("from zero", started=False),
    "last-layers": Change(
        "from zero, last 8 layers, q k v o, rank 16",
        {
            "target_modules": ("q_proj", "k_proj", "v_proj", "o_proj"),
            "num_layers_to_adapt": 8,
            "adapter_rank": 16,
            "adapter_alpha": 32,
        },
        started=False,
    ),
    "mlp": Change(
        "from zero, up and down projections, rank 4",
        {"target_modules": ("up_proj", "down_proj"), "adapter_rank": 4, "adapter_alpha": 8},
        started=False,
    ),
}


def main() -> None:
    args = parse()
    if not args.report:
        backbone, split = load_backbone(DEFAULT_MODEL), load_split(args.data)
        for name in args.only:
            one_run(args, backbone, split, name)
    if args.report or (args.work / FIRST / "report.json").is_file():
        write(args)
    else:
        say(f"no report: it compares with {FIRST}, which was not trained yet")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, steps=120, work="recipes")
    parser.add_argument(
        "--only", nargs="+", choices=RECIPES, default=list(RECIPES), help="recipes to train; default all"
    )
    return parsed(parser)


def one_run(args: argparse.Namespace, backbone: Backbone, split: Split, name: str) -> None:
    """Train and score one recipe, unless it was."""
    place, change = args.work / name, RECIPES[name]
    recipe = {**shipped_recipe(), **change.settings}
    start = args.start if change.started else None
    same = limits(args, recipe, start)
    if scored(place, same):
        return
    tasks, tokens = with_made_ones(training_tasks(split, recipe), split, recipe), 0
    if change.reproduced:
        chosen = random.Random(0).sample(split.train, change.reproduced)
        start, tokens = reproduce(place, backbone, chosen, recipe, start=start, steps=args.steps)
    train(place, backbone, split, tasks, recipe, steps=args.steps, seed=0, start=start)
    generator = TextToLoRA(backbone=backbone, hypernetwork=place / "network")
    facts = {**same, "recipe": name, "tasks": len(tasks), "curve": curve(place)}
    facts["tokens"] = tokens + generator.checkpoint.provenance["tokens"]
    facts["seconds"] = generator.checkpoint.provenance["seconds"]
    checkpoint = replace(generator.checkpoint, known_tasks=None)
    method = right_description(Emitter(checkpoint, generator.encoder, backbone))
    score(place, backbone, split, [method], args.examples, facts)
    say(f"{name}: {facts['curve'][-1]}")


def write(args: argparse.Namespace) -> None:
    paths = [args.work / name / "report.json" for name in RECIPES]
    reports = [Report.from_json(json.loads(path.read_text("utf-8"))) for path in paths if path.is_file()]
    if not reports or reports[0].notes["recipe"] != FIRST:
        sys.exit(f"{args.work} has no run of {FIRST}, which the others are compared with; train it")
    header = ["recipe", "tasks", "tokens", "unseen loss, by step", "margin, by step"]
    header += [*METRICS.values(), f"NLL minus that of {FIRST}"]
    notes, tasks = reports[0].notes, len(reports[0].tasks)
    text = [
        "# Recipes, trained for a short time\n",
        table(header, [result_row(report, reports[0]) for report in reports]),
        "\nEach differs from configs/text_to_lora.yaml as its row says (heads that read one vector a "
        "description also in "
        + ", ".join(f"{name} {value:g}" for name, value in SENTENCE.items())
        + "), and has "
        f"{notes['steps']} steps of one seed, from one multi-task LoRA or from zero. Unseen loss and "
        "steering margin (another task's description minus the right one) on at most "
        f"{shipped_recipe()['monitor_examples']} `train` examples of each of {tasks} validation "
        "tasks; ROUGE-L, exact match (percent) and NLL (nats) on at most "
        f"{notes['examples']} `test` examples, first description, mean over tasks with its 95% bootstrap "
        "interval; the last column paired over tasks.\n",
        f"{notes['machine']}.\n",
        f"Command: `python benchmarks/recipes.py --start {notes['start']} --steps {notes['steps']} "
        f"--examples {notes['examples']}`\n",
    ]
    write_file(args.out / "recipes.md", "\n".join(text))
    write_file(args.out / "recipes.json", json.dumps([r.to_json() for r in reports], indent=1) + "\n")
    print("\n".join(text))


def result_row(report: Report, first: Report) -> list[str]:
    result, points = report.results[0], report.notes["curve"]
    cells = [cell(result.intervals[metric], metric) for metric in METRICS]
    own, other = (list(r.results[0].scores["nll"].values()) for r in (report, first))
    return [
        RECIPES[report.notes["recipe"]].said,
        str(report.notes["tasks"]),
        f"{report.notes['tokens']:,}",
        ", ".join(f"{point['unseen_loss']:.2f}" for point in points),
        ", ".join(f"{point['unseen_margin']:.2f}" for point in points),
        *cells,
        "" if report is first else cell(bootstrap_difference(own, other), "nll"),
    ]


if __name__ == "__main__":
    main()
