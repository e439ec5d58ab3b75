"""How well skills are detected on prompts that an annotator labelled.

    python benchmarks/skills.py [PATH]

PATH is a JSONL file of records with prompt, skills and kind; by default ../shared/data/skills_dev.jsonl,
beside the repository. Prints micro-F1, overall and by kind, and how many "none" prompts were given a skill.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

from shoal.text_to_lora.skills import SkillDetector

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data" / "skills_dev.jsonl"


def micro_f1(pairs: list[tuple[set[str], set[str]]]) -> float:
    """2 TP / (predicted + true), over all (predicted, true) pairs; 1 if there is nothing to find or found."""
    hits = sum(len(predicted & true) for predicted, true in pairs)
    total = sum(len(predicted) + len(true) for predicted, true in pairs)
    return 2 * hits / total if total else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", nargs="?", type=Path, default=DEFAULT)
    path = parser.parse_args().path
    if not path.is_file():
        sys.exit(f"no prompts at {path}: pass the path of a JSONL file with prompt, skills and kind")
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    detector = SkillDetector()
    detector.detect("A first text loads the encoder.")
    pairs = defaultdict(list)
    times = []
    for record in records:
        start = time.perf_counter()
        predicted = set(detector.detect(record["prompt"]).skills)
        times.append(time.perf_counter() - start)
        pairs[record["kind"]].append((predicted, set(record["skills"])))

    print("| kind | prompts | micro-F1 |")
    print("|---|---:|---:|")
    everything = [pair for kind in pairs.values() for pair in kind]
    print(f"| all | {len(everything)} | {micro_f1(everything):.3f} |")
    for kind in sorted(set(pairs) - {"none"}):
        print(f"| {kind} | {len(pairs[kind])} | {micro_f1(pairs[kind]):.3f} |")
    if none := pairs.get("none"):
        given = sum(bool(predicted) for predicted, _ in none)
        print(f"\nprompts of kind none given a skill: {given} of {len(none)}")
    print(f"one new prompt: median {1000 * statistics.median(times):.0f} ms")


if __name__ == "__main__":
    main()
