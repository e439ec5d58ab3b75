"""Publish the report of a finished `shoal benchmark`: its page in docs/results, its table in the overview.

python benchmarks/publish_benchmark.py runs/benchmark
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from _machine import ROOT

from shoal.files import write_file

BEGIN, END = "<!-- the table of shoal benchmark -->", "<!-- its end -->"
PICTURES = {
    "quality_and_time": "Quality against adaptation time",
    "quality_and_memory": "Quality against memory",
    "tasks": "Task by task",
    "learning": "Learning curves",
    "scaling": "Scaling with model size",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="directory of the run")
    report = parser.parse_args().run / "report"
    place = ROOT / "docs" / "results"
    page = (report / "report.md").read_text("utf-8")
    pictures = [(f"benchmark_{name}.png", title) for name, title in PICTURES.items()]
    for (copy, _), name in zip(pictures, PICTURES, strict=True):
        write_file(place / copy, (report / f"{name}.png").read_bytes())
    shown = "\n\n".join(f"## {title}\n\n![{title}]({copy})" for copy, title in pictures)
    write_file(place / "benchmark.md", f"{page.rstrip()}\n\n{shown}\n")
    write_file(place / "benchmark.json", (report / "report.json").read_text("utf-8"))
    overview = place / "index.md"
    text = overview.read_text("utf-8")
    table = re.search(r"^\| method \|.*?(?=\n\n)", page, re.MULTILINE | re.DOTALL)
    if table is None or text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"no table in {report / 'report.md'}, or no place for it in {overview}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    write_file(overview, f"{before}{BEGIN}\n\n{table[0]}\n\n{END}{after}")


if __name__ == "__main__":
    main()
