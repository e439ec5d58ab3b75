"""What is lost, full, closed or damaged is an error body that says so, and the rest goes on."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy
from starlette.testclient import TestClient

from shoal.adapters.files import WEIGHTS_FILE
from shoal.config import EngineConfig
from shoal.errors import ShoalError
from shoal.inference.engine.records import Request
from shoal.registry.registry import Registry
from shoal.server.app import create_app
from shoal.server.service import Service, open_service
from tests.fixtures.service import ASK, is_error, small


def test_a_postgresql_that_is_lost_is_503_until_it_is_back(
    postgresql: str, tiny_llama: Path, tmp_path: Path
) -> None:
    url = sqlalchemy.make_url(postgresql).set(drivername="postgresql+psycopg")
    operator = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'lost'"
    with operator.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE lost")
        registry = Registry(tmp_path / "r", postgresql.replace("/postgres?", "/lost?"))
        service = open_service(registry, str(tiny_llama))
        headers = {"Authorization": f"Bearer {service.keys.create('ada')}"}
        http = TestClient(create_app(service), headers=headers, raise_server_exceptions=False)
        assert http.get("/v1/adapters").status_code == http.get("/ready").status_code == 200
        connection.exec_driver_sql("ALTER DATABASE lost ALLOW_CONNECTIONS false")
        connection.exec_driver_sql(end)
        for path in ("/v1/adapters", "/ready"):
            answer = http.get(path)
            assert answer.status_code == 503 and answer.headers["retry-after"] == "5", answer.text
            assert set(answer.json()) == {"error"}
        assert http.get("/health").status_code == 200
        connection.exec_driver_sql("ALTER DATABASE lost ALLOW_CONNECTIONS true")
        assert http.get("/v1/adapters").status_code == http.get("/ready").status_code == 200
        service.close()
    operator.dispose()


def test_a_full_engine_is_503(tiny_llama: Path, tmp_path: Path) -> None:
    service, http = small(tiny_llama, tmp_path / "r", max_running=1, max_waiting=1, max_open_a_key=4)

    async def many() -> list[httpx2.Response]:
        transport = httpx2.ASGITransport(http.app)
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://x", headers=http.headers
        ) as client:
            ask = {"model": service.base_names[0], **ASK, "max_tokens": 300}
            return await asyncio.gather(*(client.post("/v1/chat/completions", json=ask) for _ in range(8)))

    try:
        answers = asyncio.run(many())
        statuses = {a.status_code for a in answers}
        assert statuses == {200, 429, 503}, statuses
        for answer in answers:
            assert answer.status_code == 200 or int(answer.headers["retry-after"]) >= 1
    finally:
        service.close()


def test_a_lost_database_is_503(tiny_llama: Path, tmp_path: Path) -> None:
    service, http = small(tiny_llama, tmp_path / "r")
    for path in (tmp_path / "r").glob("registry.db*"):
        path.unlink()
    for answer in (http.get("/v1/adapters"), http.get("/ready")):
        assert is_error(answer, 503) and answer.headers["retry-after"] == "5"
    assert http.get("/health").status_code == 200
    service.close()


def test_a_closed_engine_is_not_ready(tiny_llama: Path, tmp_path: Path) -> None:
    service, http = small(tiny_llama, tmp_path / "r")
    assert http.get("/ready").status_code == 200
    service.runner.close()
    answer = http.get("/ready")
    assert is_error(answer, 503) and answer.headers["retry-after"] and http.get("/health").status_code == 200
    service.close()


@pytest.mark.filterwarnings("ignore:Exception in thread shoal-engine")
def test_an_engine_whose_thread_has_ended_is_not_ready(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, http = small(tiny_llama, tmp_path / "r")
    runner: Any = service.runner
    monkeypatch.setattr(runner._engine, "step", sys.exit)
    runner.submit(Request([1, 2]))
    runner._thread.join(20)
    answer = http.get("/ready")
    assert is_error(answer, 503) and "thread has ended" in answer.text and answer.headers["retry-after"]
    service.close()


def test_a_vllm_that_is_gone_is_not_ready(tiny_llama: Path, tmp_path: Path) -> None:
    served = [str(tiny_llama)]

    class Models(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"data": [{"id": name} for name in served]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *said: object) -> None:
            pass

    vllm = HTTPServer(("127.0.0.1", 0), Models)
    thread = threading.Thread(target=vllm.serve_forever)
    thread.start()
    engine = EngineConfig(engine="vllm", vllm_url=f"http://127.0.0.1:{vllm.server_port}")
    service = open_service(Registry(tmp_path / "r"), str(tiny_llama), engine=engine, open=True)
    http = TestClient(create_app(service), raise_server_exceptions=False)
    assert http.get("/ready").status_code == 200
    served[:] = ["another"]
    answer = http.get("/ready")
    assert is_error(answer, 503) and "serves another, not" in answer.text and answer.headers["retry-after"]
    vllm.shutdown()
    vllm.server_close()
    thread.join()
    answer = http.get("/ready")
    assert is_error(answer, 503) and answer.headers["retry-after"] and http.get("/health").status_code == 200
    service.close()


def test_what_a_killed_service_left_is_swept(tiny_llama: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "r")
    left = [tmp_path / "r" / "jobs" / ("0" * 32), tmp_path / "r" / "objects" / "00" / ("0" * 64)]
    left.append(tmp_path / "r" / "incoming" / "draft")
    for folder in left:
        folder.mkdir(parents=True)
        os.utime(folder, (0, 0))
    open_service(registry, str(tiny_llama)).close()
    assert not any(folder.exists() for folder in left)


def test_a_corrupt_adapter_says_so(http: TestClient, service: Service) -> None:
    new = {"name": "broken", "description": "Write the plural of the given noun."}
    assert http.post("/v1/adapters", json=new).status_code == 201
    weights = service.registry.directory(service.registry.get("broken", None)) / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-8])
    for answer in (
        http.post("/v1/chat/completions", json={"model": "broken", **ASK}),
        http.get("/v1/adapters/broken/download"),
    ):
        assert is_error(answer, 500) and "are not those that were written" in answer.text
        assert str(service.registry.root) not in answer.text
    assert http.post("/v1/chat/completions", json={"model": service.base_names[0], **ASK}).status_code == 200
    assert http.delete("/v1/adapters/broken").status_code == 200


def test_a_full_disk_is_503(tiny_llama: Path, small_disk: Path, tmp_path: Path) -> None:
    service, http = small(tiny_llama, small_disk / "r", f"sqlite:///{tmp_path / 'r.db'}")
    for number in range(50):
        new = {"name": f"a{number}", "description": f"Write the plural of noun number {number}."}
        answer = http.post("/v1/adapters", json=new)
        if answer.status_code != 201:
            break
    assert is_error(answer, 503) and "the disk is full" in answer.text and answer.headers["retry-after"]
    assert http.post("/v1/chat/completions", json={"model": "a0", **ASK}).status_code == 200
    service.close()


def test_no_space_for_uploads_is_503(
    tiny_llama: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where the body is kept while it is read, nor where a ZIP is to be unpacked."""
    service, http = small(tiny_llama, small_disk / "r", f"sqlite:///{tmp_path / 'r.db'}")
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    forms: dict[str, dict[str, str]] = {
        "/v1/adapters/import": {"name": "a"},
        "/v1/jobs": {"name": "a", "definition": "Copy."},
    }
    answers = [http.post(path, data=form, files={"file": b"x" * 2**21}) for path, form in forms.items()]
    disk = os.statvfs(small_disk)
    mount = ["mount", "-o", f"remount,nr_inodes={disk.f_files - disk.f_ffree}", str(small_disk)]
    subprocess.run(mount, check=True)
    answers.append(http.post("/v1/adapters/import", data={"name": "a"}, files={"file": b"PK"}))
    for answer in answers:
        assert is_error(answer, 503) and "the disk is full" in answer.text, answer.text
        assert answer.headers["retry-after"]
    assert [path.name for path in small_disk.iterdir()] == ["r"]
    assert not list((small_disk / "r" / "incoming").iterdir()) and not service.jobs.page(None)
    service.close()


def test_a_part_that_fails_to_close_keeps_none_open(service: Service) -> None:
    closed = list[str]()

    def fail() -> None:
        raise OSError("the disk is gone")

    parts = ExitStack()
    for close in (lambda: closed.append("registry"), fail, lambda: closed.append("jobs")):
        parts.callback(close)
    with pytest.raises(OSError, match="the disk is gone"):
        replace(service, closers=parts).close()
    assert closed == ["jobs", "registry"]


def test_a_service_that_cannot_be_opened_leaves_no_engine(tiny_llama: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "r")
    with registry.database.writing() as connection:
        connection.exec_driver_sql("DROP TABLE jobs")
    (tmp_path / "r" / "jobs" / ("0" * 32)).mkdir(parents=True)  # looked up there
    before = set(threading.enumerate())
    with pytest.raises(ShoalError):
        open_service(registry, str(tiny_llama))
    assert not [thread.name for thread in set(threading.enumerate()) - before if "shoal" in thread.name]
