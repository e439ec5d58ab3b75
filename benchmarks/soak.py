"""Mixed load on a real service: adapters are generated, used and deleted, chats run; nothing may go wrong.

    python benchmarks/soak.py --minutes 30 --clients 8

Every client makes adapters, asks the same greedy question of each twice, compares the answers, and deletes
them. The run fails, with exit code 1, where an answer was another adapter's, where a status was none of 200,
201, 429 and 503, where one of the last two came without Retry-After, or where memory grew by more than `FLAT`
after the warm-up.

The warm-up is the first fifth of the run: by then the caches have filled (`TextToLoRA` keeps 32 adapters,
oneDNN 1024 kernels for the shapes of batches) and the allocator has met the largest batches. Memory is the
resident set, read every second; its growth is the mean of the last tenth over that of the tenth after the
warm-up.

With `--dtype float32` an answer may not change at all. In bfloat16, the default on a CPU, a batch rounds
otherwise than one row alone, in every layer: where another token was at most `TIE` nats less likely, which is
four steps of a bfloat16 logit between 16 and 32, its choice is called a tie and not another adapter's answer.
Whether the comparison would find an adapter taken for another is measured as well: on answers of two adapters
for different tasks, which should differ.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import httpx2
from _machine import machine

from shoal.models.backbone import load_wording

TIE, FLAT, ROWS, TOP = 0.51, 0.05, 12, 5
TASKS = (
    "Sort the words",
    "Count the letters",
    "Reverse the sentence",
    "Answer with one word",
    "Find the date",
)
ALLOWED = frozenset({200, 201, 429, 503})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: as `shoal serve`")
    arguments = parser.parse_args()
    words = load_wording(arguments.base)
    tie = 0.0 if arguments.dtype == "float32" else TIE
    end_of_turn = words.tokenizer.decode([words.end_of_turn])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--open", "--port", str(port), "--registry", folder, "--base", arguments.base]
        flags += ["--dtype", arguments.dtype] if arguments.dtype else []
        flags += ["--requests-per-minute", "1000000", "--tokens-per-minute", "1000000000"]
        command = [sys.executable, "-m", "shoal.apps.cli.main", "serve", *flags]
        service = subprocess.Popen(command, env=os.environ, stderr=subprocess.DEVNULL)
        try:
            model, begin = wait(url), time.monotonic()
            end = begin + 60 * arguments.minutes
            clients = [
                Client(url, model, number, end, end_of_turn, tie) for number in range(arguments.clients)
            ]
            for client in clients:
                client.start()
            curve = []
            while time.monotonic() < end:
                curve.append(memory(service.pid))
                time.sleep(1)
            for client in clients:
                client.join()
        finally:
            service.terminate()
            service.wait()
    print(f"{machine()}\n\n| {arguments.minutes:g} minutes, {arguments.clients} clients | |\n|---|---:|")
    faults = [*report_answers(clients), *report_memory(curve, arguments.minutes)]
    if faults:
        raise SystemExit("not as it should be: " + "; ".join(faults))


def report_answers(clients: Sequence[Client]) -> list[str]:
    """Print what was answered; what is wrong with it."""
    statuses: Counter[int] = sum((c.statuses for c in clients), Counter())
    for status, count in sorted(statuses.items()):
        print(f"| status {status} | {count} |")
    names = ("wrong", "ties", "compared", "told_apart", "pairs", "rude", "lost")
    wrong, ties, compared, apart, pairs, rude, lost = (sum(getattr(c, n) for c in clients) for n in names)
    print(f"| 429 and 503 without Retry-After | {rude} |")
    print(f"| requests without an answer | {lost} |")
    print(f"| answers of another adapter | {wrong} of {compared} |")
    print(f"| answers that a tie of two tokens changed | {ties} of {compared} |")
    print(f"| the clearest choice that a batch changed | {max(c.gap for c in clients):.3f} nats |")
    print(f"| adapters for two tasks that the comparison tells apart | {apart} of {pairs} |")
    others = sorted(set(statuses) - ALLOWED)
    stopped = sum(not c.finished for c in clients)
    found = {
        f"statuses {others}": others,
        f"{rude} refusals without Retry-After": rude,
        f"{lost} requests without an answer": lost,
        f"{wrong} answers of another adapter": wrong,
        "no answers were compared": not compared,
        "the comparison tells no adapters apart": not apart,
        f"{stopped} clients stopped early": stopped,
    }
    return [fault for fault, is_so in found.items() if is_so]


def report_memory(curve: Sequence[int], minutes: float) -> list[str]:
    """Print memory over the time, `ROWS` means of it, and its growth after the warm-up; what is wrong."""
    size = max(1, len(curve) // ROWS)
    for begin in range(0, len(curve) - size + 1, size):
        until = (begin + size) / len(curve) * minutes
        print(f"| memory until minute {until:.1f} | {mean(curve[begin : begin + size]) / 2**20:.0f} MB |")
    tenth = max(1, len(curve) // 10)
    warm, last = mean(curve[2 * tenth : 3 * tenth]), mean(curve[-tenth:])
    growth, peak = last / warm - 1, max(curve[2 * tenth :])
    print(f"| memory, warm and in the end | {warm / 2**20:.0f} MB, {last / 2**20:.0f} MB ({growth:+.1%}) |")
    print(f"| the most after the warm-up | {peak / 2**20:.0f} MB |")
    return [f"memory grew by {growth:.1%} after the warm-up"] if growth > FLAT else []


class Client(threading.Thread):
    """One of those who ask."""

    def __init__(self, url: str, model: str, number: int, end: float, end_of_turn: str, tie: float) -> None:
        super().__init__()
        self.url, self.model, self.number, self.end = url, model, number, end
        self.end_of_turn, self.tie = end_of_turn, tie
        self.statuses: Counter[int] = Counter()
        self.compared = self.wrong = self.ties = self.pairs = self.told_apart = self.rude = self.lost = 0
        self.finished, self.gap = False, 0.0

    def run(self) -> None:
        chance, made = random.Random(self.number), 0
        before: tuple[str, list[dict]] | None = None
        with httpx2.Client(base_url=self.url, timeout=120) as self.http:
            while time.monotonic() < self.end:
                made += 1
                name, task = f"c{self.number}-{made % 3}", chance.choice(TASKS)
                description = f"{task} of text number {chance.randrange(10**6)}."
                if self.ask("POST", "/v1/adapters", {"name": name, "description": description}) is None:
                    continue
                first = self.answer({"model": name})
                self.answer({"model": self.model, "adapter": {"mix": [{"name": name, "weight": 0.5}]}})
                self.answer({"model": self.model, "adapter": {"describe": description}})
                second = self.answer({"model": name})
                if first is not None and second is not None:
                    self.compared += 1
                    another = is_another(first, second, self.end_of_turn, self.tie)
                    self.wrong += another
                    self.ties += differ(first, second) and not another
                    self.gap = max(self.gap, gap(first, second, self.end_of_turn))
                    if another:
                        print(f"{texts(first)} became {texts(second)}", file=sys.stderr)
                if first is not None:
                    if before is not None and before[0] != task:
                        self.pairs += 1
                        self.told_apart += is_another(before[1], first, self.end_of_turn, self.tie)
                    before = (task, first)
                self.ask("DELETE", f"/v1/adapters/{name}")
        self.finished = True

    def answer(self, which: dict) -> list[dict] | None:
        """Its tokens, each with the likeliest."""
        messages = [{"role": "user", "content": "The film of 3 May 2021 was long and loud."}]
        options = {"messages": messages, "max_tokens": 16, "temperature": 0}
        options |= {"logprobs": True, "top_logprobs": TOP}
        whole = self.ask("POST", "/v1/chat/completions", {**which, **options})
        return None if whole is None else whole["choices"][0]["logprobs"]["content"]

    def ask(self, method: str, path: str, body: dict | None = None) -> dict | None:
        try:
            answer = self.http.request(method, path, json=body)
        except httpx2.TransportError:
            self.lost += 1
            time.sleep(0.2)
            return None
        self.statuses[answer.status_code] += 1
        if answer.status_code in (429, 503):
            self.rude += "retry-after" not in answer.headers
            time.sleep(int(answer.headers.get("retry-after", 1)))
        return answer.json() if answer.status_code < 400 else None


def texts(answer: list[dict]) -> str:
    """Each token with those that were nearly as likely."""
    said = []
    for score in answer:
        near = [s for s in score["top_logprobs"] if s["token"] != score["token"]]
        near = [f"{s['token']!r} {s['logprob'] - score['logprob']:.2f}" for s in near[:2]]
        said.append(f"{score['token']!r} ({', '.join(near)})")
    return " ".join(said)


def differ(first: list[dict], second: list[dict]) -> bool:
    """Whether two answers have other tokens."""
    return [score["token"] for score in first] != [score["token"] for score in second]


def gap(first: list[dict], second: list[dict], end: str) -> float:
    """Nats by which the first token in which two answers differ was likelier than the other one.

    Where one answer ends, its token there is `end`, which is not among its tokens. Infinite where the other
    one is none of the likeliest `TOP`.
    """
    ended = {"token": end, "top_logprobs": []}
    for one, other in zip_longest(first, second, fillvalue=ended):
        if one["token"] != other["token"]:
            one, other = (one, other) if one is not ended else (other, one)
            likely = {score["token"]: score["logprob"] for score in one["top_logprobs"]}
            return one["logprob"] - likely.get(other["token"], -math.inf)
    return 0.0


def is_another(first: list[dict], second: list[dict], end: str, tie: float) -> bool:
    """Whether two answers differ in more than ties."""
    return differ(first, second) and gap(first, second, end) >= tie


def mean(values: Sequence[int]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


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
