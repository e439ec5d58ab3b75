"""Libraries over HTTP: learnt by jobs, asked by name, rolled back, forgotten; each owner's own."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from shoal.library.store import Store
from shoal.server.job_folders import owner_folder
from tests.fixtures.library import learn as learn_skill
from tests.fixtures.library import new_library, sentence, sharp_backbone, solved
from tests.server.test_service_jobs import ended

LABELS = ["lo", "no"]


def lesson(name: str, answers: list[str], **changes: Any) -> dict[str, Any]:
    """The body of a job that learns a skill with these answers in turn."""
    examples = [{"input": e.input, "output": answers[i % len(answers)]} for i, e in enumerate(solved(name))]
    return {
        "library": "skills",
        "name": name,
        "description": sentence(name),
        "examples": examples,
        **changes,
    }


def learn(http: httpx2.Client, body: dict[str, Any]) -> dict[str, Any]:
    answer = http.post("/v1/jobs/learn", json=body)
    assert answer.status_code == 202, answer.text
    return ended(http, answer.json()["id"])


def ask(http: httpx2.Client, text: str, **choice: Any) -> httpx2.Response:
    body = {"model": "skills", "messages": [{"role": "user", "content": text}], "max_tokens": 4, **choice}
    return http.post("/v1/chat/completions", json=body)


def test_a_library_is_learnt_asked_and_undone_by_its_owner_alone(running: Any, as_ada: httpx2.Client) -> None:
    job = learn(as_ada, lesson("lower", LABELS, labels=LABELS))
    assert (job["state"], job["adapter"], job["step"]) == ("succeeded", "skills/lower", 1), job["error"]

    (brief,) = as_ada.get("/v1/libraries").json()["data"]
    assert (brief["name"], brief["version"], brief["skills"]) == ("skills", 2, ["lower"])
    shown = as_ada.get("/v1/libraries/skills").json()
    assert [(row["skill"], row["labels"]) for row in shown["skills"]] == [("lower", LABELS)]
    assert [step["kind"] for step in shown["versions"]] == ["create", "learn"]
    assert shown["history"]["skills"] == ["lower"] and len(shown["history"]["matrix"]) == 1
    assert "skills" in [model["id"] for model in as_ada.get("/v1/models").json()["data"]]

    for choice in ({"skill": "lower"}, {"describe": sentence("lower")}):
        named = ask(as_ada, "qqrr", adapter=choice).json()
        assert (named["adapter"]["library"], named["adapter"]["skill"]) == ("skills", "lower")
        assert named["choices"][0]["message"]["content"] in LABELS
        assert set(named["adapter"]["labels"]) == set(LABELS)
    routed = ask(as_ada, "What is it?").json()["adapter"]
    assert routed["skill"] in ("lower", "none") and 0 < routed["probability"] <= 1
    several = {"model": "skills", "prompt": ["one", "two"], "max_tokens": 2}
    assert "chooses for one prompt" in as_ada.post("/v1/completions", json=several).text

    with running.http(running.eve) as eve:
        assert eve.get("/v1/libraries").json()["data"] == []
        for answer in (
            eve.get("/v1/libraries/skills"),
            eve.delete("/v1/libraries/skills"),
            eve.post("/v1/libraries/skills/rollback", json={"version": 1}),
            eve.post("/v1/jobs/forget", json={"library": "skills", "name": "lower"}),
            ask(eve, "0011"),
        ):
            assert answer.status_code == 404, answer.text

    rollback = "/v1/libraries/skills/rollback"
    assert as_ada.post(rollback, json={"version": 1}).json()["skills"] == []
    assert ask(as_ada, "qqrr", adapter={"skill": "lower"}).status_code == 400
    assert as_ada.post(rollback, json={"version": 2}).json()["version"] == 4
    forgotten = as_ada.post("/v1/jobs/forget", json={"library": "skills", "name": "lower"}).json()
    assert ended(as_ada, forgotten["id"])["state"] == "succeeded"
    answer = ask(as_ada, "0011").json()
    assert answer["adapter"]["skill"] == "none" and answer["adapter"]["version"] == 5
    assert as_ada.delete("/v1/libraries/skills").json()["deleted"]
    assert ask(as_ada, "0011").status_code == 404


def test_a_step_that_is_cancelled_leaves_no_library(running: Any, as_ada: httpx2.Client) -> None:
    job = as_ada.post("/v1/jobs/learn", json=lesson("digits", ["di"])).json()
    assert as_ada.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelled"
    assert ended(as_ada, job["id"])["state"] == "cancelled"
    assert as_ada.get("/v1/libraries").json()["data"] == []


@pytest.mark.slow  # a job is a process, which imports everything
def test_a_learning_that_is_killed_leaves_the_library_as_it_was(
    running: Any, as_ada: httpx2.Client, tiny_llama: Path
) -> None:
    folder = owner_folder(running.service.registry.root, "ada") / "skills"
    folder.parent.mkdir(parents=True, exist_ok=True)
    learn_skill(new_library(folder, sharp_backbone(tiny_llama)), "digits")
    before = Store(folder).current()
    examples = [{"input": f"word {i}", "output": "yes" if i % 2 else "no"} for i in range(200)]
    job = as_ada.post("/v1/jobs/learn", json=lesson("lower", ["lo"], examples=examples)).json()
    until = time.monotonic() + 120
    while not any((folder / "staging").glob("*")):  # as long as it trains
        assert time.monotonic() < until, as_ada.get(f"/v1/jobs/{job['id']}").text
        time.sleep(0.002)
    children = psutil.Process().children(recursive=True)
    (learning,) = [process for process in children if "shoal.apps.cli.child" in process.cmdline()]
    learning.kill()
    assert ended(as_ada, job["id"])["state"] == "failed"
    store = Store(folder)
    assert store.versions()[-1] == before
    store.skill("digits", before.skills["digits"]).check_files()
    with store.writing():
        assert [path.name for path in (folder / "skills").iterdir()] == ["digits"]
    shown = as_ada.get("/v1/libraries/skills").json()
    assert [row["skill"] for row in shown["skills"]] == ["digits"]
    assert as_ada.delete("/v1/libraries/skills").json()["deleted"]


def test_what_cannot_be_learnt_is_refused_before_a_job_is_taken_on(
    running: Any, as_ada: httpx2.Client, make_loud: Callable[[int], bytes]
) -> None:
    sent: Any = {"data": {"name": "taken"}, "files": {"file": ("x.zip", make_loud(0))}}
    assert as_ada.post("/v1/adapters/import", **sent).status_code == 201
    good, jobs = lesson("digits", ["di"]), as_ada.get("/v1/jobs").json()["data"]
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"examples": good["examples"][:7]}, 400, "examples"),
        ({"examples": good["examples"][:1] * 8}, 400, "1 different inputs"),
        ({"name": "none"}, 400, "the name of no skill"),
        ({"library": "../x"}, 400, "no adapter name"),
        ({"library": "taken"}, 409, "the name of an adapter"),
        ({"labels": ["a", "b"]}, 400, "none of the 2 labels"),
        ({"labels": ["di", "a,b"]}, 400, "holds a comma"),
        ({"keep": 65}, 400, "keep"),
        ({"steps": 3}, 400, "steps"),
    ]
    for change, status, said in cases:
        answer = as_ada.post("/v1/jobs/learn", json={**good, **change})
        assert answer.status_code == status and said in answer.text, (change, answer.status_code, answer.text)
    assert as_ada.post("/v1/jobs/forget", json={"library": "nothing", "name": "digits"}).status_code == 404
    assert as_ada.get("/v1/jobs").json()["data"] == jobs
