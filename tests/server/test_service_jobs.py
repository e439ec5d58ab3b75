"""Trainings over HTTP: uploaded examples in, an adapter out, cancelled where asked."""

from __future__ import annotations

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2

from shoal.apps.cli.settings import read_settings
from tests.fixtures.service import FREELY, wait_until


def ended(http: httpx2.Client, identity: str) -> dict[str, Any]:
    """A job after it has ended; the limit is for machines that do much else."""
    path = f"/v1/jobs/{identity}"
    wait_until(lambda: http.get(path).json()["state"] not in ("queued", "running"), 900)
    job: dict[str, Any] = http.get(path).json()
    return job


def test_a_job_trains_an_adapter(running: Any, as_ada: httpx2.Client) -> None:
    lines = "\n".join(json.dumps({"input": f"{i}", "output": f"{i + 1}"}) for i in range(40))
    form = {"name": "next", "definition": "Write the next number \U0001f41f.", "steps": "2", "rank": "2"}
    job = as_ada.post("/v1/jobs", data=form, files={"file": ("x.jsonl", lines)}).json()
    assert job["state"] == "queued", job
    waiting = as_ada.post(
        "/v1/jobs", data={**form, "name": "other"}, files={"file": ("x.jsonl", lines)}
    ).json()
    settings = running.service.registry.root / "jobs" / waiting["id"] / "settings.json"
    assert json.loads(settings.read_text())["test_size"] == 0  # all that was uploaded is trained on
    cancelled = as_ada.post(f"/v1/jobs/{waiting['id']}/cancel").json()
    assert cancelled["state"] == "cancelled"
    assert as_ada.post(f"/v1/jobs/{waiting['id']}/cancel").status_code == 409
    job = ended(as_ada, job["id"])
    assert (job["state"], job["step"], job["steps"]) == ("succeeded", 2, 2), job["error"]
    assert as_ada.get("/v1/adapters/next").json()["card"]["generator"] == "lora training"
    assert as_ada.get("/v1/adapters/other").status_code == 404
    as_ada.delete("/v1/adapters/next")
    eve = {"Authorization": f"Bearer {running.eve}"}
    assert as_ada.get(f"/v1/jobs/{job['id']}", headers=eve).status_code == 404
    for name, content in (("../x", lines), ("x", "no json"), ("x", '{"input": "a"}'), ("x", "")):
        bad = as_ada.post("/v1/jobs", data={**form, "name": name}, files={"file": ("x.jsonl", content)})
        assert bad.status_code == 400, bad.text
    assert not list((running.service.registry.root / "jobs").iterdir())


def test_a_running_job_is_cancelled(running: Any, as_ada: httpx2.Client) -> None:
    lines = "\n".join(json.dumps({"input": f"{i}", "output": f"{i + 1}"}) for i in range(40))
    form = {"name": "long", "definition": "Write the next number.", "steps": "2000"}
    job = as_ada.post("/v1/jobs", data=form, files={"file": ("x.jsonl", lines)}).json()
    wait_until(lambda: as_ada.get(f"/v1/jobs/{job['id']}").json()["step"] >= 1, 60)
    assert as_ada.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelled"
    wait_until(lambda: not list((running.service.registry.root / "jobs").iterdir()), 60)
    assert as_ada.get("/v1/adapters/long").status_code == 404


def test_a_limit_holds_for_jobs_that_come_at_once(serve: Any) -> None:
    lines = "\n".join(json.dumps({"input": f"{i}", "output": f"{i + 1}"}) for i in range(8))
    with serve(max_jobs=6, max_jobs_a_key=4, **FREELY) as running:
        running.service.jobs._train = lambda identity, folder: time.sleep(0.5)

        def ask(number: int) -> int:
            key = (running.ada, running.eve)[number % 2]
            form = {"name": f"n{number}", "definition": "Write the next number.", "steps": "2"}
            with running.http(key) as http:
                return http.post("/v1/jobs", data=form, files={"file": ("x.jsonl", lines)}).status_code

        with ThreadPoolExecutor(20) as pool:
            statuses = Counter(pool.map(ask, range(20)))
        assert statuses == {202: 6, 503: 14}
        owners = Counter(job.owner for job in running.service.jobs.page(None))
        assert max(owners.values()) <= 4


def test_any_text_of_a_definition_reaches_the_training(tmp_path: Path) -> None:
    definition = 'Emoji \U0001f41f, \u2028, \x85, \x7f, \u202e and \ufeff: "stay" # as: they\tare'
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"definition": definition}))
    assert read_settings(file) == {"definition": definition}
