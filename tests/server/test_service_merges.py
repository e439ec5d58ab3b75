"""Merges over HTTP: adapters by name in, one adapter with its parents and its verdict out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from tests.server.test_service_jobs import ended

EXAMPLES = [{"input": f"number {i}", "output": f"{i}"} for i in range(8)]
TASK = {"name": "numbers", "definition": "Say the number.", "examples": EXAMPLES}


@pytest.fixture
def parents(as_ada: httpx2.Client, make_loud: Callable[[int], bytes]) -> Iterator[list[str]]:
    names = ["one", "two"]
    for seed, name in enumerate(names):
        sent: Any = {"data": {"name": name}, "files": {"file": ("x.zip", make_loud(seed))}}
        assert as_ada.post("/v1/adapters/import", **sent).status_code == 201
    yield names
    for name in names:
        as_ada.delete(f"/v1/adapters/{name}")


def test_a_job_merges_adapters_and_keeps_its_parents_and_verdict(
    running: Any, as_ada: httpx2.Client, parents: list[str]
) -> None:
    body = {
        "name": "both",
        "parents": parents,
        "method": "ties",
        "start": "one",
        "parameters": {"density": 0.5, "normalize": False},
    }
    answer = as_ada.post("/v1/jobs/merge", json={**body, "tasks": [TASK], "rank": 4})
    assert answer.status_code == 202, answer.text
    job = ended(as_ada, answer.json()["id"])
    assert (job["state"], job["step"], job["steps"]) == ("succeeded", 1, 1), job["error"]
    kept = as_ada.get("/v1/adapters/both").json()
    assert kept["rank"] == 4 and kept["card"]["generator"] == "merging"
    assert set(kept["card"]["parents"]) == set(parents)
    assert all(len(sha) == 64 for sha in kept["card"]["parents"].values())
    assert kept["card"]["start_sha256"] == kept["card"]["parents"]["one"]
    assert {"truncation_error", "retention", "optimism", "kept_numbers"} <= set(kept["scores"])
    for said in ("one file keeps", "route: keeps ", " bytes; ", "Optimism"):
        assert any(said in note for note in kept["card"]["notes"]), said
    as_ada.delete("/v1/adapters/both")
    assert not list((running.service.registry.root / "jobs").iterdir())


def test_what_cannot_be_merged_is_refused_before_a_job_is_taken_on(
    running: Any, as_ada: httpx2.Client, parents: list[str]
) -> None:
    good, jobs = {"name": "both", "parents": parents}, as_ada.get("/v1/jobs").json()["data"]
    inputs = {name: [f"text {i}" for i in range(9)] for name in parents}
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"parents": ["one"]}, 400, "parents"),
        ({"parents": ["one", "one"]}, 400, "named twice"),
        ({"parents": ["one", "nobody"]}, 404, "nobody"),
        ({"parents": ["one", "two@9"]}, 404, "version 9"),
        ({"parents": ["one", "two@x"]}, 400, "NAME@VERSION"),
        ({"start": "nobody"}, 404, "nobody"),
        ({"method": "magic"}, 400, "no merge method"),
        ({"method": "ties", "parameters": {"density": 2}}, 400, "density 2"),
        ({"weights": [1, -1]}, 400, "sum to 0"),
        ({"weights": [1]}, 400, "1 weights for 2"),
        ({"method": "regmean"}, 400, "regmean"),
        ({"inputs": inputs}, 400, "least is 16"),
        ({"evolve": True}, 400, "tasks"),
        ({"evolve": True, "tasks": [TASK], "weights": [1, 2]}, 400, "no weights"),
        ({"evolve": True, "tasks": [TASK], "method": "slerp"}, 400, "moves no weights of slerp"),
        ({"evolve": True, "tasks": [TASK], "inputs": inputs}, 400, "least is 16"),
        ({"minutes": 5}, 400, "minutes 5 are of a search"),
        ({"evolve": True, "tasks": [TASK], "minutes": 0}, 400, "minutes"),
        ({"rank": 1000}, 400, "rank 1000"),
        ({"name": "../x"}, 400, "name"),
        ({"tasks": [{**TASK, "name": "../x"}]}, 400, "name"),
        ({"tasks": [{**TASK, "examples": EXAMPLES[:3]}]}, 400, "examples"),
        ({"budget": 3}, 400, "budget"),
    ]
    for change, status, said in cases:
        answer = as_ada.post("/v1/jobs/merge", json={**good, **change})
        assert answer.status_code == status and said in answer.text, (change, answer.status_code, answer.text)
    eve = {"Authorization": f"Bearer {running.eve}"}
    assert as_ada.post("/v1/jobs/merge", json=good, headers=eve).status_code == 404  # ada's are private
    assert as_ada.get("/v1/jobs").json()["data"] == jobs


def test_a_search_keeps_every_trade_off_under_a_name(
    running: Any, as_ada: httpx2.Client, parents: list[str]
) -> None:
    form = {"name": "skill", "definition": "Say the number.", "steps": "30", "rank": "2"}
    others = [{"input": f"number {i}", "output": f"{i}"} for i in range(10, 90)]
    lines = "\n".join(json.dumps(example) for example in others)
    trained = as_ada.post("/v1/jobs", data=form, files={"file": ("x.jsonl", lines)}).json()
    assert ended(as_ada, trained["id"])["state"] == "succeeded"
    body = {"name": "found", "parents": ["skill", "one"], "evolve": True, "tasks": [TASK]}
    asked = {parent: [f"number {i} for {parent}" for i in range(16)] for parent in body["parents"]}
    limits = {"generations": 2, "minutes": 60}
    answer = as_ada.post("/v1/jobs/merge", json={**body, **limits, "inputs": asked})
    assert answer.status_code == 202, answer.text
    job = ended(as_ada, answer.json()["id"])
    assert (job["state"], job["step"], job["steps"]) == ("succeeded", 2, 2), job["error"]
    names = {a["name"] for a in as_ada.get("/v1/adapters", params={"search": "found"}).json()["data"]}
    assert names == {"found", "found.numbers", "found.balanced"}
    card = as_ada.get("/v1/adapters/found").json()["card"]
    assert any("Merged by regmean" in note for note in card["notes"])
    prompt = {"model": "found.numbers", "prompt": "x", "max_tokens": 2}
    assert as_ada.post("/v1/completions", json=prompt).status_code == 200
    for name in (*names, "skill"):
        as_ada.delete(f"/v1/adapters/{name}")
