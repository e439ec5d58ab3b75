"""What loading the task encoder costs through transformers, as Shoal does, and through sentence-transformers.

    python benchmarks/task_encoder.py

Each way runs in its own process; the times and the peak memory include importing torch.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

COMMON = """
import resource, statistics, sys, time
start = time.perf_counter()
{load}
encode(["A first text."])
loaded = time.perf_counter() - start
times = []
for i in range(30):
    start = time.perf_counter()
    encode([f"Make this model excel at code generation and debugging, part {{i}}"])
    times.append(time.perf_counter() - start)
scale = 1e9 if sys.platform == "darwin" else 1e6
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
print(f"{{loaded:.1f}} | {{peak:.2f}} | {{statistics.median(times) * 1000:.0f}}")
"""
WAYS = {
    "transformers (Shoal)": """
from shoal.text_to_lora.encoders.sentence import TaskEncoder
encode = TaskEncoder().encode
""",
    "sentence-transformers": """
from sentence_transformers import SentenceTransformer
from shoal.text_to_lora.encoders.sentence import DEFAULT_ENCODER, wheel_folder
encode = SentenceTransformer(wheel_folder() or DEFAULT_ENCODER, device="cpu").encode
""",
}


def main() -> None:
    print("| way | load and first text, s | peak memory, GB | one new text, warm, median ms |")
    print("|---|---:|---:|---:|")
    for way, load in WAYS.items():
        if way == "sentence-transformers" and importlib.util.find_spec("sentence_transformers") is None:
            print(f"| {way} | not installed | | |")
            continue
        done = subprocess.run(
            [sys.executable, "-c", COMMON.format(load=load)],
            cwd=Path(__file__).resolve().parents[1],
            check=True,
            capture_output=True,
            text=True,
        )
        print(f"| {way} | {done.stdout.strip().splitlines()[-1]} |")


if __name__ == "__main__":
    main()
