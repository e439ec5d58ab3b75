"""A data directory from a clone of Super-NaturalInstructions: those of its tasks that results were made with.

    git clone --depth 1 https://github.com/allenai/natural-instructions
    python benchmarks/public_data.py natural-instructions/tasks --out DATA

Names and lists are those of the tables in docs/results/data.md. A task's definition is its only description,
and its examples are divided by a hash of the input, so scores come near those of the results.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict
from pathlib import Path

from _machine import ROOT

from shoal.files import write_file
from shoal.tasks.files import load_super_natural_instructions

PAGE = ROOT / "docs" / "results" / "data.md"
NAME = re.compile(r"`(task\d+_[^`]+)`( \(v2?\))?")
PARTS = {"": "train", " (v)": "validation", " (v2)": "validation_2"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clone", type=Path, help="the folder `tasks` of the clone")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    splits: dict[str, list[str]] = {part: [] for part in PARTS.values()}
    for name, mark in NAME.findall(PAGE.read_text("utf-8")):
        task = load_super_natural_instructions(args.clone / f"{name}.json")
        licenses = ", ".join(task.license) or "no licence"
        print(f"{name}: {len(task.train)} + {len(task.test)} examples, {licenses}")
        (args.out / "tasks").mkdir(parents=True, exist_ok=True)
        write_file(
            args.out / "tasks" / f"{name}.json", json.dumps(asdict(task), ensure_ascii=False, indent=1)
        )
        splits[PARTS[mark]].append(name)
    write_file(args.out / "splits.json", json.dumps(splits, indent=1))


if __name__ == "__main__":
    main()
