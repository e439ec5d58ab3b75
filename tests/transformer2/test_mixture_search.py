"""Mixtures found from solved examples: a planted expert is found, and the base model where none serves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shoal.adapters.decomposition import Decomposition, decompose
from shoal.adapters.svf import ExpertVector
from shoal.adapters.svf_hooks import attach_expert, dense_weight
from shoal.config import MixtureSearchConfig
from shoal.errors import UsageError
from shoal.inference.forward import answer_losses, pad_sequences
from shoal.inference.generate import generate_greedy
from shoal.models.backbone import Backbone, load_backbone
from shoal.transformer2.mixture_search import search_mixture

QUICK = MixtureSearchConfig(population=8, iterations=4)


@pytest.fixture
def backbone(tiny_llama: Path) -> Backbone:
    return load_backbone(str(tiny_llama), device="cpu", dtype=torch.float32)


@pytest.fixture
def basis(backbone: Backbone) -> dict[str, Decomposition]:
    names = [t.name for t in backbone.shape.targets]
    return {name: decompose(dense_weight(backbone.model.get_submodule(name))) for name in names}


def experts(basis: dict[str, Decomposition], count: int = 3) -> list[ExpertVector]:
    generator = torch.Generator().manual_seed(0)
    return [
        ExpertVector({n: 1 + torch.randn(d.s.shape, generator=generator) for n, d in basis.items()})
        for _ in range(count)
    ]


def shots_of(backbone: Backbone, basis: dict[str, Decomposition], expert: ExpertVector) -> list[tuple]:
    """Requests with what the model says when that expert is attached."""
    requests = ["apple", "a pear", "two plums"]
    with attach_expert(backbone.model, basis, expert):
        answers = generate_greedy(backbone, requests, max_new_tokens=6)
    prompts = backbone.encode_prompts(requests)
    return [(p, backbone.encode_completion(a or "x")) for p, a in zip(prompts, answers, strict=True)]


@pytest.mark.parametrize("per_layer", [False, True])
def test_the_planted_expert_is_found(
    backbone: Backbone, basis: dict[str, Decomposition], per_layer: bool
) -> None:
    known = experts(basis)
    shots = shots_of(backbone, basis, known[1])
    search = MixtureSearchConfig(population=8, iterations=6, per_layer=per_layer)
    found = search_mixture(backbone, basis, known, shots, search)
    assert found.coefficients.shape == (3 if per_layer else 1, 4)
    torch.testing.assert_close(found.coefficients.sum(-1), torch.ones(len(found.coefficients)))
    assert int(found.coefficients.mean(0).argmax()) == 1
    assert found.loss < found.base_loss and list(found.history) == sorted(found.history, reverse=True)
    batch = pad_sequences(shots, backbone.end_of_turn, backbone.device)
    with attach_expert(backbone.model, basis, found.expert):
        assert float(answer_losses(backbone, batch).mean()) == pytest.approx(found.loss, rel=1e-4)


def test_a_search_may_abstain(backbone: Backbone, basis: dict[str, Decomposition]) -> None:
    identity = ExpertVector.identity(basis)
    shots = shots_of(backbone, basis, identity)
    loud = [ExpertVector({n: z * 0 + 30 for n, z in identity.z.items()})]  # ruins every answer
    found = search_mixture(backbone, basis, loud, shots, QUICK)
    assert found.loss <= found.base_loss and float(found.coefficients[0, 1]) > 0.9


def test_a_search_is_decided_by_its_seed(backbone: Backbone, basis: dict[str, Decomposition]) -> None:
    known = experts(basis)
    shots = shots_of(backbone, basis, (known[0] + known[2]) * 0.5)
    one, two = (search_mixture(backbone, basis, known, shots, QUICK) for _ in range(2))
    assert one.expert == two.expert and one.history == two.history


def test_what_cannot_be_searched(backbone: Backbone, basis: dict[str, Decomposition]) -> None:
    known = experts(basis)
    shots = shots_of(backbone, basis, known[0])
    for given, says in ((([], shots), "got 0 and 3"), ((known, []), "got 3 and 0")):
        with pytest.raises(UsageError, match=says):
            search_mixture(backbone, basis, *given)
    for odd in ({"population": 1}, {"iterations": 0}, {"elite": 0}, {"elite": 2}):
        with pytest.raises(UsageError, match=next(iter(odd))):
            MixtureSearchConfig(**odd)
    with pytest.raises(UsageError, match="less than 1 candidate"):
        search_mixture(backbone, basis, known, shots, MixtureSearchConfig(population=4, elite=0.1))
