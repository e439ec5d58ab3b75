"""A tiny model, adapters strong enough to change its answers, and the plainest generation to compare with."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch

from shoal.adapters.base import Adapter
from shoal.adapters.decomposition import Decompositions
from shoal.adapters.kinds import attach_adapter
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.adapters.svf import ExpertVector
from shoal.adapters.svf_cache import decompose_model
from shoal.models.backbone import Backbone, load_backbone


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def backbone(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Backbone:
    return load_backbone(str(tiny_models[request.param]), device="cpu", dtype=torch.float32)


@pytest.fixture(scope="session")
def llama_backbone(tiny_models: dict[str, Path]) -> Backbone:
    return load_backbone(str(tiny_models["llama"]), device="cpu", dtype=torch.float32)


@pytest.fixture(scope="session")
def basis(backbone: Backbone) -> Decompositions:
    names = [t.name for t in backbone.shape.select(("up_proj", "down_proj"), None)]
    return decompose_model(backbone.model, names)


@pytest.fixture(scope="session")
def make_lora() -> Callable[..., LoRA]:
    def make(
        backbone: Backbone, seed: int, rank: int = 2, modules: tuple[str, ...] = ("q_proj", "v_proj")
    ) -> LoRA:
        generator = torch.Generator().manual_seed(seed)
        identity = LoRA.identity(backbone.shape.select(modules, None), rank, 2.0 * rank, generator=generator)
        factors = {
            n: LoraFactors(f.a, torch.empty_like(f.b).normal_(generator=generator))
            for n, f in identity.factors.items()
        }
        return LoRA(factors, identity.alpha)

    return make


@pytest.fixture(scope="session")
def make_expert() -> Callable[..., ExpertVector]:
    def make(basis: Decompositions, seed: int) -> ExpertVector:
        generator = torch.Generator().manual_seed(seed)
        return ExpertVector(
            {name: 1 + torch.randn(d.s.numel(), generator=generator) for name, d in basis.items()}
        )

    return make


@pytest.fixture(scope="session")
def plain_logits() -> Callable[..., torch.Tensor]:
    """Logits after every token of a prompt with its answer: one request, no cache, no padding."""

    @torch.no_grad()
    def logits(
        backbone: Backbone,
        ids: list[int],
        adapter: Adapter | None = None,
        basis: Decompositions | None = None,
    ) -> torch.Tensor:
        context: AbstractContextManager[object] = nullcontext()
        if adapter is not None:
            context = attach_adapter(backbone.model, adapter, basis)
        with context:
            return backbone.model(torch.tensor([ids]), use_cache=False).logits[0]

    return logits
