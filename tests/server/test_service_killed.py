"""A service that is killed at any moment loses nothing that it acknowledged, and leaves nothing half done."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import httpx2
import psutil
import pytest

from shoal.config import ServiceConfig
from shoal.models.shapes import load_shape
from shoal.registry.api_keys import ApiKeys
from shoal.registry.records import AdapterRecord
from shoal.registry.registry import Registry
from shoal.server.jobs import Jobs

ROOT = Path(__file__).resolve().parents[2]
KILLS = 50
# `shoal serve` in a child of a process that has imported everything: 50 starts in a minute, not in ten.
SERVE = """
import os, sys
import torch, uvicorn, shoal.server.app, shoal.server.service as service, shoal.text_to_lora.generator
from shoal.models.backbone import load_backbone
from shoal.registry.registry import Registry
backbone = load_backbone(sys.argv[1])
for line in sys.stdin:
    if os.fork() == 0:
        opened = service.open_service(Registry(sys.argv[2]), sys.argv[1], backbone=backbone)
        app = shoal.server.app.create_app(opened)
        settings = {"uds": sys.argv[3], "log_config": None, "http": "h11", "ws": "none"}
        server = uvicorn.Server(uvicorn.Config(app, **settings))
        print(os.getpid(), flush=True)
        server.run()
        os._exit(0)
"""


class Client(threading.Thread):
    """Generates, imports and deletes until the service is gone; notes what was acknowledged."""

    def __init__(self, socket: Path, key: str, name: str, archive: bytes) -> None:
        super().__init__()
        self.socket, self.key, self.prefix, self.archive = socket, key, name, archive
        self.connected, self.answers = False, 0
        self.kept: set[str] = set()
        self.doubtful: set[str] = set()  # deleting was asked for

    def run(self) -> None:
        transport = httpx2.HTTPTransport(uds=str(self.socket))
        headers = {"Authorization": f"Bearer {self.key}"}
        with (
            suppress(httpx2.TransportError),
            httpx2.Client(transport=transport, base_url="http://x", headers=headers, timeout=20) as http,
        ):
            http.get("/health")  # connected: the client leaves a socket open where that fails
            self.connected = True
            for number in range(10_000):
                name = f"{self.prefix}-{number}"
                if number % 2:
                    answer = http.post(
                        "/v1/adapters/import", data={"name": name}, files={"file": self.archive}
                    )
                else:
                    description = f"Write the plural of noun number {number} of {self.prefix}."
                    answer = http.post("/v1/adapters", json={"name": name, "description": description})
                if answer.status_code == 201:
                    self.kept.add(name)
                self.answers += 1
                if number % 3 == 2:
                    gone = f"{self.prefix}-{number - 1}"
                    self.doubtful.add(gone)
                    http.delete(f"/v1/adapters/{gone}")


@pytest.mark.slow
def test_fifty_kills_lose_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    root, socket = tmp_path / "registry", tmp_path / "s"
    registry = Registry(root)
    key = ApiKeys(registry.database).create("ada")
    registry.close()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SERVE, str(tiny_llama), str(root), str(socket)]
    parent = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    )
    assert parent.stdin is not None and parent.stdout is not None
    chance, archive = random.Random(1), b""
    kept: set[str] = set()
    doubtful: set[str] = set()
    try:
        for kill in range(KILLS):
            socket.unlink(missing_ok=True)
            parent.stdin.write("go\n")
            parent.stdin.flush()
            service = int(parent.stdout.readline())
            until = time.monotonic() + 60
            while not socket.exists():
                assert time.monotonic() < until
                time.sleep(0.005)
            clients = [Client(socket, key, f"k{kill}-{i}", archive) for i in range(2)]
            for client in clients:
                client.start()
            wanted = chance.randint(0, 8)  # however slow the machine is
            while not all(c.connected for c in clients) or sum(c.answers for c in clients) < wanted:
                assert time.monotonic() < until
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.05))
            os.kill(service, signal.SIGKILL)
            for client in clients:
                client.join()
                kept |= client.kept
                doubtful |= client.doubtful
            archive = archive or some_archive(root)
    finally:
        parent.kill()
        parent.wait()
        parent.stdin.close()
        parent.stdout.close()
    registry = Registry(root)
    records: list[AdapterRecord] = []
    after: str | None = ""
    while after is not None:
        page = registry.page(None, after=after, limit=200)
        records, after = records + list(page.records), page.after
    assert len(kept) > KILLS and kept - doubtful <= {r.name for r in records}
    for record in records:
        registry.load(record)
    orphans = registry.sweep()
    objects = {p.name for p in (root / "objects").glob("*/*")}
    assert objects == {r.sha256 for r in records} and not list((root / "incoming").iterdir())
    print(f"{KILLS} kills, {len(kept)} acknowledged, {len(records)} there, {orphans} orphans swept")
    registry.close()


def some_archive(root: Path) -> bytes:
    """A ZIP of an adapter that is there; empty while there is none."""
    registry, file = Registry(root), io.BytesIO()
    page = registry.page(None, limit=1).records
    if page:
        with zipfile.ZipFile(file, "w") as archive:
            for path in registry.directory(page[0]).iterdir():
                archive.write(path, path.name)
    registry.close()
    return file.getvalue()


def test_a_killed_services_training_ends_and_has_failed(tiny_llama: Path, tmp_path: Path) -> None:
    """The process that trains ends with its service, and the next service knows; those of others go on."""
    root, path = tmp_path / "registry", tmp_path / "s"
    registry = Registry(root)
    key = ApiKeys(registry.database).create("ada")
    lines = b"\n".join(b'{"input": "%d", "output": "%d"}' % (i, i + 1) for i in range(40))
    form = {"name": "next", "definition": "Write the next number.", "steps": "2000"}
    command = [sys.executable, "-c", SERVE, str(tiny_llama), str(root), str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    )
    assert parent.stdin is not None and parent.stdout is not None
    service = None
    try:
        parent.stdin.write("go\n")
        parent.stdin.flush()
        service = psutil.Process(int(parent.stdout.readline()))
        until = time.monotonic() + 120
        while not path.exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        headers = {"Authorization": f"Bearer {key}"}
        transport = httpx2.HTTPTransport(uds=str(path))
        with httpx2.Client(transport=transport, base_url="http://x", headers=headers, timeout=60) as http:
            first, waiting = (
                http.post("/v1/jobs", data={**form, "name": name}, files={"file": lines}).json()["id"]
                for name in ("next", "other")
            )
            while (job := http.get(f"/v1/jobs/{first}").json())["step"] < 1:
                assert time.monotonic() < until and job["state"] in ("queued", "running"), job
                time.sleep(0.3)
        (training,) = service.children()
        alive = Jobs(registry, load_shape(str(tiny_llama)), str(tiny_llama), ServiceConfig())
        assert alive.get(first, "ada").state == "running"  # a service that starts beside it ends none of its
        alive.close()
        service.kill()
        _, left = psutil.wait_procs([training], timeout=60)
        assert not left, "a training outlives its service"
    finally:
        if service is not None and service.is_running():
            service.kill()
        parent.kill()
        parent.wait()
        parent.stdin.close()
        parent.stdout.close()
    assert len(list((root / "jobs").iterdir())) == 2
    jobs = Jobs(registry, load_shape(str(tiny_llama)), str(tiny_llama), ServiceConfig())
    for identity in (first, waiting):
        job = jobs.get(identity, "ada")
        assert (job.state, job.error) == ("failed", "its service ended; ask for it again")
    assert not list((root / "jobs").iterdir())
    again = jobs.submit("next", "Write the next number.", lines, "ada", steps=10**3, rank=2)
    jobs.close()  # what waits or runs is told of, too
    assert jobs.get(again.id, "ada").error == "the service was stopped; ask for it again"
    registry.close()
