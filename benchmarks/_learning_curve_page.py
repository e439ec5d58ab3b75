"""The page and the plot that `learning_curve.py` writes, and the lines that it fits to scores by tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from _machine import table
from _short_runs import shipped_recipe
from _unseen_tasks_page import DESCRIBED_MULTI_TASK, MULTI_TASK, ORACLE
from matplotlib.figure import Figure

from shoal.evaluation.reports import METRICS, cell
from shoal.tasks.metrics import Interval, bootstrap_interval

Facts = Mapping[str, Any]
EVERY = "all networks"
COLOURS = {MULTI_TASK: "#7a8594", DESCRIBED_MULTI_TASK: "#d55e00", ORACLE: "#009e73"}


def fits(networks: Sequence[Facts]) -> list[dict[str, Any]]:
    """Straight lines through ROUGE-L by the binary logarithm of tokens, for networks of several kinds.

    A line's slope is the mean over tasks of each task's own, so its interval is over tasks.
    """
    head = networks[-1]["head"]
    kinds = {
        EVERY: networks,
        "those that are no mean of others": [n for n in networks if not n["mean_of"]],
        f"those with the head `{head}`": [n for n in networks if n["head"] == head],
    }
    lines, seen = [], []
    for kind, chosen in kinds.items():
        steps = [n["step"] for n in chosen]
        amounts = sorted({n["tokens"] for n in chosen})
        if len(amounts) < 2 or steps in seen:
            continue
        seen.append(steps)
        doublings = np.log2([n["tokens"] for n in chosen])
        away = doublings - doublings.mean()
        scores = np.array([list(n["scores"]["rouge_l"].values()) for n in chosen])
        slopes = away @ scores / (away @ away)
        intercept = float(scores.mean() - slopes.mean() * doublings.mean())
        facts = {"kind": kind, "steps": steps, "amounts": amounts, "intercept": intercept}
        lines.append({**facts, "slope": asdict(bootstrap_interval(slopes))})
    return lines


def page(facts: Facts) -> str:
    """Markdown: networks by tokens, sittings, the plot, the slope and the bounds."""
    parts = [
        "# Learning curve: unseen tasks by training tokens",
        _networks(facts),
        _conditions(facts),
        "![Unseen loss, steering margin and ROUGE-L by training tokens](learning_curve.png)",
        "Left, the trainings whose log was kept. Right, networks with their 95% intervals over tasks (hollow "
        "and a little to the right: means of weights), the line through all, and dashed the bounds below.",
        "## Within the trainings",
        _sittings(facts["sittings"]),
        "## By tokens",
        *_slopes(facts),
        "## Where the ceiling is",
        _bounds(facts),
        *_ceiling(facts),
        f"{facts['machine']}.",
        f"Command: `{facts['command']}`",
    ]
    return "\n\n".join(parts) + "\n"


def _networks(facts: Facts) -> str:
    header = ["step", "head", "training tokens", "training tasks", *METRICS.values(), "steering margin"]
    rows = []
    for network in sorted(facts["networks"], key=lambda n: n["step"]):
        own = [cell(Interval(**network["intervals"][metric]), metric) for metric in METRICS]
        margin = cell(Interval(**network["margin"]), "nll") if network["margin"] else ""
        tasks = str(network["training_tasks"] or "")
        rows.append([_step(network), network["head"], f"{network['tokens']:,}", tasks, *own, margin])
    return table(header, rows)


def _step(network: Facts) -> str:
    parts = " and ".join(map(str, network["mean_of"]))
    return f"{network['step']}, the mean of {parts}" if parts else str(network["step"])


def _conditions(facts: Facts) -> str:
    said = (
        "Steps are those of the shipped network's card; what has a higher number went on from it and does "
        "not ship. A network's tokens are those of its training and of all before it. "
        f"{len(facts['tasks'])} validation tasks, at most {facts['examples']} test examples "
        f"each, mean over {facts['descriptions']} description(s) a task; mean over tasks with its 95% "
        "bootstrap interval. ROUGE-L and exact match in percent, NLL and margin (another task's description "
        f"minus the right one) in nats; answers of up to {facts['max_new_tokens']} tokens. One seed of each "
        "step, and what the chain went on from was chosen on these tasks, so the curve is a little "
        "optimistic. From step to step data and rates changed too, so it is not of tokens alone."
    )
    replaced = {n["taken_for_nonsense"] for n in facts["networks"]} - {None}
    without = [f"step {n['step']}" for n in facts["networks"] if n["taken_for_nonsense"] is None]
    if replaced:
        asked = len(facts["tasks"]) * facts["descriptions"]
        counts = " to ".join(str(n) for n in sorted({min(replaced), max(replaced)}))
        said += (
            f" Of the {asked} right descriptions the probes take {counts} for nonsense, "
            "which gets the multi-task LoRA"
        )
        said += f"; networks without such a probe: {', '.join(without)}." if without else "."
    return said


def _sittings(sittings: Sequence[Facts]) -> str:
    header = ["step", "seed", "steps", "tokens before", "tokens after", "unseen loss", "lowest", "margin"]
    rows = []
    for own in sittings:
        first, last = own["points"][0], own["points"][-1]
        rows.append(
            [
                *(str(own[key]) for key in ("step", "seed", "steps")),
                f"{own['tokens_before']:,}",
                f"{own['tokens_before'] + own['tokens']:,}",
                f"{first['unseen_loss']:.2f} -> {last['unseen_loss']:.2f}",
                f"{min(p['unseen_loss'] for p in own['points']):.2f}",
                f"{first['unseen_margin']:.2f} -> {last['unseen_margin']:.2f}",
            ]
        )
    begin, end = sittings[0]["points"][-1], sittings[-1]["points"][-1]
    said = (
        "From the first logged point to the last. Both are of one description on at most "
        f"{shipped_recipe()['monitor_examples']} `train` examples a validation task, in nats per token, so "
        "they scatter. Tokens are spread evenly over a training's steps."
    )
    if len(sittings) > 1:
        said += (
            f" From the end of step {sittings[0]['step']} to that of step {sittings[-1]['step']}, "
            f"{end['tokens'] - begin['tokens']:,} tokens, the unseen loss goes from "
            f"{begin['unseen_loss']:.2f} to {end['unseen_loss']:.2f} and the margin from "
            f"{begin['unseen_margin']:.2f} to {end['unseen_margin']:.2f}."
        )
    return table(header, rows) + "\n\n" + said


def _slopes(facts: Facts) -> list[str]:
    if not facts["fits"]:
        return ["All networks have the same number of tokens: there is no slope."]
    said = []
    for line in facts["fits"]:
        count, amounts, slope = len(line["steps"]), line["amounts"], Interval(**line["slope"])
        said.append(
            f"* {line['kind']} ({count}, with {len(amounts)} different numbers of tokens from {amounts[0]:,} "
            f"to {amounts[-1]:,}, {math.log2(amounts[-1] / amounts[0]):.1f} doublings): "
            f"{cell(slope, 'rouge_l')} points of ROUGE-L a doubling"
        )
    few = len(facts["fits"][0]["amounts"])
    return [
        "A straight line through ROUGE-L by the logarithm of the tokens:",
        "\n".join(said),
        f"So a slope rests on at most {few} numbers of tokens. Its interval is over tasks; what another seed "
        "would give is not in it.",
    ]


def _bounds(facts: Facts) -> str:
    header = ["", *METRICS.values(), f"step {facts['networks'][-1]['step']} minus it, ROUGE-L"]
    rows = [
        [
            bound["name"],
            *(cell(Interval(**bound["intervals"][metric]), metric) for metric in METRICS),
            cell(Interval(**bound["last_minus_it"]["rouge_l"]), "rouge_l"),
        ]
        for bound in facts["bounds"]
    ]
    trained = "\n".join(f"* {bound['name']}: {bound['trained_on']}" for bound in facts["bounds"])
    return (
        table(header, rows) + "\n\nFrom [the report](report.md), paired over tasks. Trained on:\n\n" + trained
    )


def _ceiling(facts: Facts) -> list[str]:
    found = {bound["name"]: bound for bound in facts["bounds"]}
    step = facts["networks"][-1]["step"]
    held = 100 * found[ORACLE]["intervals"]["rouge_l"]["mean"]
    gap = -Interval(**found[ORACLE]["last_minus_it"]["rouge_l"]).mean
    score, loss = (
        Interval(**found[DESCRIBED_MULTI_TASK]["last_minus_it"][metric]) for metric in ("rouge_l", "nll")
    )
    return [
        f"An adapter of this shape can hold at least what the {ORACLE} does, which was trained on the task's "
        f"own examples: {held:.1f} in ROUGE-L, {100 * gap:.1f} more than step {step}. "
        f"{_doublings(gap, _whole_line(facts))}",
        "What the same model makes of a description that it reads in the request is the "
        f"{DESCRIBED_MULTI_TASK}. Step {step} minus it: ROUGE-L {cell(score, 'rouge_l')}, {_side(score)}; "
        f"NLL {cell(loss, 'nll')}, {_side(loss)}.",
    ]


def _whole_line(facts: Facts) -> Facts | None:
    """The line through all networks."""
    return next((line for line in facts["fits"] if line["kind"] == EVERY), None)


def _doublings(gap: float, line: Facts | None) -> str:
    """How many doublings the line needs over a gap of ROUGE-L, in [0, 1]."""
    if gap <= 0:
        return "Nothing is left up to there."
    if line is None or line["slope"]["low"] is None or line["slope"]["low"] <= 0:
        return "The slope over all networks is not told apart from 0, so no number of tokens follows."
    most, usual, least = (gap / line["slope"][end] for end in ("low", "mean", "high"))
    return (
        f"At the slope over all networks that is {usual:.1f} doublings ({least:.1f} to {most:.1f}), or "
        f"{2**usual:,.0f} times the tokens, if the line went on so far, which nothing here shows."
    )


def _side(difference: Interval) -> str:
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return "not told apart"
    return "higher" if difference.mean > 0 else "lower"


def draw(facts: Facts, path: Path) -> None:
    """Unseen loss and margin of the trainings on the left, ROUGE-L of the networks on the right."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    axes = figure.subplot_mosaic([["loss", "score"], ["margin", "score"]])
    for key, name in (("loss", "unseen loss"), ("margin", "steering margin")):
        for own in facts["sittings"]:
            points = own["points"]
            axes[key].plot(
                [p["tokens"] / 1e6 for p in points],
                [p[f"unseen_{key}"] for p in points],
                marker=".",
                label=f"step {own['step']}, seed {own['seed']}",
            )
        axes[key].set(ylabel=f"{name}, nats")
    axes["loss"].sharex(axes["margin"])
    axes["loss"].tick_params(labelbottom=False)
    axes["loss"].legend(frameon=False, fontsize=8)
    axes["margin"].set(xlabel="training tokens of the chain, millions")
    _draw_scores(facts, axes["score"])
    figure.savefig(path, dpi=120)


def _draw_scores(facts: Facts, axis: Any) -> None:
    for network in facts["networks"]:
        score = network["intervals"]["rouge_l"]
        tokens = network["tokens"] / 1e6 * (1.015 if network["mean_of"] else 1)  # where two have as many
        low, high = (abs(score["mean"] - (score[end] or score["mean"])) for end in ("low", "high"))
        axis.errorbar(
            tokens,
            100 * score["mean"],
            yerr=[[100 * low], [100 * high]],
            fmt="o",
            color="#0072b2",
            elinewidth=0.8,
            markerfacecolor="white" if network["mean_of"] else "#0072b2",
        )
        axis.annotate(
            str(network["step"]),
            (tokens, 100 * score["mean"]),
            xytext=(6, 4 if network["mean_of"] else -11),
            textcoords="offset points",
            fontsize=8,
        )
    amounts = [n["tokens"] for n in facts["networks"]]
    if line := _whole_line(facts):
        ends = [min(amounts), max(amounts)]
        height = [100 * (line["intercept"] + line["slope"]["mean"] * math.log2(end)) for end in ends]
        axis.plot([end / 1e6 for end in ends], height, color="#0072b2", linewidth=0.8)
    for bound in facts["bounds"]:
        height, colour = 100 * bound["intervals"]["rouge_l"]["mean"], COLOURS[bound["name"]]
        axis.axhline(height, color=colour, linestyle="--", linewidth=1)
        axis.annotate(
            bound["name"].replace(", ", ",\n").replace(" the ", "\nthe "),
            (1.01, height),
            xycoords=("axes fraction", "data"),
            verticalalignment="center",
            color=colour,
            fontsize=8,
        )
    axis.set(xlabel="training tokens, millions", ylabel="ROUGE-L, unseen tasks", xscale="log", ylim=(0, None))
    ticks = sorted({round(n / 1e6, 1) for n in amounts})
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
