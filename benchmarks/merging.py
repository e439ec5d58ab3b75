"""Merges of adapters beside every control: retention, composition, one expert of eight, and cost.

    python benchmarks/merging.py

Every cell is kept as a JSON line in --out, adapters beside it, so a run that was stopped goes on; --parts
measures some of them. The page is made of the cells that are there, and they are kept as JSON beside it: a
run goes on from those too, and makes adapters that it lacks again. `SHOAL_MERGEKIT` names the mergekit-multi
of an environment with mergekit 0.1.5; without it what needs mergekit is left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from _machine import DATA, ROOT, machine
from _merging_apart import (
    closed_forms,
    general,
    joint,
    plain_search,
    random_parents,
    random_search,
    searches,
    ties,
    ties_search,
)
from _merging_bench import Bench, write_page
from _merging_composed import composed
from _merging_cost import cost
from _merging_experts import experts
from _merging_mergekit import mergekit
from _merging_page import page
from _merging_verdict import verdict

from shoal.models.backbone import DEFAULT_MODEL

PARTS: Mapping[str, Callable[[Bench, int], None]] = {
    "closed_forms": closed_forms,
    "searches": searches,
    "ties": ties,
    "composed": composed,
    "experts": experts,
    "cost": cost,
    "mergekit": mergekit,
    "random_search": random_search,
    "random_parents": random_parents,
    "joint": joint,
    "general": general,
    "plain_search": plain_search,
    "ties_search": ties_search,
    "verdict": verdict,
}


def main() -> None:
    args = parse()
    if args.parts:
        bench = Bench(args)
        settings = {name: getattr(args, name) for name in ("steps", "batch", "examples")}
        bench.cell("facts", lambda: {**settings, "machine": machine(bench.backbone.dtype)})
        for seed in args.seeds:
            for part in args.parts:
                PARTS[part](bench, seed)
    write_page(args, page)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--parts", nargs="*", default=list(PARTS), choices=PARTS, help="in this order; none: the page alone")
    add("--base", default=DEFAULT_MODEL)
    add(
        "--start",
        type=Path,
        help="PEFT directory that parents go on from; default the shipped multi-task LoRA",
    )
    add("--data", type=Path, default=DATA)
    add("--tasks", type=int, help="take the first N of the six")
    add("--pairs", type=int, help="take the first N of the six")
    add("--seeds", type=int, nargs="+", default=[0], help="of the parents")
    add("--steps", type=int, default=30, help="of each parent")
    add(
        "--new-steps",
        type=int,
        default=10,
        help="of a new LoRA on a pair's selection examples; 0 leaves it out",
    )
    add("--batch", type=int, default=6)
    add("--examples", type=int, default=15, help="test examples a task")
    add("--max-new-tokens", type=int, default=24)
    add("--selection-a-candidate", type=int, default=10, help="selection examples a task, for each candidate")
    add("--out", type=Path, default=ROOT / "runs" / "merging", help="cells, adapters and runs")
    add("--page", type=Path, default=ROOT / "docs" / "results" / "merging.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
