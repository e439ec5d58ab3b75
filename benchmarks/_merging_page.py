"""The page of measured merges, from the cells that are there."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from _machine import table
from _merging_bench import Cell
from _merging_verdict_page import verdicts

from shoal.tasks.metrics import Interval, bootstrap_difference, bootstrap_interval

Cells = Mapping[str, Cell]
ROWS = {
    "base": "base model",
    "start": "S, the start",
    "mean": "mean of the deltas",
    "arithmetic": "task arithmetic, weight chosen",
    "ties": "TIES, density and lambda chosen",
    "regmean 16": "RegMean, 16 inputs",
    "regmean 48": "RegMean, 48 inputs",
    "regmean 48, lambda chosen": "RegMean, 48 inputs, lambda chosen",
    "evolved": "evolved from RegMean",
    "evolved sum": "evolved from the plain sum",
    "evolved ties": "evolved TIES, densities among what moves",
    "random search": "random search, as many candidates",
    "random parents": "the same evolution, parents random, norms equal",
    "new LoRA on selection": "new LoRA on the selection examples, seconds of the search",
    "joint LoRA": "joint LoRA, tokens of all parents",
}
CUT = ", rank 16"
GAPS = (
    ("evolved, rank 16", "arithmetic, rank 16"),
    ("evolved", "arithmetic"),
    ("evolved", "regmean 48"),
    ("evolved", "random search"),
    ("evolved", "random parents"),
    ("evolved", "new LoRA on selection"),
    ("evolved", "joint LoRA"),
    ("evolved", "regmean 48, lambda chosen"),
    ("regmean 48", "arithmetic"),
    ("regmean 48, lambda chosen", "arithmetic"),
    ("regmean 48, rank 16", "regmean 48"),
    ("evolved, rank 16", "evolved"),
)


def page(cells: Cells) -> str:
    """All of it, as Markdown."""
    facts = cells["facts"]
    seeds = sorted({int(key.split("/")[1]) for key in cells if key.startswith("apart/")})
    parts = [_head(facts, seeds)]
    for seed in seeds:
        parts += _apart(cells, seed, facts)
    parts += _over_seeds(cells, seeds) + verdicts(cells)
    parts += _composed(cells) + _experts(cells) + _mergekit(cells) + _cost(cells)
    return "\n\n".join(parts) + "\n"


def _head(facts: Mapping[str, Any], seeds: Sequence[int]) -> str:
    title, command = "Merges, measured", "python benchmarks/merging.py"
    if len(seeds) > 1:
        title += f" for {len(seeds)} seeds of the parents"
        command += f" --seeds {' '.join(map(str, seeds))}"
    return (
        f"# {title}\n\n```console\n$ {command}\n```\n\n"
        f"{facts['machine']}. Rows that are missing were not measured; the command goes on with them."
    )


def _means(cell: Cell, metric: str = "rouge_l") -> dict[str, float]:
    return {task: 100 * statistics.mean(of[metric]) for task, of in cell["scores"].items()}


def _apart(cells: Cells, seed: int, facts: Mapping[str, Any]) -> list[str]:
    of = _of_seed(cells, seed)
    parents = _parents(of)
    tasks = list(of["start"]["scores"]) if "start" in of else []
    if not tasks or set(parents) != set(tasks):
        return []
    header = ["ROUGE-L", "mean", *tasks, "retention, %"]
    blocks = [
        f"## Six tasks apart, seed {seed}",
        "S is the multi-task LoRA that ships, which never saw these training tasks; each parent goes on from "
        f"it for {facts['steps']} steps of {facts['batch']} examples of one task. Scored are "
        f"{facts['examples']} examples of every `test` list: ROUGE-L, 95% bootstrap intervals over tasks. "
        "What is chosen is chosen on 30 examples a task that no parent saw. Retention is the share of the "
        "parents' gain over S.",
        table(header, _rows(of)),
    ]
    matrix_rows = [[name, *(f"{scores[t]:.0f}" for t in tasks)] for name, scores in parents.items()]
    blocks += ["Every parent on every task:", table(["parent", *tasks], matrix_rows)]
    lines = [*_gaps(of, tasks), *_facts(cells, seed)]
    return [*blocks, "\n".join(lines)]


def _over_seeds(cells: Cells, seeds: Sequence[int]) -> list[str]:
    """Rows that all seeds have: means of every task over seeds, and intervals over tasks."""
    each = {seed: _of_seed(cells, seed) for seed in seeds}
    each = {
        s: of for s, of in each.items() if "start" in of and set(_parents(of)) == set(of["start"]["scores"])
    }
    if len(each) < 2:
        return []
    tasks = list(next(iter(each.values()))["start"]["scores"])
    joined = {
        row: {
            "scores": {
                t: {"rouge_l": [v for of in each.values() for v in _scores(of, row, t)]} for t in tasks
            }
        }
        for row in set.intersection(*(set(of) for of in each.values()))
    }
    rows = [[title, mean, kept] for title, mean, *_, kept in _rows(joined)]
    return [
        f"## Six tasks apart, means over the seeds {', '.join(map(str, each))}",
        table(["ROUGE-L", "mean", "retention, %"], rows),
        "\n".join(_gaps(joined, tasks)),
    ]


def _scores(of: Cells, row: str, task: str) -> list[float]:
    """ROUGE-L of every example."""
    return list(of[row]["scores"][task]["rouge_l"])


def _of_seed(cells: Cells, seed: int) -> dict[str, Cell]:
    """Row -> its cell."""
    return {key.split("/", 2)[2]: cell for key, cell in cells.items() if key.startswith(f"apart/{seed}/")}


def _parents(of: Cells) -> dict[str, dict[str, float]]:
    """Task of a parent -> its scores."""
    return {name.removeprefix("parent "): _means(c) for name, c in of.items() if name.startswith("parent ")}


def _rows(of: Cells) -> list[list[str]]:
    """Title, mean, score of every task, and retention of each row."""
    parents, start = _parents(of), _means(of["start"])
    routed = {task: parents[task][task] for task in start}
    best = max(parents, key=lambda name: statistics.mean(parents[name].values()))
    named = {"every parent on its own task (routing)": routed, f"best single parent ({best})": parents[best]}
    for key, title in ROWS.items():
        named |= {title + cut: _means(of[key + cut]) for cut in ("", CUT) if key + cut in of}
    rows = []
    for title, scores in named.items():
        interval = bootstrap_interval([scores[task] for task in start])
        shown = "" if title == ROWS["base"] else _interval(retention(scores, start, routed), 0)
        rows.append([title, _interval(interval), *(f"{scores[task]:.0f}" for task in start), shown])
    return rows


def _gaps(of: Cells, tasks: list[str]) -> list[str]:
    lines = []
    for one, other in GAPS:
        if one in of and other in of:
            a, b = _means(of[one]), _means(of[other])
            gap = bootstrap_difference([a[t] for t in tasks], [b[t] for t in tasks])
            lines.append(f"* {one} over {other}: {_interval(gap)} points")
    return lines


def _facts(cells: Cells, seed: int) -> list[str]:
    """What the rows rest on: searches, choices, general questions, and training."""
    lines = []
    for key, cell in cells.items():
        name = key.split("/")[-1]
        if key.startswith(f"search/{seed}/"):
            own = {
                k: cell[k] for k in ("kept_before", "kept_after", "optimism", "search_seconds") if k in cell
            }
            said = ", ".join(f"{k.replace('_', ' ')} {v:.2f}" for k, v in own.items())
            lines.append(f"* {name}, share of the gain in loss: {said}")
        elif key.startswith(f"choice/{seed}/"):
            tried = ", ".join(f"{k}: {v:.2f}" for k, v in cell["losses"].items())
            lines.append(f"* {name} chosen on the selection: {cell['chosen']} ({tried} nats per token)")
        elif key.startswith(f"general/{seed}/"):
            lines.append(
                f"* general questions, {name}: accuracy {100 * cell['accuracy']:.0f}%, "
                f"perplexity {cell['perplexity']:,.0f}"
            )
        elif key.startswith("train/") and key.endswith(f"-{seed}"):
            lines.append(f"* trained {name}: {cell['tokens']:,} tokens, {cell['training_seconds']:.0f} s")
    return lines


def retention(
    scores: Mapping[str, float], start: Mapping[str, float], routed: Mapping[str, float]
) -> Interval:
    """Share of the parents' gain that a merge keeps, in %, tasks resampled."""
    own, low, high = (np.array([of[t] for t in start]) for of in (scores, start, routed))
    draws = np.random.default_rng(0).integers(len(own), size=(2000, len(own)))
    gained, there = (own - low)[draws].mean(1), (high - low)[draws].mean(1)
    shares = 100 * gained[there > 0] / there[there > 0]
    gain = (high - low).mean()
    mean = 100 * (own - low).mean() / gain if gain else 0.0
    if not len(shares):
        return Interval(float(mean), None, None, len(own))
    first, last = np.quantile(shares, [0.025, 0.975])
    return Interval(float(mean), float(first), float(last), len(own))


def _composed(cells: Cells) -> list[str]:
    found: dict[str, dict[str, list[float]]] = {}
    for key, cell in cells.items():
        if key.startswith("composed/"):
            _, _, pair, row = key.split("/")
            found.setdefault(pair, {})[row] = next(iter(cell["scores"].values()))["strict"]
    if not found:
        return []
    rows, above, gaps = [], 0, []
    for pair, of in found.items():
        parts = [of[name] for name in pair.split(" and ") if name in of]
        if len(parts) < 2 or "sum" not in of:
            continue
        better = max(parts, key=statistics.mean)
        merges = {row: of[row] for row in ("mean", "sum", "regmean") if row in of}
        best = max(merges, key=lambda row: statistics.mean(merges[row]))
        gap = bootstrap_difference(merges["sum"], better)
        above += 100 * gap.mean >= 10
        gaps += [a - b for a, b in zip(merges["sum"], of["sum of random adapters"], strict=True)]
        shown = ("start", *pair.split(" and "), "mean", "regmean", "sum", "sum of random adapters")
        values = [f"{100 * statistics.mean(of[r]):.0f}" if r in of else "" for r in shown]
        new = of.get("new LoRA on selection")
        rows.append([pair, *values, f"{100 * statistics.mean(new):.0f}" if new else "", best])
    header = ["pair", "S", "first part", "second part", "mean", "RegMean", "sum, weight chosen"]
    header += ["sum of random adapters", "new LoRA on the selection", "best merge"]
    said = f"The sum is 10 points or more above the better part on {above} of {len(rows)} pairs"
    if gaps:
        said += (
            f", and above random adapters by {_interval(bootstrap_interval([100 * g for g in gaps]))} points"
        )
    return [
        "## Two skills on one input",
        "Share of answers right to the letter, in %.",
        table(header, rows),
        said + ".",
    ]


def _experts(cells: Cells) -> list[str]:
    of = {k.split("/", 1)[1]: v for k, v in cells.items() if k.startswith("experts/")}
    if "uniform mixture" not in of:
        return []
    base = of["uniform mixture"]["scores"]
    rows = []
    for name, cell in of.items():
        own = cell["scores"]
        gap = bootstrap_difference([100 * v for v in own], [100 * v for v in base])
        settings = ", ".join(f"{k} {v:g}" for k, v in cell["parameters"].items())
        mean = _interval(bootstrap_interval([100 * v for v in own]))
        rows.append([name, settings, mean, "" if name == "uniform mixture" else _interval(gap)])
    return [
        "## Eight experts as one z",
        "Points on 80 requests of all skills; parameters chosen by loss on 24 requests of training lists.",
        table(["merge", "parameters", "points", "over the uniform mixture"], rows),
    ]


def _mergekit(cells: Cells) -> list[str]:
    found = {k.split("/")[1]: cell for k, cell in cells.items() if k.startswith("mergekit/")}
    rows = [
        [name, f"{cell['relative_error']:.1e}", f"{cell['our_seconds']:.0f}", f"{cell['their_seconds']:.0f}"]
        for name, cell in found.items()
    ]
    if not rows:
        return []
    return [
        "## Beside mergekit 0.1.5",
        "Three of the parents (two for slerp and nuslerp) merged by both, with weights, densities and lambda "
        "of their own, in float32; random masks keep all. The error is that of the weights' change "
        "(Frobenius, relative). Spherical means and methods of single elements run where the adapted weights "
        "of the model are zero: elsewhere rounding moves an element across a threshold now and then. "
        "Seconds are with other work on the machine.",
        table(["method", "error", "seconds of Shoal", "of mergekit"], rows),
    ]


def _cost(cells: Cells) -> list[str]:
    lines = []
    if cell := cells.get("cost/candidate"):
        lines.append(
            f"* {cell['rows']} rows of 16 candidates take {cell['ratio']:.2f} x the same rows under one LoRA "
            f"of the summed rank ({cell['population']:.1f} and {cell['plain']:.1f} s of one core, medians of "
            f"turns; {cell['machine']}). Both read the {cell['beginning']} tokens with which all prompts "
            f"begin once for each candidate; read with every row, they take {cell['whole']:.1f} s."
        )
    if cell := cells.get("cost/generation"):
        each, own = (cell[k] / cell["candidates"] for k in ("generation_seconds", "processor_seconds"))
        lines.append(
            f"* A candidate on 30 examples takes {own:.2f} s of one core ({each:.2f} s with what else ran), "
            f"64 take {64 * own / 60:.1f} minutes of one core; peak memory {cell['peak_bytes'] / 1e9:.2f} GB."
        )
        if other := cells.get("cost/mergekit"):
            lines.append(
                f"* mergekit's write and load take {other['processor_seconds_again']:.1f} s of one core, "
                f"{other['processor_seconds_again'] / own:.1f} x a candidate; with what else ran "
                f"{other['seconds_again']:.0f} s, {other['seconds_again'] / each:.1f} x "
                f"({other['first_seconds']:.0f} s with the parents' merged copies). It wrote "
                f"{other['bytes_written'] / 1e9:.1f} GB. `shoal merge` of the same recipe, written and "
                f"loaded, takes {other['our_seconds']:.0f} s, a share of "
                f"{other['our_seconds'] / other['seconds_again']:.2f}; the weights differ by "
                f"{other['relative_error']:.1e} of the change (relative Frobenius error)."
            )
    return ["## Cost", "\n".join(lines)] if lines else []


def _interval(found: Interval, digits: int = 1) -> str:
    if found.low is None or found.high is None:
        return f"{found.mean:.{digits}f}"
    return f"{found.mean:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"
