"""The part of the page of merges that says whether to merge, mix or route."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _machine import table
from _merging_bench import Cell


def verdicts(cells: Mapping[str, Cell]) -> list[str]:
    """Merged, mixed and routed: retention, bytes and time; then the suites of known answer."""
    found = {k.split("/", 1)[1]: cell for k, cell in cells.items() if k.startswith("verdict/")}
    known = {k.split("/", 1)[1]: cell for k, cell in cells.items() if k.startswith("known/")}
    blocks = []
    if found:
        rows = [
            [f"{key}: {name}", _kept(way["retention"]), *_costs(way)]
            for key, cell in found.items()
            for name, way in cell["ways"].items()
        ]
        lines = [
            f"* {key}: {cell['sentence']} The optimism is {100 * cell['optimism']:+.0f} points; "
            f"{cell['examples']} examples decide."
            for key, cell in found.items()
        ]
        blocks += [
            "## Merge, mix or route",
            "Seed and merge, cut to rank 16, and the way; the share of routing's gain in loss over S that it "
            "keeps, with 95% bootstrap intervals over test examples; the bytes of its adapters; a forward "
            f"pass over one example, beside other work ({next(iter(found.values()))['machine']}).",
            table(["merge: way", "keeps, %", "MB", "ms an example"], rows),
            "\n".join(lines),
        ]
    if known:
        rows = [[key, cell["right"], cell["choice"]] for key, cell in known.items()]
        right = sum(cell["right"] == cell["choice"] for cell in known.values())
        blocks += [
            "Suites of adapters whose answer is known by construction, with "
            f"{next(iter(known.values()))['examples']} test examples each; the verdict is right in "
            f"{right} of {len(known)}:",
            table(["seed/suite", "known", "verdict"], rows),
        ]
    return blocks


def _kept(share: Mapping[str, Any]) -> str:
    mean, low, high = (share[k] for k in ("mean", "low", "high"))
    if low is None or high is None:
        return f"{100 * mean:.0f}"
    return f"{100 * mean:.0f} ({100 * low:.0f} to {100 * high:.0f})"


def _costs(way: Mapping[str, Any]) -> list[str]:
    return [f"{way['bytes'] / 1e6:.1f}", f"{1000 * way['seconds']:.0f}"]
