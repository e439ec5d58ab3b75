"""Attacks on a real service: hostile uploads, `/health` under load, and short requests beside long ones.

    python benchmarks/attacks.py [--uploads 350] [--seconds 60] [--base smollm2-135m-instruct] [--minutes 6]

Uploads come one after the other; CPU seconds and the added peak of the resident set are those of the
service's process. Then `/health` is asked every 50 ms while 64 clients upload, with a second between, 200
never end their headers and 60 read long answers. Last, one owner's short requests are timed to their first
token beside another's 60 long answers and 8 prompts of 6,000 tokens. The load comes from a process of its
own, on the same machine. Every figure is printed beside its target once it is measured. With `--minutes` all
end within that time where the service starts in one; a figure of too few uploads or requests does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
from _machine import ROOT, machine, table

sys.path.insert(0, str(ROOT))
from tests.fixtures.hostile import generated, uploads  # noqa: E402

UPLOADERS, SLOW, LONG, READERS = 64, 200, 60, 8
LONG_PROMPT = 6000  # tokens
MOST_CPU, MOST_BYTES, MOST_HEALTH, MOST_FIRST = 1.0, 100e6, 0.25, 2.0
LEAST_UPLOADS, LEAST_TIMES = 300, 10  # of which a figure is one
PATIENCE = 30.0  # seconds after which a measured request is given up; its time counts
START, BUILD_UP, AFTER = 60.0, 10.0, 5.0  # seconds kept for the start, and before and after every load


@dataclass(frozen=True)
class Target:
    """A running service: its URL, base model and the keys of two owners."""

    url: str
    model: str
    hog: str
    other: str

    def client(self, key: str, seconds: float = 600) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--uploads", type=int, default=350)
    parser.add_argument("--seconds", type=float, default=60.0, help="of load, twice")
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--parts", default="uploads,health,first", help="of these three")
    parser.add_argument("--minutes", type=float, help="for everything, in place of --seconds")
    arguments = parser.parse_args()
    names, seconds, most = arguments.parts.split(","), arguments.seconds, float("inf")
    if arguments.minutes:
        most = (60 * arguments.minutes - START) / len(names)
        seconds = max(1.0, most - BUILD_UP - AFTER - PATIENCE)
    print(f"{machine()}; load average {os.getloadavg()[0]:.1f}\n", flush=True)
    rows = []
    with served(arguments.base) as (process, target):
        parts = {
            "uploads": lambda: upload_row(process, target, arguments.uploads, most),
            "health": lambda: health_row(target, seconds),
            "first": lambda: first_token_row(target, seconds),
        }
        for name in names:
            rows.append(parts[name]())
            print(": ".join(rows[-1][:2]), f"(target: {rows[-1][2]})", flush=True)
    print(f"\nload average {os.getloadavg()[0]:.1f}\n")
    print(table(["what", "measured", "target", "holds"], rows))
    sys.exit(any(row[-1] != "yes" for row in rows))


@contextlib.contextmanager
def served(base: str, *options: str) -> Iterator[tuple[psutil.Process, Target]]:
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        place = ["--registry", folder]
        shoal = [sys.executable, "-m", "shoal.apps.cli.main"]
        keys = [
            subprocess.run(
                [*shoal, "keys", "create", owner, *place], check=True, capture_output=True, text=True
            )
            for owner in ("hog", "other")
        ]
        limits = [
            "--requests-per-minute",
            "1000000",
            "--tokens-per-minute",
            "1000000000",
            "--max-open",
            "1000",
        ]
        limits += ["--max-open-a-key", "500", "--max-waiting", "1000"]
        flags = ["--port", str(port), "--base", base, *place, *limits, *options]
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen([*shoal, "serve", *flags], stderr=log, stdout=log)
            try:
                url, found = f"http://127.0.0.1:{port}", [key.stdout.split()[-1] for key in keys]
                model = wait(url, found[0])
                yield psutil.Process(process.pid), Target(url, model, *found)
            finally:
                process.kill()
                process.wait()


def wait(url: str, key: str) -> str:
    while True:
        with contextlib.suppress(httpx2.HTTPError):
            httpx2.get(f"{url}/ready", timeout=5).raise_for_status()
            answer = httpx2.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
            return str(answer.json()["data"][0]["id"])
        time.sleep(0.5)


def upload_row(process: psutil.Process, target: Target, count: int, most: float) -> list[str]:
    end = time.monotonic() + most
    known = [(name, make()) for name, make in uploads().items()]
    worst_cpu, worst_bytes, statuses = (0.0, ""), (0.0, ""), Counter[int]()
    with target.client(target.hog) as http:
        post(http, known[-1][1])  # what is loaded once is loaded
        for name, content in [*known, *generated(max(0, count - len(known)))]:
            if time.monotonic() > end:
                break
            before, cpu = memory(process), cpu_seconds(process)
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the peak begins anew
            statuses[post(http, content)] += 1
            worst_cpu = max(worst_cpu, (cpu_seconds(process) - cpu, name))
            worst_bytes = max(worst_bytes, (memory(process, "VmHWM") - before, name))
    told = ", ".join(f"{number} x {status}" for status, number in sorted(statuses.items()))
    good = worst_cpu[0] < MOST_CPU and worst_bytes[0] < MOST_BYTES and not any(s >= 500 for s in statuses)
    good = good and sum(statuses.values()) >= LEAST_UPLOADS
    measured = (
        f"{worst_cpu[0]:.2f} s CPU ({worst_cpu[1]}), {worst_bytes[0] / 1e6:.0f} MB ({worst_bytes[1]}); {told}"
    )
    return [
        f"{sum(statuses.values())} hostile uploads, the worst",
        measured,
        f"{MOST_CPU:g} s, {MOST_BYTES / 1e6:g} MB, none 500, of {LEAST_UPLOADS}",
        said(good),
    ]


def post(http: httpx2.Client, content: bytes) -> int:
    answer = http.post("/v1/adapters/import", data={"name": "hostile"}, files={"file": content})
    return int(answer.status_code)


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def memory(process: psutil.Process, line: str = "VmRSS") -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return 1024.0 * int(status.split(f"{line}:")[1].split()[0])


def health_row(target: Target, seconds: float) -> list[str]:
    with loaded(attack, target), httpx2.Client(base_url=target.url, timeout=PATIENCE) as http:
        times = timed(lambda: http.get("/health").raise_for_status(), seconds, 0.05)
    p99 = quantile(times, 0.99)
    what = f"/health p99 of {len(times)}, {UPLOADERS} uploading, {SLOW} slow clients, {LONG} long answers"
    return [what, f"{1000 * p99:.0f} ms", f"{1000 * MOST_HEALTH:.0f} ms", said(p99 < MOST_HEALTH, times)]


def first_token_row(target: Target, seconds: float) -> list[str]:
    with loaded(long_requests, target), target.client(target.other, PATIENCE) as http:

        def ask() -> None:
            body = {"model": target.model, "messages": [{"role": "user", "content": "Hi!"}], "max_tokens": 4}
            with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
                for line in answer.iter_lines():
                    if '"content": "' in line and '"content": ""' not in line:
                        return
                raise SystemExit("a short request was not answered")

        times = timed(ask, seconds, 0.5)
    p95 = quantile(times, 0.95)
    what = f"first token p95 of {len(times)}, beside {LONG} long answers and {READERS} long prompts"
    return [what, f"{p95:.2f} s", f"{MOST_FIRST:g} s", said(p95 < MOST_FIRST, times)]


@contextlib.contextmanager
def loaded(load: Callable[[Target], None], target: Target) -> Iterator[None]:
    """A load from another process, for as long as the block; some seconds are given for it to build up."""
    process = multiprocessing.get_context("spawn").Process(target=load, args=(target,), daemon=True)
    process.start()
    time.sleep(BUILD_UP)
    try:
        yield
    finally:
        process.kill()
        process.join()
        time.sleep(2)


def timed(ask: Callable[[], Any], seconds: float, pause: float) -> list[float]:
    times, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        started = time.monotonic()
        with contextlib.suppress(httpx2.TimeoutException):
            ask()
        times.append(time.monotonic() - started)
        time.sleep(pause)
    return sorted(times)


def quantile(times: list[float], share: float) -> float:
    return times[min(len(times) - 1, int(share * len(times)))]


def said(good: bool, times: list[float] | None = None) -> str:
    return "yes" if good and (times is None or len(times) >= LEAST_TIMES) else "NO"


def attack(target: Target) -> None:
    known = [make() for make in uploads().values()]

    def upload(number: int) -> None:
        with target.client(target.hog) as http:
            while True:
                with contextlib.suppress(httpx2.HTTPError):
                    post(http, known[(number := number + 1) % len(known)])
                time.sleep(1)

    def slow(number: int) -> None:
        address = httpx2.URL(target.url)
        while True:
            with contextlib.suppress(OSError), socket.create_connection((address.host, address.port)) as half:
                half.sendall(b"GET /health HTTP/1.1\r\n")
                half.recv(1)

    run([(upload, UPLOADERS), (slow, SLOW), (lambda number: answer(target), LONG)])


def long_requests(target: Target) -> None:
    run([(lambda number: answer(target), LONG), (lambda number: answer(target, LONG_PROMPT), READERS)])


def run(kinds: list[tuple[Callable[[int], None], int]]) -> None:
    for work, count in kinds:
        for number in range(count):
            threading.Thread(target=work, args=(number,), daemon=True).start()
    threading.Event().wait()


def answer(target: Target, prompt: int = 20) -> None:
    """Ask for long answers, one after the other, and read them."""
    body = {"model": target.model, "prompt": [100] * prompt, "max_tokens": 1000, "stream": True}
    with target.client(target.hog) as http:
        while True:
            with contextlib.suppress(httpx2.HTTPError):
                with http.stream("POST", "/v1/completions", json=body) as read:
                    for _ in read.iter_lines():
                        pass
                time.sleep(0.1)


if __name__ == "__main__":
    main()
