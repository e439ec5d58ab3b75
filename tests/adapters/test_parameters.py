"""LoRA of experts and routers at work: attached = merged, detach restores the bits, a row's is its own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shoal.adapters.base import Adapter
from shoal.adapters.hooks import attach, merge
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.adapters.merging import compose, stack, truncate
from shoal.errors import UsageError
from shoal.inference.engine.core import Engine
from shoal.inference.engine.records import Request
from shoal.inference.sampling import Sampling
from shoal.models.backbone import Backbone, load_backbone
from tests.fixtures.experts import MOE_FAMILIES, lora_of_all

CLOSE = {"atol": 5e-5, "rtol": 1e-4}
PROMPTS = ("ab", "a longer request than the first", "z", "some words", "Why?")


@pytest.fixture(scope="module", params=MOE_FAMILIES)
def backbone(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Backbone:
    return load_backbone(str(tiny_models[request.param]), device="cpu", dtype=torch.float32)


@torch.no_grad()
def logits(backbone: Backbone, rows: int = 4) -> Tensor:
    ids = torch.randint(0, 250, (rows, 9), generator=torch.Generator().manual_seed(1))
    return backbone.model(ids, use_cache=False).logits


def attached(backbone: Backbone, lora: LoRA) -> Tensor:
    with attach(backbone.model, lora):
        return logits(backbone)


def test_attached_is_merged_and_both_end_bit_for_bit(backbone: Backbone) -> None:
    lora, base = lora_of_all(backbone.shape, 0), logits(backbone)
    weights = {name: weight.clone() for name, weight in backbone.model.state_dict().items()}
    with merge(backbone.model, lora):
        torch.testing.assert_close(attached(backbone, lora * 0.0), logits(backbone))
        merged = logits(backbone)
    torch.testing.assert_close(attached(backbone, lora), merged, **CLOSE)
    assert (merged - base).abs().max() > 0.1
    assert torch.equal(logits(backbone), base)
    assert all(torch.equal(weight, weights[n]) for n, weight in backbone.model.state_dict().items())
    assert torch.equal(attached(backbone, lora * 0.0), base)


def test_several_add_up_and_end_in_any_order(backbone: Backbone) -> None:
    one, two = (lora_of_all(backbone.shape, seed, rank=1 + seed) for seed in range(2))
    base, first, second = logits(backbone), attach(backbone.model, one), attach(backbone.model, two)
    both = logits(backbone)
    first.detach()
    left = logits(backbone)
    second.detach()
    torch.testing.assert_close(both, attached(backbone, compose([one, two], [1.0, 1.0])), **CLOSE)
    torch.testing.assert_close(left, attached(backbone, two), **CLOSE)
    assert torch.equal(logits(backbone), base)


def test_every_sample_has_its_own(backbone: Backbone) -> None:
    loras = [lora_of_all(backbone.shape, seed) for seed in (0, 1, 2, 0)]
    with attach(backbone.model, stack(loras)):
        together = logits(backbone)
    for row, lora in enumerate(loras):
        torch.testing.assert_close(together[row], attached(backbone, lora)[row], **CLOSE)


def test_truncation_of_a_doubled_adapter_is_the_adapter(backbone: Backbone) -> None:
    lora = lora_of_all(backbone.shape, 0)
    name = next(p.name for p in backbone.shape.parameters if p.sizes.experts)
    halved = truncate(compose([lora, lora], [0.5, 0.5]), lora.rank)
    torch.testing.assert_close(halved.delta_weight(name), lora.delta_weight(name), **CLOSE)
    assert lora.norms()[name] == pytest.approx(float(lora.delta_weight(name).norm()), rel=1e-4)


@torch.no_grad()
def plain(backbone: Backbone, prompt: list[int], lora: LoRA | None) -> list[int]:
    """The answer of `transformers` itself."""
    ids = torch.tensor([prompt])
    with attach(backbone.model, lora) if lora else nullcontext():
        answer = backbone.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=5, eos_token_id=None
        )
    return answer[0, len(prompt) :].tolist()


def answers(
    backbone: Backbone, prompts: Sequence[list[int]], rows: Sequence[Adapter | None]
) -> list[list[int]]:
    engine = Engine(backbone)
    tickets = [
        engine.submit(Request(p, row, 5, sampling=Sampling(temperature=0), logprobs=0, stop_at_end=False))
        for p, row in zip(prompts, rows, strict=True)
    ]
    said: dict[int, list[int]] = {ticket: [] for ticket in tickets}
    while engine.busy:
        for event in engine.step():
            assert event.error is None
            said[event.ticket] += [score.token for score in event.delta.tokens] if event.delta else []
    return [said[ticket] for ticket in tickets]


def test_rows_of_one_batch_answer_as_transformers(backbone: Backbone) -> None:
    one, two = lora_of_all(backbone.shape, 0), lora_of_all(backbone.shape, 1, rank=3)
    experts = {p.name for p in backbone.shape.parameters}
    narrow = LoRA({name: f for name, f in two.factors.items() if name in experts}, two.alpha)
    rows = [one, None, two, one, narrow]
    prompts = [backbone.encode_prompt(text) for text in PROMPTS]
    together = answers(backbone, prompts, rows)
    assert together == [plain(backbone, p, row) for p, row in zip(prompts, rows, strict=True)]
    assert together != [plain(backbone, p, None) for p in prompts]
    assert not any("forward" in vars(module) for module in backbone.model.modules())


def test_gradients_reach_the_factors(backbone: Backbone) -> None:
    lora = lora_of_all(backbone.shape, 0)
    leaves = [factor.requires_grad_() for pair in lora.factors.values() for factor in pair]
    with attach(backbone.model, lora):
        backbone.model(torch.arange(40)[None], use_cache=False).logits.square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.abs().max() > 0 for leaf in leaves)


def test_what_does_not_fit_is_named(backbone: Backbone) -> None:
    lora = lora_of_all(backbone.shape, 0)
    name = next(p.name for p in backbone.shape.parameters if p.sizes.experts)
    a, b = lora.factors[name]
    for use in (attach, merge):
        with pytest.raises(UsageError, match="is of 3 experts, the model has 4"):
            use(backbone.model, LoRA({name: LoraFactors(a[:3], b[:3])}, 4.0))
        with pytest.raises(UsageError, match=r"\(in x out\), in the model"):
            use(backbone.model, LoRA({name: LoraFactors(a[..., 1:], b)}, 4.0))
        with pytest.raises(UsageError, match="is of 0 experts, the model has 4"):
            use(backbone.model, LoRA({name: LoraFactors(a[0], b[0])}, 4.0))
