"""Studies of settings over HTTP: searched by a job, shown with a verdict, and an adapter trained by it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest

from shoal.apps.cli import main as cli
from shoal.server.job_folders import read_command
from tests.fixtures.service import wait_until
from tests.server.test_service_jobs import ended

EXAMPLES = [{"input": f"number {i}", "output": f"{i}"} for i in range(18)]
STUDY: dict[str, Any] = {
    "name": "numbers",
    "definition": "Say the number.",
    "examples": EXAMPLES,
    "trials": 2,
    "steps": 1,
    "rank": 2,
    "nearest": False,
    "space": {"learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}},
}


@pytest.fixture
def go(running: Any, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Jobs run their commands in this process, which has loaded all that they need, once this is set."""
    jobs, go = running.service.jobs, threading.Event()

    def work(identity: str, folder: Path) -> None:
        assert go.wait(60)
        cli._app()(args=read_command(folder), prog_name="shoal", standalone_mode=False)
        jobs._finish(identity, folder)

    monkeypatch.setattr(jobs, "_train", work)
    return go


def test_a_job_finds_settings_and_another_trains_with_them(
    running: Any, as_ada: httpx2.Client, go: threading.Event
) -> None:
    answer = as_ada.post("/v1/jobs/tune", json=STUDY)
    assert answer.status_code == 202, answer.text
    assert as_ada.post("/v1/jobs/tune", json=STUDY).status_code == 409  # its job waits or runs
    assert as_ada.delete("/v1/studies/numbers").status_code == 409
    waiting = as_ada.get("/v1/studies/numbers").json()
    assert (waiting["verdict"], waiting["settings"]) == (None, None)
    early = as_ada.post("/v1/studies/numbers/train", json={"adapter": "tuned"})
    assert early.status_code == 409 and "no verdict yet" in early.text
    go.set()
    job = ended(as_ada, answer.json()["id"])
    assert (job["state"], job["step"], job["steps"]) == ("succeeded", 2, 2), job["error"]
    assert job["adapter"] == "study/numbers" and job["loss"] > 0

    assert [row["name"] for row in as_ada.get("/v1/studies").json()["data"]] == ["numbers"]
    study = as_ada.get("/v1/studies/numbers").json()
    assert [trial["origin"] for trial in study["trials"]] == ["defaults", "sampler"]
    assert all(trial["loss"] > 0 and trial["curve"] for trial in study["trials"])
    assert study["verdict"]["defaults_loss"] > 0 and study["verdict"]["tokens"] > 0
    assert study["settings"]["steps"] == 1 and study["definition"] == "Say the number."
    with running.http(running.eve) as eve:
        assert eve.get("/v1/studies").json()["data"] == []
        assert eve.get("/v1/studies/numbers").status_code == 404
        assert eve.post("/v1/studies/numbers/train", json={"adapter": "mine"}).status_code == 404
        assert eve.delete("/v1/studies/numbers").status_code == 404

    training = as_ada.post("/v1/studies/numbers/train", json={"adapter": "tuned"}).json()
    assert ended(as_ada, training["id"])["state"] == "succeeded"
    assert as_ada.get("/v1/adapters/tuned").json()["rank"] == 2
    other = as_ada.post("/v1/jobs/tune", json={**STUDY, "trials": 3})
    assert other.status_code == 409 and "of another request" in other.text
    assert as_ada.delete("/v1/studies/numbers").json()["deleted"]
    assert as_ada.get("/v1/studies/numbers").status_code == 404
    as_ada.delete("/v1/adapters/tuned")
    wait_until(lambda: not list((running.service.registry.root / "jobs").iterdir()), 60)


def test_limits_are_kept_and_the_front_of_two_aims_is_shown(
    running: Any, as_ada: httpx2.Client, go: threading.Event
) -> None:
    go.set()
    own = {"name": "small", "rank": None, "steps": 1, "trials": 4, "sampler": "random", "second": "bytes"}
    space = {"adapter_rank": [1, 2, 4, 16, 32]}
    limits = ["adapter_rank<=16", "bytes<=1e9"]
    answer = as_ada.post("/v1/jobs/tune", json={**STUDY, **own, "space": space, "limits": limits})
    assert answer.status_code == 202, answer.text
    assert (job := ended(as_ada, answer.json()["id"]))["state"] == "succeeded", job["error"]
    study = as_ada.get("/v1/studies/small").json()
    front = study["verdict"]["front"]
    assert front and all(row["settings"]["adapter_rank"] <= 16 and row["bytes"] > 0 for row in front)
    beyond = [trial for trial in study["trials"] if trial["settings"].get("adapter_rank") == 32]
    assert all(trial["why"] == "over adapter_rank<=16" and trial["tokens"] == 0 for trial in beyond)
    assert all(trial["second"] > 0 for trial in study["trials"] if trial["state"] == "complete")
    as_ada.delete("/v1/studies/small")


def test_what_cannot_be_tuned_is_refused_before_a_job_is_taken_on(
    running: Any, as_ada: httpx2.Client
) -> None:
    jobs = as_ada.get("/v1/jobs").json()["data"]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"trials": None}, "give minutes or trials"),
        ({"minutes": 0}, "minutes"),
        ({"examples": EXAMPLES[:15]}, "examples"),
        ({"examples": EXAMPLES[:1] * 16}, "1 different inputs, 16 are needed"),
        ({"name": "../x"}, "'../x': must be"),
        ({"steps": 10**6}, "steps 1000000 and rank 2 must be at most"),
        ({"steps": None, "space": {"steps": [1, 10**6]}}, "steps 1000000"),
        ({"rank": None, "space": {"adapter_rank": [4, 1000]}}, "rank 1000 must be at most"),
        ({"space": {}}, "0 fields"),
        ({"space": {"batch_size": [4, 8]}}, "batch_size, which the service does not search"),
        ({"space": {"steps": [1, 2]}}, "steps is 1 by its flag"),
        ({"space": {"learning_rate": {"low": 1, "high": 0.1}}}, "low 1 is above high 0.1"),
        ({"space": {"target_modules": [["no_proj"]]}}, "has no target module 'no_proj'"),
        ({"sampler": "magic"}, "sampler"),
        ({"pruner": "magic"}, "pruner"),
        ({"metric": "test"}, "metric"),
        ({"limits": ["bytes<10"]}, "limit bytes<10: write NAME<=NUMBER"),
        ({"limits": ["tokens<=10"]}, "tokens has no limit; choose from bytes"),
        ({"limits": ["adapter_rank<=1"]}, "the defaults break the limit adapter_rank<=1: theirs is 2"),
        ({"limits": ["bytes<=1"] * 17}, "limits"),
        ({"second": "loss"}, "second"),
        ({"second": "bytes", "pruner": "median"}, "pruner median compares one aim"),
        ({"budget": 3}, "budget"),
    ]
    for change, said in cases:
        answer = as_ada.post("/v1/jobs/tune", json={**STUDY, **change})
        assert answer.status_code == 400 and said in answer.text, (change, answer.status_code, answer.text)
    assert as_ada.get("/v1/jobs").json()["data"] == jobs
    assert as_ada.get("/v1/studies").json()["data"] == []
    assert as_ada.get("/v1/studies/numbers").status_code == 404
