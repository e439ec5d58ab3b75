"""The engine that answers requests: one in this process, or vLLM elsewhere."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shoal.adapters.card import AdapterCard
from shoal.adapters.files import save_adapter
from shoal.adapters.lora import LoRA
from shoal.config import EngineConfig, ServiceConfig
from shoal.errors import ShoalError, UsageError
from shoal.inference.engine.adapter_cache import AdapterCache
from shoal.inference.engine.core import Engine
from shoal.inference.engine.records import Limits, Observer
from shoal.inference.engine.runner import EngineRunner, Runner
from shoal.models.backbone import DTYPES, Backbone, load_backbone, load_wording
from shoal.registry.objects import AdapterFiles
from shoal.registry.registry import Registry
from shoal.transformer2.experts import ExpertSet, shipped_experts

VLLM_KEY_VARIABLE = "VLLM_API_KEY"


@dataclass(frozen=True)
class OpenEngine:
    """An open engine.

    Attributes:
        backbone: the base model; without weights where they are elsewhere.
        runner: takes requests.
        experts: for `adapter: "auto"`; None without any.
        discard: forgets an adapter by its content.
        close: ends it.
    """

    backbone: Backbone
    runner: Runner
    experts: ExpertSet | None
    discard: Callable[[str], None]
    close: Callable[[], None]


def own_engine(
    registry: Registry,
    backbone: Backbone,
    experts: ExpertSet | None,
    config: ServiceConfig,
    observe: Observer,
) -> OpenEngine:
    """The engine of `shoal.inference.engine`, with the adapters of a registry."""

    def load(sha256: str) -> LoRA:
        return registry.read(sha256).lora.to(backbone.device, backbone.dtype)

    experts = experts or shipped_experts(backbone.model)
    cache = AdapterCache(load, config.cache_bytes)
    basis = experts.basis if experts else None
    engine = Engine(backbone, limits=_limits(config), adapters=cache, basis=basis, observe=observe)
    runner = EngineRunner(engine)
    return OpenEngine(backbone, runner, experts, cache.discard, runner.close)


def vllm_engine(
    registry: Registry, base: str, wanted: EngineConfig, config: ServiceConfig, observe: Observer
) -> OpenEngine:
    """A vLLM server, whose adapters are those of a registry; both see the same files under the same paths.

    Raises:
        UsageError: no URL, or another model there.
        UnavailableError: vLLM cannot be reached.
    """
    from shoal.inference.vllm.adapters import VllmAdapters
    from shoal.inference.vllm.client import VllmClient
    from shoal.inference.vllm.runner import VllmRunner

    if wanted.vllm_url is None:
        raise UsageError("--engine vllm needs --vllm-url, such as http://127.0.0.1:8100; give it")
    backbone = load_wording(base)
    folder = Path(tempfile.mkdtemp(prefix="vllm-", dir=registry.root))
    folder.chmod(0o755)  # vLLM may run as another user
    passing = AdapterFiles(folder)  # adapters that no name keeps

    def directory(sha256: str) -> str:
        if passing.path(sha256).is_dir():
            return str(passing.path(sha256).absolute())
        registry.read(sha256)  # nothing damaged is handed over
        return str(registry.files_of(sha256).absolute())

    def keep(lora: LoRA) -> str:
        card = AdapterCard(generator="composition", trained=True)
        with passing.writing():
            return passing.write(
                lambda draft: save_adapter(draft, lora, shape=backbone.shape, card=card)
            ).sha256

    def unloaded(sha256: str) -> None:
        shutil.rmtree(passing.path(sha256), ignore_errors=True)

    client = VllmClient(wanted.vllm_url, os.environ.get(VLLM_KEY_VARIABLE) or None)
    try:
        adapters = VllmAdapters(client, directory, unloaded, wanted.vllm_adapters)
        runner = VllmRunner(
            client,
            backbone,
            adapters,
            limits=_limits(config),
            read=lambda sha256: registry.read(sha256).lora,
            keep=keep,
            observe=observe,
        )
    except ShoalError:
        client.close()
        shutil.rmtree(folder, ignore_errors=True)
        raise

    def close() -> None:
        runner.close()
        shutil.rmtree(folder, ignore_errors=True)

    return OpenEngine(backbone, runner, None, adapters.discard, close)


def open_engine(
    registry: Registry,
    base: str,
    wanted: EngineConfig,
    config: ServiceConfig,
    observe: Observer,
    *,
    backbone: Backbone | None,
    experts: ExpertSet | None,
) -> OpenEngine:
    """The engine that is wanted; errors as `load_served` and `vllm_engine`.

    Raises:
        UsageError: a dtype for vLLM, which was started with its own.
    """
    if wanted.engine == "vllm":
        if wanted.dtype:
            raise UsageError(f"--dtype {wanted.dtype} is not for --engine vllm; give it to vLLM itself")
        return vllm_engine(registry, base, wanted, config, observe)
    backbone = backbone or load_served(base, wanted)
    assert backbone is not None
    return own_engine(registry, backbone, experts, config, observe)


def load_served(base: str, wanted: EngineConfig) -> Backbone | None:
    """The base model that the wanted engine runs here; None for vLLM. Errors as `load_backbone`."""
    if wanted.engine == "vllm":
        return None
    return load_backbone(base, dtype=DTYPES[wanted.dtype] if wanted.dtype else None)


def _limits(config: ServiceConfig) -> Limits:
    return Limits(
        max_batch=config.max_running,
        max_waiting=config.max_waiting,
        max_n=config.max_choices,
        max_rank=config.max_rank * config.max_mix,
    )
