"""What one owner may have, what all may have at once, and what one owner sees of another: over HTTP."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from shoal.config import ServiceConfig
from shoal.registry.registry import Registry
from shoal.server.app import create_app
from shoal.server.service import open_service

LINES = b'{"input": "one", "output": "two"}\n' * 8
TEXT = "Write the plural of the given noun."
Start = Callable[..., Any]


@pytest.fixture
def start(tiny_llama: Path, tmp_path: Path) -> Start:
    """Opens a service with limits of its own, and gives a client of ada's and one of eve's."""

    @contextmanager
    def started(**limits: float) -> Iterator[tuple[TestClient, TestClient]]:
        service = open_service(Registry(tmp_path / "r"), str(tiny_llama), ServiceConfig(**limits))
        app = create_app(service)
        keys = [{"Authorization": f"Bearer {service.keys.create(owner)}"} for owner in ("ada", "eve")]
        ada, eve = (TestClient(app, headers=key, raise_server_exceptions=False) for key in keys)
        try:
            yield ada, eve
        finally:
            service.close()

    return started


def post_job(http: TestClient, name: str, content: bytes = LINES, **more: str) -> httpx2.Response:
    form = {"name": name, "definition": "Write the next number.", **more}
    return http.post("/v1/jobs", data=form, files={"file": ("x.jsonl", content)})


def message(answer: httpx2.Response, status: int) -> str:
    """What an error says, if it has this status."""
    assert answer.status_code == status, answer.text
    assert status != 503 or int(answer.headers["retry-after"]) >= 1
    return str(answer.json()["error"]["message"])


def test_an_owner_keeps_so_many_adapters(start: Start) -> None:
    with start(max_adapters=2) as (ada, eve):
        new = [{"name": f"a{i}", "description": TEXT} for i in range(3)]
        said = message(ada.post("/v1/adapters/batch", json={"adapters": new}), 409)
        assert (
            "3 more are above the limit of 2" in said and ada.get("/v1/adapters").json()["data"] == []
        )  # all or none
        assert ada.post("/v1/adapters/batch", json={"adapters": new[:2]}).status_code == 201
        zipped = ada.get("/v1/adapters/a0/download").content
        refused = [
            ada.post("/v1/adapters", json=new[2]),
            ada.post("/v1/adapters", json=new[0]),  # another version
            ada.post("/v1/adapters/import", data={"name": "a2"}, files={"file": zipped}),
            post_job(ada, "a2"),
        ]
        for answer in refused:
            assert message(answer, 409) == "ada has 2 adapters, the limit is 2; delete some"
        assert ada.get("/v1/jobs").json()["data"] == []
        mine = {"name": "e", "description": TEXT}
        assert eve.post("/v1/adapters", json=mine).status_code == 201  # another's are not counted
        assert ada.delete("/v1/adapters/a0").status_code == 200
        assert ada.post("/v1/adapters", json=new[2]).status_code == 201


def test_so_many_jobs_wait_or_run(start: Start) -> None:
    with start(max_jobs=1) as (ada, eve):
        first = post_job(ada, "one", steps="2000")
        assert first.status_code == 202, first.text
        for http in (ada, eve):
            assert "the limit is 1" in message(post_job(http, "two"), 503)
        assert ada.post(f"/v1/jobs/{first.json()['id']}/cancel").json()["state"] == "cancelled"
        assert post_job(eve, "two").status_code == 202


def test_steps_and_rank_of_a_job_are_bounded(start: Start) -> None:
    with start(max_steps=5, max_rank=4) as (ada, _):
        for wrong in (
            {"steps": "6"},
            {"steps": "0"},
            {"steps": str(2**70)},
            {"steps": "x"},
            {"rank": "5"},
            {"rank": "0"},
            {"rank": str(2**70)},
        ):
            assert message(post_job(ada, "a", **{"steps": "5", "rank": "4", **wrong}), 400), wrong
        assert ada.get("/v1/jobs").json()["data"] == []
        assert post_job(ada, "a", steps="5", rank="4").status_code == 202


def test_so_many_requests_are_open_at_once(start: Start, tiny_llama: Path) -> None:
    with start(max_open=2, max_tokens=300) as (ada, eve):
        ask = {"model": str(tiny_llama), "prompt": "a", "max_tokens": 100}

        async def many() -> list[httpx2.Response]:
            transport = httpx2.ASGITransport(ada.app)
            async with httpx2.AsyncClient(transport=transport, base_url="http://x") as client:
                owners = [ada.headers, eve.headers] * 3
                return await asyncio.gather(
                    *(client.post("/v1/completions", json=ask, headers=owner) for owner in owners)
                )

        answers = asyncio.run(many())
        assert {a.status_code for a in answers} == {200, 503}
        for answer in answers:
            if answer.status_code == 503:
                assert "2 requests are open" in message(answer, 503)
        assert ada.get("/v1/models").status_code == 200  # their places are free again


def test_one_owner_sees_and_changes_nothing_of_anothers(start: Start, tiny_llama: Path) -> None:
    with start() as (ada, eve):
        assert ada.post("/v1/adapters", json={"name": "mine", "description": TEXT}).status_code == 201
        job = post_job(ada, "trained", steps="2000").json()["id"]

        def listed(http: TestClient, path: str) -> list[str]:
            return [each["id"] for each in http.get(path).json()["data"]]

        base = str(tiny_llama)
        assert listed(ada, "/v1/models") == [base, "mine"] and listed(eve, "/v1/models") == [base]
        assert listed(ada, "/v1/jobs") == [job] and listed(eve, "/v1/jobs") == []
        assert "does not exist" in message(eve.get("/v1/models/mine"), 404)
        change = {"public": True}
        for answer in (
            eve.patch("/v1/adapters/mine", json=change),
            eve.get(f"/v1/jobs/{job}"),
            eve.post(f"/v1/jobs/{job}/cancel"),
        ):
            assert "there is no" in message(answer, 404)
        assert ada.get("/v1/adapters/mine").json()["public"] is False
        assert ada.get(f"/v1/jobs/{job}").json()["state"] in ("queued", "running")
        assert ada.patch("/v1/adapters/mine", json=change).json()["public"] is True
        assert listed(eve, "/v1/models") == [base, "mine"]
        message(eve.patch("/v1/adapters/mine", json={"public": False}), 409)  # seen, and not changed
        assert ada.get("/v1/adapters/mine").json()["public"] is True


def test_a_range_of_a_download_is_not_worked_out(start: Start) -> None:
    """Ranges by the thousand in one header took minutes elsewhere (Starlette, CVE-2025-62727)."""
    with start() as (ada, _):
        assert ada.post("/v1/adapters", json={"name": "a", "description": TEXT}).status_code == 201
        whole = ada.get("/v1/adapters/a/download")
        for ranges in ("bytes=0-1", "bytes=" + ",".join(f"{i}-{i}" for i in range(1500))):
            answer = ada.get("/v1/adapters/a/download", headers={"Range": ranges})
            assert answer.status_code == 200 and answer.content == whole.content
            assert "content-range" not in answer.headers
        assert zipfile.ZipFile(io.BytesIO(whole.content)).testzip() is None


def test_fields_of_a_form_are_bounded(start: Start) -> None:
    """A field that is no file is kept in memory, whatever its size, elsewhere (Starlette, CVE-2024-47874)."""
    with start() as (ada, _):
        file = {"file": b"PK"}
        for path, field in (("/v1/adapters/import", "name"), ("/v1/jobs", "definition")):
            form = {"name": "a", "definition": "Copy."}
            large = ada.post(path, data={**form, field: "x" * 2**21}, files=file)
            assert "maximum size" in message(large, 400)
            many = ada.post(path, data={**form, **{f"f{i}": "" for i in range(1500)}}, files=file)
            assert "Too many fields" in message(many, 400)
            several = [("file", (f"{i}", b"PK")) for i in range(1500)]
            assert "Too many files" in message(ada.post(path, data=form, files=several), 400)
        assert ada.get("/v1/adapters").json()["data"] == [] and ada.get("/v1/jobs").json()["data"] == []
