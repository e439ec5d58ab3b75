"""Half a minute of two owners at once: adapters come, are used and go; no answer is another adapter's."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2
import psutil
import pytest

SECONDS, THREADS, SEEDS = 30.0, 3, 4  # threads are of one owner
GROWTH_BYTES = 64 * 2**20  # of the process after the warm-up: a tenth of what it has
BUSY = (429, 503)
REQUESTS = ("Say something.", "What is it?", "0123456789 " * 8)


@dataclass
class Owner:
    """What one owner has, and what of it is going."""

    key: str
    kept: dict[str, int | None] = field(default_factory=dict)  # name -> seed; None where it was generated
    leaving: set[str] = field(default_factory=set)


class Client(threading.Thread):
    """One thread of an owner; `wrong` says what should not have been."""

    def __init__(self, test: Soak, owner: Owner, others: Owner, number: int) -> None:
        super().__init__()
        self.test, self.owner, self.others = test, owner, others
        self.number, self.random = number, random.Random(number)
        self.statuses: Counter[int] = Counter()
        self.compared = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        headers = {"Authorization": f"Bearer {self.owner.key}"}
        try:
            with httpx2.Client(base_url=self.test.url, headers=headers, timeout=120) as self.http:
                made = 0
                while time.monotonic() < self.test.until and not self.wrong:
                    made += 1
                    self.round(f"a{self.number}-{made}")
        except Exception as error:
            self.wrong.append(f"{type(error).__name__}: {error}")

    def round(self, name: str) -> None:
        seed = self.random.choice([*range(SEEDS), None])
        self.make(name, seed)
        self.owner.kept[name] = seed
        for _ in range(3):
            chosen = self.random.choice(list(self.owner.kept))  # another thread may be deleting it
            self.check(chosen, self.owner.kept.get(chosen))
        if theirs := list(self.others.kept):
            answer = self.chat(self.random.choice(theirs), REQUESTS[0])
            self.expect(answer.status_code == 404, f"another owner's adapter: {answer.status_code}")
        self.owner.leaving.add(name)
        self.owner.kept.pop(name)
        self.expect(self.send("DELETE", f"/v1/adapters/{name}").status_code == 200, f"{name} is not deleted")
        gone = self.chat(name, REQUESTS[0]).status_code
        self.expect(gone == 404, f"{name} was deleted, and answers {gone}")

    def make(self, name: str, seed: int | None) -> None:
        if seed is None:
            new = {"name": name, "description": f"Write the plural of noun number {self.number}."}
            answer = self.send("POST", "/v1/adapters", json=new)
        else:
            files = {"file": ("x.zip", self.test.make_loud(seed))}
            answer = self.send("POST", "/v1/adapters/import", data={"name": name}, files=files)
        self.expect(answer.status_code == 201, f"{name} is not made: {answer.text[:200]}")

    def check(self, name: str, seed: int | None) -> None:
        request = self.random.choice(REQUESTS)
        answer = self.chat(name, request)
        if answer.status_code == 404 and name in self.owner.leaving:
            return
        self.expect(answer.status_code == 200, f"{name}: {answer.status_code} {answer.text[:200]}")
        if answer.status_code == 200 and name not in self.owner.leaving:
            said = answer.json()["choices"][0]["message"]["content"]
            self.expect(said == self.test.alone[seed, request], f"{name} of seed {seed} said {said!r}")
            self.compared += 1

    def chat(self, model: str, request: str) -> httpx2.Response:
        return self.send("POST", "/v1/chat/completions", json=greedy(model, request))

    def send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """One request, sent again while there is no place for it."""
        while True:
            answer = self.http.request(method, path, **options)
            self.statuses[answer.status_code] += 1
            if answer.status_code not in BUSY:
                return answer
            self.expect(int(answer.headers.get("retry-after", 0)) >= 1, "no Retry-After")
            time.sleep(0.02)

    def expect(self, fact: bool, what: str) -> None:
        if not fact:
            self.wrong.append(what)


@dataclass(frozen=True)
class Soak:
    """What all clients know."""

    url: str
    make_loud: Callable[[int], bytes]
    alone: dict[tuple[int | None, str], str]
    until: float


def greedy(model: str, request: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": request}]
    return {"model": model, "messages": messages, "max_tokens": 8, "temperature": 0}


def answers_alone(running: Any, make_loud: Callable[[int], bytes]) -> dict[tuple[int | None, str], str]:
    """(seed, request) -> answer, with nobody else there."""
    alone = {}
    headers = {"Authorization": f"Bearer {running.ada}"}
    with httpx2.Client(base_url=running.url, headers=headers, timeout=120) as http:
        for seed in (None, *range(SEEDS)):
            model = running.model if seed is None else f"alone-{seed}"
            if seed is not None:
                files = {"file": ("x.zip", make_loud(seed))}
                http.post("/v1/adapters/import", data={"name": model}, files=files).raise_for_status()
            for request in REQUESTS:
                answer = http.post("/v1/chat/completions", json=greedy(model, request)).raise_for_status()
                alone[seed, request] = answer.json()["choices"][0]["message"]["content"]
    for request in REQUESTS:
        assert len({alone[seed, request] for seed in (None, *range(SEEDS))}) == SEEDS + 1
    return alone


@pytest.mark.slow
def test_under_mixed_load_every_answer_is_its_own_adapters(
    serve: Any, make_loud: Callable[[int], bytes]
) -> None:
    limits = {"requests_per_minute": 10**6, "tokens_per_minute": 10**9}
    narrow = {"max_running": 3, "max_waiting": 1, "max_open_a_key": 2, "cache_bytes": 20_000}
    memory, process = [], psutil.Process()
    with serve(dtype="float32", **limits, **narrow) as running:
        alone = answers_alone(running, make_loud)
        test = Soak(running.url, make_loud, alone, time.monotonic() + SECONDS)
        ada, eve = Owner(running.ada), Owner(running.eve)
        pairs = ((ada, eve), (eve, ada))
        clients = [Client(test, *pairs[number % 2], number) for number in range(2 * THREADS)]
        for client in clients:
            client.start()
        while any(client.is_alive() for client in clients):
            memory.append(process.memory_info().rss)
            time.sleep(0.1)
        for client in clients:
            client.join()
        state = running.service.runner.state()
    statuses = sum((client.statuses for client in clients), Counter())
    print(f"{dict(statuses)}, {sum(c.compared for c in clients)} compared, {state.adapters}")
    assert [fault for client in clients for fault in client.wrong] == []
    assert set(statuses) == {200, 201, 404, *BUSY}, statuses
    assert all(client.compared >= 3 for client in clients) and state.adapters.evictions
    assert (state.running, state.waiting, state.reading) == (0, 0, 0)
    assert sorted(ada.kept) == sorted(eve.kept) == []
    fifth = len(memory) // 5
    after_warm_up, last = memory[2 * fifth : 3 * fifth], memory[-fifth:]
    grown = sum(last) / len(last) - sum(after_warm_up) / len(after_warm_up)
    print(f"{grown / 2**20:.1f} MB more")
    assert grown < GROWTH_BYTES, f"{grown / 2**20:.0f} MB more than after the warm-up"
