"""How often a description gives an adapter: 1,000 varied ones, and every failure with its reason.

    python benchmarks/adapter_success.py

Half of the descriptions are those of the tasks made in code, half are the prompts of skill_prompts.jsonl,
with typing errors and nonsense among them. An adapter counts if it has every module, is finite and not zero.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

from _machine import machine

from shoal.errors import ShoalError
from shoal.models.backbone import DEFAULT_MODEL
from shoal.tasks.procedural.catalogue import FAMILIES
from shoal.text_to_lora.generator import TextToLoRA

PROMPTS = Path(__file__).parent / "skill_prompts.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default=DEFAULT_MODEL)
    parser.add_argument("--hypernetwork", type=Path, help="default: the shipped one")
    parser.add_argument("--descriptions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.getLogger("shoal").setLevel(logging.ERROR)  # which descriptions are far from all tasks
    generator = TextToLoRA(args.base, hypernetwork=args.hypernetwork)
    if not generator.trained:
        sys.exit(f"no hypernetwork is trained for {args.base}: give one with --hypernetwork")
    texts = descriptions(args.descriptions, args.seed)
    failures: dict[str, str] = {}
    seconds = []
    for text in texts:
        started = time.perf_counter()
        fault = fault_of(generator, text)
        seconds.append(time.perf_counter() - started)
        if fault:
            failures[text] = fault
    good = len(texts) - len(failures)
    print(f"{args.base}; {machine()}\n")
    print(f"{good} of {len(texts)} descriptions gave an adapter ({100 * good / len(texts):.1f}%), ", end="")
    print(f"median {1e3 * statistics.median(seconds):.0f} ms")
    for reason, count in Counter(reason.split(":")[0] for reason in failures.values()).most_common():
        print(f"* {count} x {reason}")
    for text, reason in failures.items():
        print(f"  {text!r}: {reason}")


def descriptions(count: int, seed: int) -> list[str]:
    """Different descriptions: as many of each source as there are."""
    chance = random.Random(seed)
    lines = PROMPTS.read_text("utf-8").splitlines()
    sources = [
        sorted({text for family in FAMILIES for text in family.descriptions}),
        sorted({json.loads(line)["prompt"] for line in lines}),
    ]
    chosen = [chance.sample(source, min(len(source), count // 2)) for source in sources]
    return list(dict.fromkeys(text for source in chosen for text in source))


def fault_of(generator: TextToLoRA, description: str) -> str | None:
    """Why a description gives no working adapter, if it does not."""
    try:
        lora = generator.generate(description).lora
    except ShoalError as error:
        return str(error)
    if len(lora.factors) != generator.facts()["modules"]:
        return f"the adapter has {len(lora.factors)} modules"
    if not all(bool(f.isfinite().all()) for pair in lora.factors.values() for f in pair):
        return "the adapter is not finite"
    if not any(bool(pair.b.any()) for pair in lora.factors.values()):
        return "the adapter changes nothing"
    return None


if __name__ == "__main__":
    main()
