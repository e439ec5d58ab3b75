"""The name of a job is its own until it ends: whoever asks for it meanwhile is refused, by every way in."""

from __future__ import annotations

import io
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from shoal.errors import ConflictError
from shoal.registry.holds import LOST_SECONDS
from shoal.registry.schema import JOBS
from shoal.server.jobs import Job
from shoal.server.service import Service
from tests.fixtures.service import FREELY, is_error, small, wait_until
from tests.registry.test_registry import fresh_database
from tests.server.test_service_names import EXAMPLES, WAYS

ENDED = ("succeeded", "failed", "cancelled")


@dataclass
class Held:
    """A service whose jobs train until they are let go, then give an adapter."""

    service: Service
    ada: TestClient
    eve: TestClient
    zipped: bytes
    go: threading.Event

    def submit(self, name: str, owner: str) -> Job:
        return self.service.jobs.submit(
            name, "Write the next number.", EXAMPLES.encode(), owner, steps=1, rank=1
        )

    def upload(self, name: str, owner: str) -> int:
        return self.service.adapters.upload(name, io.BytesIO(self.zipped), owner, public=False).version

    def end(self, job: Job) -> Job:
        wait_until(lambda: self.service.jobs.get(job.id, None).state in ENDED, 60)
        return self.service.jobs.get(job.id, None)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def opened(
    request: pytest.FixtureRequest,
    tiny_llama: Path,
    tmp_path_factory: pytest.TempPathFactory,
    make_loud: Callable[[int], bytes],
) -> Iterator[Held]:
    url = None
    if request.param == "postgresql":
        url = fresh_database(request.getfixturevalue("postgresql"), "held")
    limits = {**FREELY, "max_jobs": 100, "max_jobs_a_key": 50}
    service, ada = small(tiny_llama, tmp_path_factory.mktemp("held"), url, **limits)
    eve = TestClient(
        ada.app,
        headers={"Authorization": f"Bearer {service.keys.create('eve')}"},
        raise_server_exceptions=False,
    )
    held = Held(service, ada, eve, make_loud(1), threading.Event())

    def train(identity: str, folder: Path) -> None:
        wait_until(held.go.is_set, 60)
        with zipfile.ZipFile(io.BytesIO(held.zipped)) as archive:
            archive.extractall(folder / "adapter")
        service.jobs._finish(identity, folder)

    service.jobs._train = train  # type: ignore[method-assign]
    yield held
    held.go.set()
    service.close()


@pytest.fixture
def held(opened: Held) -> Iterator[Held]:
    opened.go.clear()
    yield opened
    opened.go.set()
    for job in opened.service.jobs.page(None):
        opened.end(job)


@pytest.mark.parametrize("way", WAYS)
def test_the_name_of_a_job_is_refused_to_its_owner_and_in_no_other_words_than_a_taken_one_to_others(
    way: str, held: Held
) -> None:
    held.upload(f"kept-{way}", "ada")
    job = held.submit(f"held-{way}", "ada")
    own = held.ada.post(**WAYS[way](job.adapter, held.zipped))
    assert is_error(own, 409) and job.id in own.text and "cancel" in own.text, own.text
    said = set()
    for name in (job.adapter, f"kept-{way}"):
        answer = held.eve.post(**WAYS[way](name, held.zipped))
        assert is_error(answer, 409), answer.text
        said.add(answer.text.replace(name, "NAME"))
    assert len(said) == 1
    held.go.set()
    assert held.end(job).state == "succeeded"
    assert held.ada.get(f"/v1/adapters/{job.adapter}").json()["version"] == 1


def test_the_name_of_a_job_is_refused_to_a_merge_and_that_of_a_merge_to_a_job(held: Held) -> None:
    parents = ["parent-a", "parent-b"]
    for name in parents:
        held.upload(name, "ada")
    job, jobs = held.submit("held-by-training", "ada"), len(held.service.jobs.page(None))
    refused = held.ada.post("/v1/jobs/merge", json={"name": job.adapter, "parents": parents})
    assert is_error(refused, 409) and job.id in refused.text, refused.text
    assert len(held.service.jobs.page(None)) == jobs
    merge = held.ada.post("/v1/jobs/merge", json={"name": "held-by-merge", "parents": parents})
    assert merge.status_code == 202, merge.text
    with pytest.raises(ConflictError, match=merge.json()["id"]):  # it waits behind the training
        held.submit("held-by-merge", "ada")


def test_the_name_of_a_cancelled_job_is_free(held: Held) -> None:
    held.service.jobs.cancel(held.submit("freed", "ada").id, "ada")
    assert held.upload("freed", "eve") == 1


def test_a_job_that_was_cancelled_at_its_very_end_keeps_nothing(held: Held) -> None:
    job = held.submit("late", "ada")
    held.service.jobs.cancel(job.id, "ada")
    with pytest.raises(ConflictError, match="is cancelled; its adapter 'late' is not kept"):
        held.service.registry.check("late", "ada", job=job.id)


def test_a_job_without_a_sign_of_life_holds_nothing_and_replaces_no_newer_one(held: Held) -> None:
    slept = held.submit("slept", "ada")
    wait_until(lambda: held.service.jobs.get(slept.id, "ada").state == "running", 60)
    with held.service.registry.database.writing() as connection:
        old = slept.updated - 2 * LOST_SECONDS
        connection.execute(update(JOBS).where(JOBS.c.id == slept.id).values(updated=old))
    newer = held.submit("slept", "ada")
    held.go.set()
    assert (held.end(slept).state, held.end(newer).state) == ("failed", "succeeded")
    assert f"job {newer.id} makes" in str(held.end(slept).error)
    assert held.service.registry.get("slept", "ada").version == 1


@pytest.mark.parametrize("owner", ["ada", "eve"])
def test_an_upload_that_a_job_came_before_is_refused_at_its_end(
    owner: str, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, name, jobs = held.service.registry._files, f"between-{owner}", []
    write = files.write

    def slowly(save: Callable[[Path], None]) -> object:
        content = write(save)
        jobs.append(held.submit(name, "ada"))
        return content

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", slowly)
        with pytest.raises(ConflictError):
            held.upload(name, owner)
    held.go.set()
    assert [held.end(job).state for job in jobs] == ["succeeded"]
    assert held.service.registry.get(name, None).owner == "ada"


def test_of_jobs_and_uploads_that_come_at_once_one_owner_and_one_job_get_a_name(held: Held) -> None:
    for attempt in range(4):
        name, start = f"race-{attempt}", threading.Barrier(12)

        def ask(number: int, name: str = name, start: threading.Barrier = start) -> tuple[str, str] | None:
            owner, way = ("ada", "eve")[number % 2], ("job", "upload")[number // 2 % 2]
            start.wait(60)
            with suppress(ConflictError):
                (held.submit if way == "job" else held.upload)(name, owner)
                return owner, way
            return None

        with ThreadPoolExecutor(12) as pool:
            accepted = Counter(filter(None, pool.map(ask, range(12))))
        assert len({owner for owner, _ in accepted}) == 1
        jobs = sum(number for (_, way), number in accepted.items() if way == "job")
        assert jobs <= 1
        held.go.set()
        for job in held.service.jobs.page(None):
            assert held.end(job).adapter != name or held.end(job).state == "succeeded"
        held.go.clear()
        assert held.service.registry.get(name, None).version == sum(accepted.values())
