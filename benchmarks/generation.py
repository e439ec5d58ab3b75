"""Description to adapter: milliseconds in memory and on disk, adapters per second in batches, peak memory.

    python benchmarks/generation.py

Times are warm, with a description that was not asked before each time. Memory is that of a fresh process,
imports, task encoder and, where the hypernetwork reads it, the base model included. The Llama-7B shape is the
guide's configuration with noise in every weight, once built in memory and once read from a checkpoint.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from _machine import ROOT, machine, table

from shoal.evaluation.scaling import measure_shapes
from shoal.models.backbone import DEFAULT_MODEL
from shoal.text_to_lora.generator import TextToLoRA

LLAMA = "meta-llama/Llama-2-7b-hf"
VERBS = (
    "Classify",
    "Summarise",
    "Translate into French",
    "Rewrite politely",
    "Shorten",
    "Explain",
    "Correct",
)
OBJECTS = (
    "customer reviews",
    "news headlines",
    "short stories",
    "questions about history",
    "Python functions",
)
ENDINGS = ("for a child", "in one sentence", "without using any names", "as a numbered list", "for an expert")

PEAK = """
from shoal import process
def peak():
    return process.peak() / 1e9
"""
GENERATE = """
import sys
from shoal import TextToLoRA
adapter = TextToLoRA(sys.argv[1], hypernetwork=sys.argv[2]).generate("Sort the words of a sentence by length")
assert adapter.trained
print(0, peak())
"""
NOISE = """
import sys, time, torch
from shoal.models.backbone import load_shape
from shoal.config import TextToLoRAConfig
from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.text_to_lora.shipped import new_hypernetwork
def noisy(network):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.uniform_(-1e-3, 1e-3)
"""
SAVE = """
from pathlib import Path
from shoal.text_to_lora.checkpoint import HypernetworkCheckpoint, save_hypernetwork
from shoal.text_to_lora.encoders.sentence import DEFAULT_ENCODER
network = new_hypernetwork(load_shape(sys.argv[1]), TextToLoRAConfig(), 384).eval()
noisy(network)
checkpoint = HypernetworkCheckpoint(network, sys.argv[1], DEFAULT_ENCODER, True, {})
save_hypernetwork(checkpoint, Path(sys.argv[2]), torch.bfloat16)
print(0, 0)
"""
LOAD = """
import sys, time
from shoal.text_to_lora.generator import TextToLoRA
started = time.perf_counter()
generator = TextToLoRA(sys.argv[1], hypernetwork=sys.argv[2])
seconds = time.perf_counter() - started
generator.encoder, generator.skills.detect_many(["Sort words"])
started = time.perf_counter()
adapter = generator.generate("Sort the words of a sentence by length")
print(seconds + time.perf_counter() - started, peak())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default=DEFAULT_MODEL)
    parser.add_argument("--hypernetwork", type=Path, default=ROOT / "shoal" / "weights" / DEFAULT_MODEL)
    parser.add_argument("--single", type=int, default=60, help="descriptions, one at a time")
    parser.add_argument("--batch", type=int, default=64, help="descriptions in one call")
    parser.add_argument("--saved", type=int, default=40, help="adapters written to disk")
    args = parser.parse_args()

    generator = TextToLoRA(args.base, hypernetwork=args.hypernetwork)
    fresh = descriptions()
    for _ in range(5):
        generator.generate(next(fresh))
    single = [timed(lambda: generator.generate(next(fresh))) for _ in range(args.single)]
    batches = []
    for _ in range(3):
        texts = [next(fresh) for _ in range(args.batch)]
        batches.append(timed(lambda texts=texts: generator.generate_many(texts)))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(number) for number in range(args.saved)]
        saved = [timed(lambda p=path: generator.generate(next(fresh)).save(p)) for path in paths]
        _, memory = child(GENERATE, args.base, str(args.hypernetwork))
        built = measure_shapes([LLAMA])[0]
        checkpoint = str(Path(folder) / "llama")
        child(NOISE + SAVE, LLAMA, checkpoint)
        read_seconds, read_memory = child(LOAD, LLAMA, checkpoint)

    median, slow = statistics.median(single) * 1e3, statistics.quantiles(single, n=20)[-1] * 1e3
    rows = [
        ["description to adapter in memory, one at a time", f"{median:.0f} ms (95%: {slow:.0f} ms)", "40 ms"],
        [
            f"the same, {args.batch} in one call",
            f"{args.batch / statistics.median(batches):.0f} a second",
            "60",
        ],
        ["description to adapter directory on disk", f"{statistics.median(saved) * 1e3:.0f} ms", "120 ms"],
        ["generating process, peak memory", f"{memory:.2f} GB", "0.8 GB"],
        [
            "Llama-7B shape: build and generate",
            f"{built.build_seconds + built.generation_seconds:.2f} s, {built.peak_bytes / 1e9:.2f} GB",
            "1.5 s, 2.5 GB",
        ],
        ["Llama-7B shape: read and generate", f"{read_seconds:.2f} s, {read_memory:.2f} GB", ""],
    ]
    print(f"{args.base}; {machine()}\n")
    print(table(["what", "measured", "target"], rows))


def descriptions() -> Iterator[str]:
    """Different descriptions, in an order that mixes them."""
    combinations = list(product(VERBS, OBJECTS, ENDINGS, ("", ", please", ", and nothing else")))
    for number in range(len(combinations)):
        verb, what, ending, tail = combinations[number * 101 % len(combinations)]
        yield f"{verb} {what} {ending}{tail}"


def timed(call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def child(code: str, *arguments: str) -> tuple[float, float]:
    """(seconds, peak memory in GB) that a fresh Python prints."""
    command = [sys.executable, "-c", PEAK + code, *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    seconds, memory = done.stdout.split()
    return float(seconds), float(memory)


if __name__ == "__main__":
    main()
