"""The service on a Ray cluster of two workers: token, routing, shared state, one killed under load."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
import pytest

from shoal.apps.cli.cluster import application
from shoal.registry.api_keys import ApiKeys
from shoal.registry.registry import Registry
from shoal.server.affinity import REPLICA_HEADER

pytest.importorskip("ray", reason="Ray is not installed; pip install 'shoal[cluster]'")

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
TOKEN = "0" * 32 + "f" * 32
SECONDS = 300  # for what a busy machine may take long for; nothing is measured


@dataclass
class Cluster:
    """Head, two workers and `shoal cluster up`, each a process group of its own."""

    folder: Path
    port: int
    key: str
    model: str
    gcs: str
    environment: dict[str, str]
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    up: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def http(self) -> httpx2.Client:
        return httpx2.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=SECONDS
        )

    def log(self) -> str:
        return (self.folder / "up.log").read_text("utf-8")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def start(cluster: Cluster, name: str, *arguments: str) -> subprocess.Popen[bytes]:
    with (cluster.folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [str(part) for part in arguments],
            env=cluster.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def node(cluster: Cluster, name: str, *arguments: str) -> subprocess.Popen[bytes]:
    plain = ["--node-ip-address=127.0.0.1", "--object-store-memory=100000000", "--disable-usage-stats"]
    plain += ["--include-dashboard=false"] if "--head" in arguments else []
    return start(cluster, name, BIN / "ray", "start", "--block", *plain, *arguments)  # type: ignore[arg-type]


def until(what: Any, message: str) -> None:
    end = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < end, message
        time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("c")
    registry = Registry(folder / "registry")
    key = ApiKeys(registry.database).create("ada")
    registry.close()
    gcs = free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_TMPDIR": f"/tmp/shoal-ray-{gcs}",
        "RAY_worker_niceness": "0",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "shoal.server.affinity.middlewares",
        "RAY_raylet_start_wait_time_s": "200",
        "OMP_NUM_THREADS": "1",
        "HOME": str(folder),  # no token of this machine's user is read or written
    }
    cluster = Cluster(folder, free_port(), key, str(tiny_llama), f"127.0.0.1:{gcs}", environment)
    started = [node(cluster, "head", "--head", f"--port={gcs}", "--num-cpus=0")]
    try:
        until(lambda: answers(gcs), "the head did not start")
        for number in range(2):
            log = folder / f"worker{number}.log"
            worker = node(cluster, log.stem, f"--address={cluster.gcs}", "--num-cpus=2")
            cluster.workers.append(worker)
            started.append(worker)
            until(lambda log=log: "Ray runtime started" in log.read_text("utf-8"), "a worker did not start")
        command = [BIN / "shoal", "cluster", "up", "--base", cluster.model, "--port", str(cluster.port)]
        command += ["--registry", folder / "registry", "--address", cluster.gcs, "--replicas", "2"]
        command += ["--cpus", "1", "--max-tokens", "64", "--requests-per-minute", "100000"]
        command += ["--tokens-per-minute", "100000000"]
        cluster.up = start(cluster, "up", *command)  # type: ignore[arg-type]
        started.append(cluster.up)
        until(lambda: "listening" in cluster.log() or cluster.up.poll() is not None, "no replicas")
        assert "listening" in cluster.log(), cluster.log()
        yield cluster
    finally:
        clean_up(reversed(started), f"/tmp/shoal-ray-{gcs}")


def answers(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def clean_up(started: Iterator[subprocess.Popen[bytes]], folder: str) -> None:
    """End every process of the cluster: those of its groups, and those that Ray gave groups of their own."""
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    left = [p for p in psutil.process_iter() if belongs(p, folder)]
    for process in left:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=30)
    shutil.rmtree(folder, ignore_errors=True)


def belongs(process: psutil.Process, folder: str) -> bool:
    with suppress(psutil.Error):
        environment = process.environ()
        return process.pid != os.getpid() and environment.get("RAY_TMPDIR") == folder
    return False


def served_by(answer: httpx2.Response) -> str:
    return str(answer.headers[REPLICA_HEADER])


ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Say it."}],
    "max_tokens": 8,
    "temperature": 0,
}


def make(http: httpx2.Client, name: str) -> httpx2.Response:
    new = {"name": name, "description": f"Write the plural of the given noun, {name}."}
    answer = http.post("/v1/adapters", json=new)
    assert answer.status_code == 201, answer.text
    return answer


@pytest.mark.slow
def test_a_token_is_needed(cluster: Cluster) -> None:
    code = f"import ray; ray.init(address={cluster.gcs!r}); print(ray.cluster_resources())"
    strangers = {}
    for mode, token in (("disabled", ""), ("token", "1" * 64)):
        environment = {**cluster.environment, "RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": token}
        command = [sys.executable, "-c", code]
        strangers[mode] = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    for mode, stranger in strangers.items():
        said, complaint = stranger.communicate(timeout=SECONDS)
        assert stranger.returncode != 0 and "CPU" not in said, mode
        assert "uthenticat" in complaint, complaint[-2000:]


@pytest.mark.slow
def test_the_official_client_is_answered_and_streamed_to(cluster: Cluster) -> None:
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key=cluster.key) as client:
        whole = client.chat.completions.create(model=cluster.model, **ASK)
        pieces = list(client.chat.completions.create(model=cluster.model, stream=True, **ASK))
        said = whole.choices[0].message.content
        assert (
            "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == said and len(pieces) > 2
        )
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="no-such-adapter", **ASK)
    stranger = openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


@pytest.mark.slow
def test_an_adapter_of_one_replica_answers_in_the_other_and_stays_there(cluster: Cluster) -> None:
    with cluster.http() as http:
        names = [f"noun-{number}" for number in range(20)]  # all to one of two replicas: once in 500,000
        makers = {name: served_by(make(http, name)) for name in names}
        users: dict[str, Counter[str]] = {name: Counter() for name in names}
        for _ in range(4):
            for name in names:
                answer = http.post("/v1/chat/completions", json={"model": name, **ASK})
                assert answer.status_code == 200 and answer.json()["adapter"]["name"] == name
                users[name][served_by(answer)] += 1
        assert all(len(replicas) == 1 for replicas in users.values()), users  # 80 requests, none astray
        assert len({next(iter(replicas)) for replicas in users.values()}) == 2, users  # both work
        assert any(makers[name] not in users[name] for name in names), (makers, users)
        spread = Counter(served_by(http.get("/v1/skills")) for _ in range(20))
        assert len(spread) == 2, spread  # what names no adapter goes anywhere
        skill = {"name": "wine", "keywords": ["bordeaux", "riesling"]}
        assert http.post("/v1/skills", json=skill).status_code == 201
        for _ in range(10):
            assert "wine" in http.get("/v1/skills").json()["data"]
        large = http.post("/v1/chat/completions", content=b"x" * (2**20 + 1))
        assert large.status_code == 413 and large.json()["error"]["code"] == "body_too_large"


@pytest.mark.slow
def test_a_worker_killed_under_load_costs_no_wrong_answer(cluster: Cluster) -> None:
    with cluster.http() as http:
        names = [f"kill-{number}" for number in range(6)]
        for name in names:
            make(http, name)
        ask = {name: {"model": name, **ASK} for name in names}
        before = {served_by(http.get("/health")) for _ in range(20)}
        right = {name: http.post("/v1/chat/completions", json=ask[name]).json()["choices"] for name in names}
    statuses: Counter[int] = Counter()
    wrong: list[str] = []
    over, lock = threading.Event(), threading.Lock()

    def load(number: int) -> None:
        with cluster.http() as own:
            while not over.is_set():
                name = names[number % len(names)]
                number += 1
                answer = own.post("/v1/chat/completions", json=ask[name])
                with lock:
                    statuses[answer.status_code] += 1
                    if answer.status_code == 200 and answer.json()["choices"] != right[name]:
                        wrong.append(name)
                    if answer.status_code >= 500 and int(answer.headers.get("retry-after", 0)) < 1:
                        wrong.append(f"{answer.status_code} without Retry-After: {answer.text[:200]}")
                    if 400 <= answer.status_code < 500:
                        wrong.append(answer.text[:200])

    clients = [threading.Thread(target=load, args=(number,)) for number in range(4)]
    for client in clients:
        client.start()
    until(lambda: statuses[200] > 20, "no load")
    worker = psutil.Process(cluster.workers[0].pid)
    processes = [worker, *worker.children(recursive=True)]
    assert any("ServeReplica" in " ".join(process.cmdline()) for process in processes)
    for process in processes:
        process.kill()
    cluster.workers[0].wait()
    killed_at = statuses[200]
    until(lambda: statuses[200] > killed_at + 40, "no answers after the kill")
    with cluster.http() as http:
        until(lambda: recovered(http, before), "not two replicas again")
    over.set()
    for client in clients:
        client.join()
    assert not wrong, wrong[:5]
    print(f"answers by status: {dict(statuses)}")


def recovered(http: httpx2.Client, before: set[str]) -> bool:
    """Whether two replicas answer, one of which was not there before."""
    answers = [http.get("/health") for _ in range(12)]
    now = {served_by(answer) for answer in answers if answer.status_code == 200}
    return len(now) == 2 and len(now - before) == 1


@pytest.mark.slow
def test_it_stops_when_asked(cluster: Cluster) -> None:
    assert cluster.up is not None
    cluster.up.send_signal(signal.SIGTERM)
    assert cluster.up.wait(SECONDS) == 0, cluster.log()
    assert cluster.log().rstrip().endswith("stopped") and not answers(cluster.port)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own declarations
def test_replicas_follow_the_load_between_the_bounds_that_were_asked_for() -> None:
    def declared(**replicas: float) -> Any:
        return application({"replicas": replicas})._bound_deployment._deployment_config

    scaling = declared(replicas=2, max_replicas=5, busy=3.0).autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 3.0)
    fixed = declared(replicas=2, max_replicas=2)
    assert fixed.autoscaling_config is None and fixed.num_replicas == 2
