"""The verdict on a merge: right on suites of known answer, and honest where examples are few."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from types import ModuleType

import pytest
import torch

from shoal.adapters.lora import LoRA
from shoal.adapters.merging import Merged, compose, merge
from shoal.errors import UsageError
from shoal.merging.verdict import Verdict, judge, with_verdict
from shoal.models.backbone import Backbone
from shoal.tasks.loading import Task

Parents = dict[str, LoRA]


def part(lora: LoRA, *endings: str) -> LoRA:
    """The adapter on some modules alone."""
    factors = {
        name: f if name.endswith(endings) else f._replace(b=torch.zeros_like(f.b))
        for name, f in lora.factors.items()
    }
    return replace(lora, factors=factors)


def known(task: Task) -> Task:
    """The task tested on what its adapter has learnt: the tiny model does not generalise."""
    return replace(task, train=task.train[:5], test=task.train[5:])


# Name -> parents made from the trained ones, the tasks, how they are merged, and the right verdict.
Suite = tuple[Callable[[Parents], Parents], tuple[str, ...], Callable[[Parents], Merged], str]
SUITES: dict[str, Suite] = {
    "the same skill twice": (
        lambda p: {"one": p["upper"], "two": p["upper"]},
        ("upper",),
        lambda p: merge(p, method="linear"),
        "merge",
    ),
    "a skill and an adapter without effect": (
        lambda p: {"one": p["upper"], "two": part(p["double"])},
        ("upper",),
        lambda p: merge(p, method="task_arithmetic"),
        "merge",
    ),
    "two halves of one skill": (
        lambda p: {"one": part(p["upper"], "q_proj", "v_proj"), "two": part(p["upper"], "down_proj")},
        ("upper",),
        lambda p: merge(p, method="task_arithmetic"),
        "merge",
    ),
    "a skill and its opposite": (
        lambda p: {"one": p["upper"], "two": p["upper"] * -1.0},
        ("upper",),
        lambda p: merge(p, method="linear"),
        "route",
    ),
    "two answers to the same inputs": (
        dict,
        ("upper", "double"),
        lambda p: merge(p, method="linear"),
        "route",
    ),
    "two halves of one skill that a small rank loses": (
        lambda p: {"one": part(p["upper"], "q_proj", "v_proj"), "two": part(p["upper"], "down_proj")},
        ("upper",),
        lambda p: merge([p["one"] * 0.1, p["two"] * 0.1], method="task_arithmetic", rank=1),
        "mix",
    ),
}


def judged(name: str, toy: ModuleType, sharp: Backbone, trained: Parents) -> tuple[Merged, Verdict]:
    make, tasks, merged_of, _ = SUITES[name]
    parents = make(trained)
    merged = merged_of(parents)
    return merged, judge(sharp, parents, merged.lora, [known(toy.toy_task(rule)) for rule in tasks])


def test_the_verdict_is_right_in_five_of_six_suites(
    toy: ModuleType, sharp: Backbone, parents: Parents
) -> None:
    found = {name: judged(name, toy, sharp, parents)[1].choice for name in SUITES}
    assert sum(found[name] == suite[3] for name, suite in SUITES.items()) >= 5, found


def test_the_report_has_every_way_with_what_it_keeps_and_costs(
    toy: ModuleType, sharp: Backbone, parents: Parents
) -> None:
    merged, verdict = judged("two answers to the same inputs", toy, sharp, parents)
    assert verdict.parents == {"upper": "upper", "double": "double"}
    assert verdict.ways["route"].retention.mean == pytest.approx(1)
    assert verdict.ways["route"].bytes == sum(lora.nbytes for lora in parents.values())
    assert verdict.ways["merge"].bytes == merged.lora.nbytes
    assert all(way.seconds > 0 and set(way.by_task) == {"upper", "double"} for way in verdict.ways.values())
    assert verdict.examples == 10 and 0 < abs(verdict.optimism) < 1  # the examples differ
    reported = with_verdict(merged, verdict)
    assert reported.report["verdict"] == asdict(verdict)
    sentence, *ways, optimism = reported.card.notes[-5:]
    assert sentence.startswith("Keep them apart") and optimism.startswith("Optimism")
    for name, line in zip(("merge", "mix", "route"), ways, strict=True):
        assert line.startswith(f"{name}: keeps") and f"{verdict.ways[name].bytes} bytes" in line
    assert reported.card.scores["retention"] == verdict.ways["merge"].retention.mean


def test_few_examples_show_nothing(toy: ModuleType, sharp: Backbone, parents: Parents) -> None:
    merged = merge({"one": parents["upper"], "two": parents["upper"]}, method="linear")
    task = toy.toy_task("upper")
    few = judge(sharp, {"one": parents["upper"], "two": parents["upper"]}, merged.lora, [task])
    assert few.choice == "route" and "too few examples" in few.sentence and few.examples == 1
    with pytest.raises(UsageError, match="'upper' has no test examples"):
        judge(sharp, parents, merged.lora, [replace(task, test=())])
    with pytest.raises(UsageError, match="there are no tasks"):
        judge(sharp, parents, compose([parents["upper"]], [1.0]), [])
