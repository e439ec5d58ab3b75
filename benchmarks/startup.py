"""Seconds from the start of a command to its end, and as a share of what `import torch` takes.

    python benchmarks/startup.py [--runs 5]

Each is started `--runs` times in a process of its own, in turn with the others, and the least time counts:
other work on the machine only adds to it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

TORCH = ("-c", "import torch")
COMMANDS = (
    "--help",
    "--version",
    "train lora --help",
    "skills",
    "models",
    "adapters list",
    "keys create ada",
)


def seconds(arguments: tuple[str, ...], environment: dict[str, str]) -> float:
    """Of one process."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments], check=True, capture_output=True, env={**os.environ, **environment}
    )
    return time.perf_counter() - started


def main() -> None:
    """Print a line for each command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    started = {"import torch": TORCH} | {f"shoal {c}": ("-m", "shoal", *c.split()) for c in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        environment = {"SHOAL_REGISTRY": folder}
        least = dict.fromkeys(started, float("inf"))
        for _ in range(runs):
            for name, arguments in started.items():
                least[name] = min(least[name], seconds(arguments, environment))
    for name, took in least.items():
        print(f"{name:26}{took:6.2f} s  {took / least['import torch']:5.2f} of import torch")


if __name__ == "__main__":
    main()
