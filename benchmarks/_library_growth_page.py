"""The page's sections on a library that grows, its gate, and one adapter of all."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from _library_gate import HARMLESS, HARMS
from _library_growth import CONTROLS, RANDOM, SUMS
from _machine import table
from _merging_bench import Cell

from shoal.library.history import Measures, measures
from shoal.tasks.metrics import Interval, bootstrap_interval

Cells = Mapping[str, Cell]
ORDERS = (0, 1, 2)


def growth(cells: Cells) -> list[str]:
    """Stream B."""
    if not all(key in cells for key in ("b/answered", "b/router", "b/worded")):
        return []
    names = cells["b/order/0"]["skills"]
    scores = {name: cells[f"b/scores/{name}"] for name in names}
    learnt = {name: cells[f"b/learn/{name}"] for name in names}
    facts, own = cells["b/facts"], [points(scores[name]["own"]) for name in names]
    untouched = sum(cell["untouched"] for cell in learnt.values())
    seconds = [cell["learning_seconds"] for cell in learnt.values()]
    kilobytes = [cell["bytes"] / 1000 for cell in learnt.values()]
    alike = [pair for cell in learnt.values() for pair in cell["alike"]]
    lost = [(name, cell["loses"]) for name, cell in learnt.items() if cell["loses"]]
    return [
        f"## {len(names)} skills into a library",
        f"{SUMS} examples of each skill train its adapter, {facts['skill_steps']} steps of "
        f"{facts['skill_batch']}, and are its router's; 6 more are its exemplars; {facts['requests']} test "
        f"requests of each are asked, {CONTROLS} of them under the base model, S and the sentence's adapter, "
        f"{RANDOM} under a random skill's. Intervals are over skills. Skills were allowed to lose, so that "
        "all are there.",
        table(["ROUGE-L", "mean", "right routes, %"], _ways(cells, scores)),
        table(
            ["Order, by the input", "ACC", "% of own adapters'", "BWT", "forgetting", "learned"],
            [_of_order(cells, scores, order) for order in ORDERS],
        ),
        _transfer(scores, names),
        f"Older skills' files were equal, byte for byte, after {untouched} of {len(names)} steps. "
        f"A step took {statistics.median(seconds):.0f} s on the median, of which asking older skills "
        f"{statistics.median(cell['gate_seconds'] for cell in learnt.values()):.1f}; a skill has "
        f"{statistics.median(kilobytes):.0f} kB. The gate would have refused {len(lost)} of the steps"
        + (f": {'; '.join(f'{name} (for {_some(own)})' for name, own in lost)}." if lost else ".")
        + (f" Inputs look alike: {'; '.join(alike)}." if alike else ""),
        *_routers(cells),
        f"R of order 0, by the input; the own adapters' mean is {statistics.mean(own):.1f}:",
        _matrix_table(cells, scores),
    ]


def gate(cells: Cells) -> list[str]:
    """Planted harms and harmless updates."""
    harms = [cells[key] for n in range(HARMS) if (key := f"gate/harm/{n}") in cells]
    updates = [cells[key] for n in range(HARMLESS) if (key := f"gate/update/{n}") in cells]
    if not harms:
        return []
    kinds = sorted({cell["kind"] for cell in harms}) + sorted({cell["kind"] for cell in updates})
    rows = []
    for kind in kinds:
        own = [cell for cell in (*harms, *updates) if cell["kind"] == kind]
        asking = [cell["gate_seconds"] for cell in own if "gate_seconds" in cell]
        taken = sum(cell["taken"] for cell in own)
        rows.append([kind, str(len(own)), str(taken), f"{statistics.mean(asking):.1f}", f"{max(asking):.1f}"])
    learnt = [key for key in cells if key.startswith("eight/learn/")]
    worst = max(c["gate_seconds"] for c in (*harms, *updates) if "gate_seconds" in c) / len(learnt)
    wrong = [f"{c['skill']} ({c['kind']}): {_why(c)}" for c in updates if not c["taken"]]
    return [
        "## The gate",
        f"A library of {len(learnt)} skills with 32 exemplars each. A harm is a new skill on an old one's "
        "inputs, with the answers of other inputs or for another task; an update is a skill that the library "
        "has not, or more right examples for one that it has. Every try begins with the same version.",
        table(["Tried", "times", "taken", "asking, s", "at most, s"], rows),
        f"Refused were {sum(not c['taken'] for c in harms)} of {len(harms)} harms; taken "
        f"{sum(c['taken'] for c in updates)} of {len(updates)} updates. "
        f"Asking took at most {worst:.1f} s an old skill."
        + (f" Not taken: {'; '.join(wrong)}." if wrong else ""),
    ]


def consolidation(cells: Cells) -> list[str]:
    """One adapter of eight skills."""
    found = {key.split("/")[1]: cell for key, cell in cells.items() if key.startswith("consolidation/")}
    if not found:
        return []
    rows = []
    for steps, cell in found.items():
        row = [f"{steps} steps of replay" if int(steps) else "closed form"]
        own = cell["retention"].values()
        gains = [r["own"] - r["base"] for r in own]
        kept = [r["merged"] - r["base"] for r in own]
        shares = [r["kept"] for r in own if r["kept"] is not None]
        row += [f"{statistics.mean(r[k] for r in own):.1f}" for k in ("base", "own", "merged")]
        row += [f"{100 * sum(kept) / sum(gains):.0f}", f"{100 * min(shares):.0f}", f"{cell['seconds']:.0f}"]
        rows.append(row)
    each = next(iter(found.values()))["retention"]
    columns = [f"{100 * each[n]['kept']:.0f}" if each[n]["kept"] is not None else "-" for n in each]
    return [
        f"## One adapter of {len(each)} skills",
        "At rank 16. ROUGE-L on exemplars; after replay only on the half that it did not train on.",
        table(["", "base", "own adapters", "merged", "gain kept, %", "least of a skill, %", "seconds"], rows),
        f"In closed form, by skill: {', '.join(f'{n} {c}' for n, c in zip(each, columns, strict=True))} %.",
    ]


def rehearsal(cells: Cells) -> list[str]:
    """Stream C."""
    if "c/tasks" not in cells:
        return []
    rows = []
    for kind in ("added", "held-out", "validation"):
        found = {row: _network(cells, row, kind) for row in ("before", "rehearsed", "unrehearsed")}
        before = found["before"]
        oracle = {t: _task(cells[k]) for t in before if (k := f"c/oracle/{t}") in cells}
        for row, own in found.items():
            if not before or own.keys() != before.keys():
                continue
            change = _shown([own[t] - before[t] for t in before]) if row != "before" else ""
            way = ""
            if kind == "added" and row != "before" and oracle.keys() == before.keys():
                whole = sum(oracle[t] - before[t] for t in before)
                way = f"{100 * sum(own[t] - before[t] for t in before) / whole:.0f}"
            rows.append([f"{kind} tasks, {row}", str(len(own)), _shown(list(own.values())), change, way])
        if kind == "added" and oracle and oracle.keys() == before.keys():
            rows.append(
                ["added tasks, oracle LoRA", str(len(oracle)), _shown(list(oracle.values())), "", "100"]
            )
    if not rows:
        return []
    return [
        "## New tasks for the hypernetwork",
        f"{cells['c/tasks']['steps']} steps on {len(cells['c/tasks']['added'])} training tasks that the "
        "network never saw, with `rehearse` 1 and without; what is lost is measured on other tasks that it "
        "never saw.",
        table(["ROUGE-L", "tasks", "mean", "change", "of the way to the oracle, %"], rows),
    ]


def _network(cells: Cells, row: str, kind: str) -> dict[str, float]:
    prefix = f"c/{row}/{kind}/"
    return {key.removeprefix(prefix): _task(cell) for key, cell in cells.items() if key.startswith(prefix)}


def _task(cell: Cell) -> float:
    (own,) = cell["scores"].values()
    return points(own["rouge_l"])


def _ways(cells: Cells, scores: Mapping[str, Cell]) -> list[list[str]]:
    controls = (("base", "base"), ("base with description", "described"), ("S", "start"))
    rows = [
        [title, _shown([points(own[key]) for own in scores.values()]), ""]
        for title, key in (*controls, ("the sentence's adapter", "sentence"))
    ]
    count = len(next(iter(scores.values()))["own"])
    last = cells["b/order/0"]["astray"][-1]
    ways = {"right route": {name: {} for name in scores}, "by the input": last}
    ways |= {"by the probe": cells["b/ways"]["probe"], "described": cells["b/ways"]["described"]}
    for title, astray in ways.items():
        found = [points(_answers(cells, scores, name, astray[name])) for name in scores]
        right = 100 * (1 - sum(map(len, astray.values())) / (count * len(scores)))
        rows.append([f"library, {title}", _shown(found), f"{right:.1f}"])
    chance = cells["b/ways"]["random"]
    found = [points(_answers(cells, scores, name, chance[name])[:RANDOM]) for name in scores]
    right = 100 * (1 - sum(map(len, chance.values())) / (min(RANDOM, count) * len(scores)))
    return [*rows, ["library, random route", _shown(found), f"{right:.1f}"]]


def _answers(cells: Cells, scores: Mapping[str, Cell], name: str, astray: Mapping[str, str]) -> list[float]:
    """The scores of one skill's requests along some routes."""
    found = list(scores[name]["own"])
    for place, route in astray.items():
        found[int(place)] = cells["b/answered"]["scores"][f"{route}/{name}/{place}"]
    return found


def _matrix(
    cells: Cells, scores: Mapping[str, Cell], order: int
) -> tuple[list[str], list[list[float | None]]]:
    cell = cells[f"b/order/{order}"]
    names = cell["skills"]
    return names, [
        [points(_answers(cells, scores, n, step[n])) if n in step else None for n in names]
        for step in cell["astray"]
    ]


def _measured(cells: Cells, scores: Mapping[str, Cell], order: int) -> Measures:
    names, matrix = _matrix(cells, scores, order)
    base = [points(scores[name]["base"]) for name in names]
    return measures(matrix, base, [points(scores[name]["sentence"]) for name in names])


def _of_order(cells: Cells, scores: Mapping[str, Cell], order: int) -> list[str]:
    found = _measured(cells, scores, order)
    own = statistics.mean(points(cell["own"]) for cell in scores.values())
    assert found.acc is not None
    share = f"{100 * found.acc.mean / own:.1f}"
    rest = [_of(value) for value in (found.bwt, found.forgetting, found.learned)]
    return [str(order), _of(found.acc), share, *rest]


def _transfer(scores: Mapping[str, Cell], names: Sequence[str]) -> str:
    def less(one: str, other: str) -> str:
        gaps = [points(scores[n][one]) - points(scores[n][other]) for n in names]
        return _shown(gaps)

    return (
        f"FWT of the sentence's adapter: {less('sentence', 'start')} points over S, and "
        f"{less('sentence', 'base')} over the base model. With the right route an answer never changes, so "
        "BWT is exactly 0."
    )


def _routers(cells: Cells) -> list[str]:
    plain = cells["b/router"]
    kinds = {
        "input alone": plain,
        **{
            f"with an unseen wording, `none` from {k}": v
            for k, v in cells["b/worded"].items()
            if k != "seconds"
        },
    }
    rows = []
    for title, cell in kinds.items():
        for way, prefix in (("additive router", ""), ("logistic probe", "probe_")):
            right = list(cell[f"{prefix}right"].values())
            least = min(cell[f"{prefix}right"], key=cell[f"{prefix}right"].__getitem__)
            rows.append(
                [
                    f"{title}: {way}",
                    _shown([100 * value for value in right]),
                    f"{least}, {100 * min(right):.0f}",
                    f"{100 * cell[f'{prefix}none']:.0f}",
                ]
            )
    return [
        table(["Requests", "right, %", "least", "others' requests to `none`, %"], rows),
        f"The router of {len(plain['right'])} skills is fitted in {plain['fitting_seconds']:.1f} s beside "
        f"reading states; in another order its probabilities differ by {plain['orders_apart']:.0e}.",
    ]


def _matrix_table(cells: Cells, scores: Mapping[str, Cell]) -> str:
    names, matrix = _matrix(cells, scores, 0)
    rows = [
        [f"{i + 1} {name}", *("" if v is None else f"{v:.0f}" for v in row)]
        for i, (name, row) in enumerate(zip(names, matrix, strict=True))
    ]
    return table(["after", *(str(i + 1) for i in range(len(names)))], rows)


def points(scores: Sequence[float]) -> float:
    """Their mean, in points."""
    return 100 * statistics.mean(scores)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names)


def _why(cell: Cell) -> str:
    return str(cell.get("error") or f"{_some(cell['losers'])} would lose")


def _shown(values: Sequence[float]) -> str:
    return _of(bootstrap_interval(values))


def _of(found: Interval | None) -> str:
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return f"{found.mean:.1f}"
    return f"{found.mean:.1f} ({found.low:.1f} to {found.high:.1f})"
