"""Mixed load on a real service: adapters are generated, used and deleted, chats run; nothing may go wrong.

    python benchmarks/soak.py --minutes 30 --clients 8

Every client makes adapters, asks the same greedy question of each twice, compares the answers, and deletes
them. Reported are statuses, answers that differ, and memory after a tenth of the time (warm) and at the end.
In bfloat16 a batch rounds otherwise than one row alone: where the two likeliest tokens are within `TIE` nats,
the other one is a tie and not another adapter's answer.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import httpx2
from _machine import machine

TIE = 0.1
TASKS = (
    "Sort the words",
    "Count the letters",
    "Reverse the sentence",
    "Answer with one word",
    "Find the date",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--base", default="smollm2-135m-instruct")
    arguments = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--open", "--port", str(port), "--registry", folder, "--base", arguments.base]
        flags += ["--requests-per-minute", "1000000", "--tokens-per-minute", "1000000000"]
        command = [sys.executable, "-m", "shoal.apps.cli", "serve", *flags]
        service = subprocess.Popen(command, env=os.environ, stderr=subprocess.DEVNULL)
        try:
            model = wait(url)
            end = time.monotonic() + 60 * arguments.minutes
            clients = [Client(url, model, number, end) for number in range(arguments.clients)]
            for client in clients:
                client.start()
            time.sleep(6 * arguments.minutes)
            warm = memory(service.pid)
            for client in clients:
                client.join()
            last = memory(service.pid)
        finally:
            service.terminate()
            service.wait()
    statuses: Counter[int] = sum((c.statuses for c in clients), Counter())
    print(f"{machine()}\n\n| {arguments.minutes:g} minutes, {arguments.clients} clients | |\n|---|---:|")
    for status, count in sorted(statuses.items()):
        print(f"| status {status} | {count} |")
    wrong, ties, compared = (sum(getattr(c, name) for c in clients) for name in ("wrong", "ties", "compared"))
    print(f"| answers of another adapter | {wrong} of {compared} |")
    print(f"| answers that a tie of two tokens changed | {ties} of {compared} |")
    growth = last / warm - 1
    print(f"| memory, warm and at the end | {warm / 2**20:.0f} MB, {last / 2**20:.0f} MB ({growth:+.1%}) |")


class Client(threading.Thread):
    """One of those who ask."""

    def __init__(self, url: str, model: str, number: int, end: float) -> None:
        super().__init__()
        self.url, self.model, self.number, self.end = url, model, number, end
        self.statuses: Counter[int] = Counter()
        self.compared = self.wrong = self.ties = 0

    def run(self) -> None:
        chance, made = random.Random(self.number), 0
        with httpx2.Client(base_url=self.url, timeout=120) as self.http:
            while time.monotonic() < self.end:
                made += 1
                name = f"c{self.number}-{made % 3}"
                description = f"{chance.choice(TASKS)} of text number {chance.randrange(10**6)}."
                if self.ask("POST", "/v1/adapters", {"name": name, "description": description}) is None:
                    continue
                first = self.answer({"model": name})
                self.answer({"model": self.model, "adapter": {"mix": [{"name": name, "weight": 0.5}]}})
                self.answer({"model": self.model, "adapter": {"describe": description}})
                second = self.answer({"model": name})
                if first is not None and second is not None:
                    self.compared += 1
                    tie = differ(first, second) and is_tie(first, second)
                    self.ties += tie
                    self.wrong += differ(first, second) and not tie
                self.ask("DELETE", f"/v1/adapters/{name}")

    def answer(self, which: dict) -> list[dict] | None:
        """Its tokens, each with the two likeliest."""
        messages = [{"role": "user", "content": "The film of 3 May 2021 was long and loud."}]
        options = {"messages": messages, "max_tokens": 16, "temperature": 0}
        options |= {"logprobs": True, "top_logprobs": 2}
        whole = self.ask("POST", "/v1/chat/completions", {**which, **options})
        return None if whole is None else whole["choices"][0]["logprobs"]["content"]

    def ask(self, method: str, path: str, body: dict | None = None) -> dict | None:
        answer = self.http.request(method, path, json=body)
        self.statuses[answer.status_code] += 1
        if answer.status_code in (429, 503):
            time.sleep(int(answer.headers["retry-after"]))
        return answer.json() if answer.status_code < 400 else None


def differ(first: list[dict], second: list[dict]) -> bool:
    """Whether two answers have other tokens."""
    return [score["token"] for score in first] != [score["token"] for score in second]


def is_tie(first: list[dict], second: list[dict]) -> bool:
    """Whether the first token in which two answers differ was as good as the other."""
    pairs = zip(first, second, strict=False)
    one, other = next(((a, b) for a, b in pairs if a["token"] != b["token"]), (None, None))
    if one is None:
        return False
    best, next_best = one["top_logprobs"]
    return other["token"] == next_best["token"] and best["logprob"] - next_best["logprob"] < TIE


def wait(url: str) -> str:
    """The base model, as soon as the service is there."""
    for _ in range(900):
        try:
            return httpx2.get(f"{url}/v1/models").json()["data"][0]["id"]
        except httpx2.TransportError:
            time.sleep(0.2)
    raise SystemExit("the service did not start")


def memory(process: int) -> int:
    """Bytes in memory."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
