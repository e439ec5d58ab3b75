"""Skills learnt one after another: one adapter by every method, a growing library, its gate, and its merges.

    python benchmarks/library.py

Every cell is kept as a JSON line in --out, adapters and runs beside it, so a run that was stopped goes on.
The page is made of the cells that are there, and they are kept as JSON beside it: a run goes on from those
too. --parts with no name makes the page alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from _library_gate import press, try_gate
from _library_growth import grow
from _library_page import page
from _library_rehearsal import rehearse
from _library_stream import learn_order
from _machine import DATA, ROOT, machine
from _merging_bench import Bench, write_page

from shoal.models.backbone import DEFAULT_MODEL


def main() -> None:
    args = parse()
    if args.parts:
        bench = Bench(args)
        settings = {name: getattr(args, name) for name in ("steps", "batch", "examples", "train")}
        bench.cell("facts", lambda: {**settings, "machine": machine(bench.backbone.dtype)})
        for part in args.parts:
            PARTS[part](bench)
    write_page(args, page)


def stream_a(bench: Bench) -> None:
    """One adapter through six tasks, by every method, in every order."""
    for order in bench.args.orders:
        learn_order(bench, order)


PARTS: dict[str, Callable[[Bench], None]] = {
    "stream_a": stream_a,
    "stream_b": grow,
    "gate": try_gate,
    "consolidation": press,
    "stream_c": rehearse,
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="none: the page alone")
    add("--orders", type=int, nargs="*", default=[0, 1, 2], help="of the tasks of stream A")
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
    add("--skills", type=int, help="take the first N skills of stream B")
    add("--requests", type=int, default=20, help="test requests of each skill of stream B")
    add("--skill-steps", type=int, default=8, help="of training each skill of a library")
    add("--skill-batch", type=int, default=4, help="examples of each of these steps")
    add("--replay", type=int, default=100, help="steps of replay after the closed form")
    add("--network-steps", type=int, default=120, help="of the hypernetwork on eight new tasks")
    add("--validation", action="store_true", help="also ask the validation tasks, to report once")
    add("--max-new-tokens", type=int, default=24)
    add("--out", type=Path, default=ROOT / "runs" / "library", help="cells, adapters and runs")
    add("--page", type=Path, default=ROOT / "docs" / "results" / "library.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
