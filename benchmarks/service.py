"""POST /generate-adapter of a warm service, from 8 clients at once, every description a new one.

    python benchmarks/service.py --clients 8 --requests 400

Starts `shoal serve` on a port of its own with the default model; the clients are this process.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import httpx2
from _machine import machine

VERBS = ("Sort", "Reverse", "Count", "Translate", "Summarise", "Classify", "Extract", "Rewrite")
NOUNS = ("words", "sentences", "reviews", "dates", "recipes", "letters", "numbers", "questions", "poems")
WAYS = ("by length", "in capital letters", "into one line", "for a child", "as a list", "without vowels")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=400)
    arguments = parser.parse_args()
    prompts = [f"{v} the {n} of the text {w}." for w in WAYS for n in NOUNS for v in VERBS]
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--open", "--port", str(port), "--registry", folder, "--requests-per-minute", "1000000"]
        command = [sys.executable, "-m", "shoal.apps.cli.main", "serve", *flags]
        service = subprocess.Popen(command, env=os.environ, stderr=subprocess.DEVNULL)
        try:
            url = f"http://127.0.0.1:{port}"
            wait(url)
            measure(url, prompts[-8:], 1)  # warm
            seconds, whole = measure(url, prompts[: arguments.requests], arguments.clients)
        finally:
            service.terminate()
            service.wait()
    print(f"{machine()}\n")
    print(f"| POST /generate-adapter, {arguments.clients} clients, {len(seconds)} requests | |\n|---|---:|")
    print(f"| p50 | {statistics.median(seconds) * 1e3:.0f} ms |")
    print(f"| p95 | {statistics.quantiles(seconds, n=20)[-1] * 1e3:.0f} ms |")
    print(f"| a second | {len(seconds) / whole:.0f} |")


def free_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait(url: str) -> None:
    for _ in range(600):
        try:
            if httpx2.get(f"{url}/ready").status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.2)
    raise SystemExit("the service did not start")


def measure(url: str, prompts: list[str], clients: int) -> tuple[list[float], float]:
    """Seconds of every request, and of all of them together."""
    waiting, seconds = list(prompts), []

    def work() -> None:
        with httpx2.Client(base_url=url, timeout=60) as http:
            while waiting:
                try:
                    prompt = waiting.pop()
                except IndexError:
                    return
                started = time.perf_counter()
                http.post("/generate-adapter", params={"prompt": prompt}).raise_for_status()
                seconds.append(time.perf_counter() - started)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds, time.perf_counter() - started


if __name__ == "__main__":
    main()
