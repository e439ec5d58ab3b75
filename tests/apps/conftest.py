"""A service over a tiny random model, in this process and on a real port."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
import uvicorn

from shoal.adapters.archive import pack
from shoal.adapters.card import AdapterCard
from shoal.adapters.files import save_adapter
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.apps.cli.serve import bound, uvicorn_config
from shoal.config import EngineConfig, ServiceConfig
from shoal.models.backbone import Backbone
from shoal.models.shapes import load_shape
from shoal.registry.registry import Registry
from shoal.server.app import create_app
from shoal.server.service import Service, open_service


@dataclass(frozen=True)
class Running:
    """A service on a port, with a key for ada and one for eve."""

    server: uvicorn.Server
    service: Service
    url: str
    model: str
    ada: str
    eve: str

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])


@contextmanager
def serving(
    model: Path,
    root: Path,
    *,
    send_buffer: int = 0,
    dtype: str | None = None,
    backbone: Backbone | None = None,
    **limits: float,
) -> Iterator[Running]:
    engine, config = EngineConfig(dtype=dtype), ServiceConfig(**limits)
    service = open_service(Registry(root), str(model), config, engine=engine, backbone=backbone)
    server = uvicorn.Server(uvicorn_config(create_app(service), leaving_seconds=2))
    sockets = bound("127.0.0.1", 0, service.config.send_seconds)
    if send_buffer:
        sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    thread = threading.Thread(target=server.run, args=(sockets,))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = sockets[0].getsockname()[1]
    try:
        keys = [service.keys.create(owner) for owner in ("ada", "eve")]
        yield Running(server, service, f"http://127.0.0.1:{port}", str(model), *keys)
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


@pytest.fixture
def serve(tiny_llama: Path, tmp_path: Path) -> Callable[..., AbstractContextManager[Running]]:
    """A service of a test's own, with limits of its own."""
    return lambda **options: serving(tiny_llama, tmp_path / "registry", **options)


@pytest.fixture(scope="session")
def make_loud(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], bytes]:
    """A PEFT ZIP of an adapter that changes every answer, by a seed."""
    shape, folder = load_shape(str(tiny_llama)), tmp_path_factory.mktemp("loud")
    card = AdapterCard(generator="test", trained=True, description="Loud.", scores={"exact match": 0.5})

    @cache
    def make(seed: int) -> bytes:
        generator = torch.Generator().manual_seed(seed)
        factors = {
            t.name: LoraFactors(
                torch.randn(4, t.in_features, generator=generator),
                torch.randn(t.out_features, 4, generator=generator),
            )
            for t in shape.select(("q_proj", "v_proj"), None)
        }
        save_adapter(folder / str(seed), LoRA(factors, 8.0), shape=shape, card=card)
        file = io.BytesIO()
        pack(folder / str(seed), file)
        return file.getvalue()

    return make
