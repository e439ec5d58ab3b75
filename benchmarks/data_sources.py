"""Where the tasks of a data directory come from, and under which licences: tables for docs/results/data.md.

    python benchmarks/data_sources.py

Tasks of one source and licence share a row; `(v)` marks validation tasks, `(v2)` those of the second list.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _machine import DATA, table

SUPER_NI = re.compile(r"task\d+_")
MARKS = {"train": "", "validation": " (v)", "validation_2": " (v2)"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    data = parser.parse_args().data
    splits = json.loads((data / "splits.json").read_text("utf-8"))
    marks = {name: mark for part, mark in MARKS.items() for name in splits.get(part, ())}
    tasks = [json.loads((data / "tasks" / f"{name}.json").read_text("utf-8")) for name in sorted(marks)]
    for title, ours in (("Super-NaturalInstructions", True), ("Other public sources", False)):
        chosen = [task for task in tasks if bool(SUPER_NI.match(task["name"])) == ours]
        print(f"## {title}\n\n{len(chosen)} tasks.\n\n{by_source(chosen, marks)}\n")


def by_source(tasks: Sequence[Mapping[str, Any]], marks: Mapping[str, str]) -> str:
    """A row for each source and licence, with its tasks."""
    rows: dict[tuple[str, str], list[str]] = defaultdict(list)
    for task in tasks:
        source, license = (", ".join(text(task[field])) for field in ("source", "license"))
        rows[source, license].append(f"`{task['name']}`{marks[task['name']]}")
    cells = [[source, license, ", ".join(names)] for (source, license), names in sorted(rows.items())]
    lines = table(["source", "licence", "tasks"], cells).splitlines()
    return "\n".join([lines[0], "|---|---|---|", *lines[2:]])


def text(value: str | Sequence[str]) -> list[str]:
    """A field that is one string or several."""
    return [value] if isinstance(value, str) else list(value)


if __name__ == "__main__":
    main()
