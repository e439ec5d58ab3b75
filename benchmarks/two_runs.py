"""Two benchmark runs of one commit: the same grades, the same quality to the digit, times that overlap.

    python3 benchmark_sakana_ai.py --out runs/one; python3 benchmark_sakana_ai.py --out runs/two
    python benchmarks/two_runs.py runs/one runs/two

Exits with 1 where a letter or a figure of quality differs, or where two 95% intervals of a time lie apart.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _machine import table

from shoal.file_formats import read_json

TIMED = ("adaptation_seconds", "latency", "throughput", "seconds")
OF_THE_MACHINE = {
    *("adaptation_seconds", "training_tokens_per_second", "throughput", "latency_p50", "latency_p95"),
    *("peak_memory", "device_memory", "device_utilisation"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs=2, help="directories of two finished runs")
    first, second = (read_json(run / "report" / "report.json") for run in parser.parse_args().runs)
    if first["environment"]["commit"] != second["environment"]["commit"]:
        sys.exit("the runs are of different commits; make both from one")
    if [m["name"] for m in first["methods"]] != [m["name"] for m in second["methods"]]:
        sys.exit("the runs compare different methods; make both with the same settings")
    faults, rows = [], []
    for one, other in zip(first["methods"], second["methods"], strict=True):
        faults += [f"{one['title']}: {fault}" for fault in differences(one, other)]
        scores = [f"{m['grade']['letter']} {m['grade']['score']:.2f}" for m in (one, other)]
        rows.append([one["title"], *scores, *(times(one, other, name) for name in TIMED)])
    print(f"commit {first['environment']['commit']}\n")
    print(table(["method", "grade, first run", "second", *(n.replace("_", " ") for n in TIMED)], rows))
    sys.exit("different: " + "; ".join(faults) if faults else None)


def differences(one: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    """What should be equal, or should overlap, and does not."""
    for part, twin in zip(
        [one["grade"], *one["grade"]["components"]],
        [other["grade"], *other["grade"]["components"]],
        strict=True,
    ):
        if part["letter"] != twin["letter"]:
            yield f"grade of {part.get('name', 'all')} {part['letter']} and {twin['letter']}"
    for name in sorted({*one["metrics"], *other["metrics"]} - OF_THE_MACHINE):
        if one["metrics"].get(name) != other["metrics"].get(name):
            yield f"{name} {one['metrics'].get(name)} and {other['metrics'].get(name)}"
    for name in ("task_scores", "losses", "kept", "answers", "failures"):
        if one[name] != other[name]:
            yield f"{name} differ"
    for name in TIMED:
        a, b = one["intervals"].get(name), other["intervals"].get(name)
        if a and b and a["low"] is not None and (a["low"] > b["high"] or b["low"] > a["high"]):
            yield f"{name} {times(one, other, name)}"


def times(one: dict[str, Any], other: dict[str, Any], name: str) -> str:
    """Both runs' means with their intervals."""
    found = [m["intervals"].get(name) for m in (one, other)]
    return " / ".join(
        "none"
        if i is None
        else f"{i['mean']:.3g}" + (f" ({i['low']:.3g} to {i['high']:.3g})" if i["low"] is not None else "")
        for i in found
    )


if __name__ == "__main__":
    main()
