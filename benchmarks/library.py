"""Six tasks learnt one after another: one adapter by every method, beside a library's and all controls.

    python benchmarks/library.py

Every cell is kept as a JSON line in --out, adapters and runs beside it, so a run that was stopped goes on.
The page is made of the cells that are there, and they are kept as JSON beside it: a run goes on from those
too. --orders with no number makes the page alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from _library_page import page
from _library_stream import learn_order
from _machine import DATA, ROOT, machine
from _merging_bench import Bench, write_page

from shoal.models.backbone import DEFAULT_MODEL


def main() -> None:
    args = parse()
    if args.orders:
        bench = Bench(args)
        settings = {name: getattr(args, name) for name in ("steps", "batch", "examples", "train")}
        bench.cell("facts", lambda: {**settings, "machine": machine(bench.backbone.dtype)})
        for order in args.orders:
            learn_order(bench, order)
    write_page(args, page)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--orders", type=int, nargs="*", default=[0, 1, 2], help="orders of the tasks; none: the page alone")
    add("--base", default=DEFAULT_MODEL)
    add(
        "--start", type=Path, help="PEFT directory before the first task; default the shipped multi-task LoRA"
    )
    add("--data", type=Path, default=DATA)
    add("--tasks", type=int, help="take the first N of the six")
    add("--methods", nargs="*", help="rows to learn; default all")
    add("--steps", type=int, default=30, help="of each task")
    add("--batch", type=int, default=8)
    add("--train", type=int, default=240, help="training examples a task")
    add("--examples", type=int, default=15, help="test examples a task")
    add("--max-new-tokens", type=int, default=24)
    add("--out", type=Path, default=ROOT / "runs" / "library", help="cells, adapters and runs")
    add("--page", type=Path, default=ROOT / "docs" / "results" / "library.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
