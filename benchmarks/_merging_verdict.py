"""Merged, mixed or routed: verdicts on merges that were measured, and on adapters whose answer is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace

from _machine import machine
from _merging_apart import Apart, of_seed
from _merging_bench import Bench

from shoal.adapters.lora import LoRA, LoraFactors
from shoal.adapters.merging import compose, truncate
from shoal.adapters.merging.closed_form import RANK
from shoal.merging.verdict import judge
from shoal.tasks.loading import Task

MERGES = ("mean", "regmean_48", "evolved")  # names of what `closed_forms` and `searches` keep
SKILL, OTHER = "worldcities_country", "clickbait_headline"  # neither answers the other's task


def verdict(bench: Bench, seed: int) -> None:
    """The verdict on every merge that is there, cut to the rank of one slot, and on six known answers."""
    own = of_seed(bench, seed)
    tasks = _tasks(own)
    for name in MERGES:
        if bench.has(f"{name}-{seed}"):
            merged = bench.kept_lora(f"{name}-{seed}")
            merged = truncate(merged, min(RANK, merged.rank))
            bench.cell(
                f"verdict/{seed}/{name}",
                lambda merged=merged: {
                    **asdict(judge(bench.backbone, own.parents, merged, tasks, bench.start)),
                    "machine": machine(bench.backbone.dtype),
                },
            )
    skills = [task for task in tasks if task.name == SKILL]
    if skills and OTHER in own.parents:
        for name, (parents, merged, right) in _known(own).items():
            bench.cell(
                f"known/{seed}/{name}",
                lambda parents=parents, merged=merged, right=right: {
                    "right": right,
                    **asdict(judge(bench.backbone, parents, merged, skills, bench.start)),
                },
            )


def _tasks(own: Apart) -> list[Task]:
    """The six with the examples that choose, which no parent saw, and those that decide."""
    count = own.bench.args.examples
    return [
        replace(task, train=chosen.train[:count], test=task.test[:count])
        for task, chosen in zip(own.tasks, own.selection, strict=True)
    ]


Known = tuple[Mapping[str, LoRA], LoRA, str]  # parents, what is made of them, and the right verdict


def _known(own: Apart) -> dict[str, Known]:
    """Six suites by construction: `whole` is a skill, the rest is made of it."""
    bench, whole, other = own.bench, own.parents[SKILL], own.parents[OTHER]
    start = bench.start
    first, last = _halves(whole, start, bench.backbone.shape.num_layers)
    halves = {"first": first, "last": last}
    against = compose([start, whole], [2.0, -1.0])
    without = compose([start, other, whole], [1.0, 1.0, -1.0])
    return {
        "one skill twice": ({"one": whole, "two": whole}, whole, "merge"),
        "a skill and nothing": ({"skill": whole, "nothing": start}, whole, "merge"),
        "both halves of a skill's layers": (halves, whole, "merge"),
        "a skill and its opposite, mean": ({"skill": whole, "opposite": against}, start, "route"),
        "a skill and another that takes it back, sum": ({"skill": whole, "other": without}, other, "route"),
        "both halves, of which one file has a tenth": (
            halves,
            compose([start, whole], [0.9, 0.1]),
            "mix",
        ),
    }


def _halves(whole: LoRA, start: LoRA, layers: int) -> tuple[LoRA, LoRA]:
    """The start with what a skill changes in the first half of the layers, and with the rest."""
    change = compose([whole, start], [1.0, -1.0])

    def part(first: bool) -> LoRA:
        factors = {}
        for name, f in change.factors.items():
            layer = next(int(word) for word in name.split(".") if word.isdigit())
            factors[name] = LoraFactors(f.a, f.b if (layer < layers // 2) == first else 0 * f.b)
        return compose([start, replace(change, factors=factors)], [1.0, 1.0])

    return part(True), part(False)
