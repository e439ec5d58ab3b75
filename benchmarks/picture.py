"""Draw docs/before_after.svg: answers of docs/results/report.json, base model beside adapted model.

    python benchmarks/picture.py

Every answer in the picture stands in the report. The tasks are spread evenly from the adapter's worst lead in
ROUGE-L to its best, and the example is each task's first: nothing is picked by eye.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from _machine import ROOT
from _unseen_tasks_page import DESCRIBED

from shoal.evaluation.baselines import RIGHT
from shoal.files import write_file

COLUMNS = (
    ("request", 20, 32),
    ("right answer", 275, 24),
    ("base model + description", 475, 31),
    ("adapter", 725, 28),
)
ROW = 46
INK, GOOD, BAD = "#1f2937", "#166534", "#9a3412"  # an answer is good from half of the ROUGE-L on

Answers = list[tuple[str, dict[str, Any], dict[str, Any]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "results" / "report.json")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "before_after.svg")
    parser.add_argument("--rows", type=int, default=8, help="at least 2")
    args = parser.parse_args()
    report = json.loads(args.report.read_text(encoding="utf-8"))
    write_file(args.out, draw(chosen(report, args.rows)))
    print(f"wrote {args.out}")


def chosen(report: dict[str, Any], rows: int) -> Answers:
    """(task, base model's answer, adapted model's answer) of tasks spread evenly from worst lead to best."""
    results = {r["name"]: r for r in report["results"]}
    before, after = results[DESCRIBED], results[RIGHT]
    lead = {t: after["scores"]["rouge_l"][t] - before["scores"]["rouge_l"][t] for t in report["tasks"]}
    ranked = sorted(lead, key=lambda t: lead[t])
    picked = [ranked[round(i * (len(ranked) - 1) / (rows - 1))] for i in range(rows)]
    return [(t, before["samples"][t][0], after["samples"][t][0]) for t in picked]


def draw(rows: Answers) -> str:
    """The picture: one row a task, good answers green."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="960" height="{60 + ROW * len(rows)}" '
        'font-family="sans-serif">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        *(text(x, 30, name, "#555555", 14, bold=True) for name, x, _ in COLUMNS),
    ]
    for number, (task, bare, adapted) in enumerate(rows):
        top = 44 + ROW * number
        shade = "#f4f7fb" if number % 2 == 0 else "#ffffff"
        parts.append(f'<rect x="10" y="{top}" width="940" height="{ROW}" fill="{shade}"/>')
        parts.append(text(20, top + 16, task, "#8a94a6", 10))
        cells = [(bare["input"], INK), (bare["references"][0], INK)]
        cells += [(a["answer"], GOOD if a["rouge_l"] >= 0.5 else BAD) for a in (bare, adapted)]
        for (cell, colour), (_, x, width) in zip(cells, COLUMNS, strict=True):
            line = " ".join(cell.split()) or "(empty)"
            short = line if len(line) <= width else line[: width - 1] + "…"
            parts.append(text(x, top + 34, short, colour, 14))
    return "\n".join([*parts, "</svg>"]) + "\n"


def text(x: int, y: int, content: str, colour: str, size: int, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}"{weight}>{escape(content)}</text>'


if __name__ == "__main__":
    main()
