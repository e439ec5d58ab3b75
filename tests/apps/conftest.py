"""A service over a tiny random model, in this process and on a real port."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn

from shoal.apps.service import create_app
from shoal.config import ServiceConfig
from shoal.registry import Registry
from shoal.service.service import Service, open_service


@dataclass(frozen=True)
class Running:
    """A service on a port, with a key for ada and one for eve."""

    service: Service
    url: str
    model: str
    ada: str
    eve: str


@contextmanager
def serving(model: Path, root: Path, **limits: float) -> Iterator[Running]:
    service = open_service(Registry(root), str(model), ServiceConfig(**limits))
    settings = {"host": "127.0.0.1", "port": 0, "http": "h11", "ws": "none", "log_config": None}
    server = uvicorn.Server(uvicorn.Config(create_app(service), timeout_graceful_shutdown=2, **settings))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        keys = [service.keys.create(owner) for owner in ("ada", "eve")]
        yield Running(service, f"http://127.0.0.1:{port}", str(model), *keys)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def start_service() -> Callable[..., AbstractContextManager[Running]]:
    """Starts a service of a model directory and a registry, with limits of its own."""
    return serving


@pytest.fixture(scope="session")
def running(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("service")
    limits = {"requests_per_minute": 100_000, "tokens_per_minute": 10**8, "max_tokens": 400, "max_jobs": 3}
    with serving(tiny_llama, root / "registry", **limits) as running:
        yield running
