"""What `shoal serve` holds in memory after one described request, with the default model.

    python benchmarks/service_memory.py [--dtype float32] [--repeat 3]

Starts the service on a port of its own with one thread, asks one chat with an adapter from a description,
waits until free pages were given back, and prints what is resident. Another checkout is measured with its
folder in PYTHONPATH.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

import httpx2
import psutil
from _machine import machine
from service import free_port, wait

SETTLING_SECONDS = 12  # a little more than the service lets pass between two times that it gives pages back
MB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="float32", help="of the model's weights")
    parser.add_argument(
        "--repeat", type=int, default=3, help="services that are started, one after the other"
    )
    arguments = parser.parse_args()
    ready, described = zip(*(measure(arguments.dtype) for _ in range(arguments.repeat)), strict=True)
    print(f"{machine()}\n")
    print(f"| `shoal serve --dtype {arguments.dtype}`, median of {arguments.repeat} | resident |\n|---|---:|")
    print(f"| ready | {statistics.median(ready) / MB:.0f} MB |")
    print(f"| after one described request | {statistics.median(described) / MB:.0f} MB |")


def measure(dtype: str) -> tuple[int, int]:
    """Resident bytes of a service when it is ready, and after one described request."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--open", "--port", str(port), "--registry", folder, "--dtype", dtype]
        command = [sys.executable, "-m", "shoal.apps.cli.main", "serve", *flags]
        service = subprocess.Popen(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL
        )
        try:
            url, held = f"http://127.0.0.1:{port}", psutil.Process(service.pid).memory_info
            wait(url)
            time.sleep(SETTLING_SECONDS)
            ready = held().rss
            ask(url)
            time.sleep(SETTLING_SECONDS)
            return ready, held().rss
        finally:
            service.terminate()
            service.wait()


def ask(url: str) -> None:
    body = {
        "model": "smollm2-135m-instruct",
        "adapter": {"describe": "Say whether a film review is positive or negative."},
        "messages": [{"role": "user", "content": "I loved every minute of it."}],
        "max_tokens": 8,
        "temperature": 0,
    }
    httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=300).raise_for_status()


if __name__ == "__main__":
    main()
