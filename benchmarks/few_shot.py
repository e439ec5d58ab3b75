"""How long a description and 16 solved examples take to become an adapter, on every validation task.

python benchmarks/few_shot.py
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path

from _machine import DATA, machine, table

from shoal.backbone import DEFAULT_MODEL
from shoal.tasks import load_split
from shoal.text_to_lora import TextToLoRA


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--tasks", type=int, help="take the first N validation tasks; default all")
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0, help="of the examples")
    args = parser.parse_args()

    generator = TextToLoRA(DEFAULT_MODEL)
    generator.generate("A first description loads the base model.")
    seconds = {}
    for task in load_split(args.data).validation[: args.tasks]:
        chance = random.Random(f"{args.seed}/{task.name}")
        examples = chance.sample(task.train, min(args.examples, len(task.train)))
        started = time.perf_counter()
        generator.generate(task.descriptions[0], examples=examples)
        seconds[task.name] = time.perf_counter() - started
    print(f"{args.examples} examples; {machine(generator.backbone.dtype)}\n")
    print(table(["task", "s"], [[name, f"{taken:.1f}"] for name, taken in seconds.items()]))
    taken = seconds.values()
    print(f"\nMedian {statistics.median(taken):.1f} s, longest {max(taken):.1f} s (target: at most 30).")


if __name__ == "__main__":
    main()
