"""Batched greedy generation against the plainest one: one request at a time, no cache, no padding."""

from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from shoal.adapters.hooks import attach
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.errors import UsageError
from shoal.inference.generate import generate_greedy
from shoal.models.backbone import Backbone, load_backbone
from tests.fixtures.experts import MOE_FAMILIES

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gpt2", "gpt_neox", "opt", "phi"]
REQUESTS = ["ab", "a longer request than the first", "z", "some words", "Which is it?", "0123456789" * 3]
LIMIT = 8


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> Backbone:
    return load_backbone(str(tiny_llama), device="cpu", dtype=torch.float32)


def noise(
    backbone: Backbone, seed: int, rank: int = 2, modules: tuple[str, ...] = ("q_proj", "v_proj")
) -> LoRA:
    """An adapter strong enough to change answers."""
    generator = torch.Generator().manual_seed(seed)
    identity = LoRA.identity(backbone.shape.select(modules, None), rank, 2.0 * rank, generator=generator)
    factors = {
        n: LoraFactors(f.a, torch.empty_like(f.b).normal_(generator=generator))
        for n, f in identity.factors.items()
    }
    return LoRA(factors, identity.alpha)


@torch.no_grad()
def plainest_ids(backbone: Backbone, request: str, lora: LoRA | None = None, limit: int = LIMIT) -> list[int]:
    ids = backbone.encode_prompt(request)
    start = len(ids)
    with attach(backbone.model, lora) if lora else nullcontext():
        while len(ids) < start + limit:
            token = int(backbone.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if token in (backbone.end_of_turn, backbone.tokenizer.eos_token_id):
                break
            ids.append(token)
    return ids[start:]


def plainest(backbone: Backbone, request: str, lora: LoRA | None = None) -> str:
    return backbone.decode(plainest_ids(backbone, request, lora))


def end_answers_early(monkeypatch: pytest.MonkeyPatch, backbone: Backbone, loras: list[LoRA | None]) -> None:
    """Make a token of some answers the end of turn, so that they leave the batch at other steps."""
    answers = [plainest_ids(backbone, request, lora) for request, lora in zip(REQUESTS, loras, strict=True)]
    counts = Counter(token for answer in answers for token in set(answer))
    token = next((t for t, n in counts.most_common() if n < len(answers)), backbone.end_of_turn)
    monkeypatch.setattr(Backbone, "end_of_turn", property(lambda self: token))


@pytest.mark.parametrize("family", [*FAMILIES, *MOE_FAMILIES])
def test_batched_is_one_by_one(
    family: str, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone(str(tiny_models[family]), device="cpu", dtype=torch.float32)
    end_answers_early(monkeypatch, backbone, [None] * len(REQUESTS))
    answers = generate_greedy(backbone, REQUESTS, max_new_tokens=LIMIT, batch_size=4)
    assert answers == [plainest(backbone, request) for request in REQUESTS]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_request_with_its_own_adapter(
    family: str, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone(str(tiny_models[family]), device="cpu", dtype=torch.float32)
    loras = [noise(backbone, seed, rank=1 + seed % 3) for seed in range(len(REQUESTS))]
    end_answers_early(monkeypatch, backbone, list(loras))
    answers = generate_greedy(backbone, REQUESTS, loras, max_new_tokens=LIMIT, batch_size=4)
    assert answers == [plainest(backbone, r, lora) for r, lora in zip(REQUESTS, loras, strict=True)]
    assert answers != [plainest(backbone, request) for request in REQUESTS]


def test_adapters_of_one_batch_do_not_touch_each_other(llama: Backbone) -> None:
    loras = [noise(llama, seed) for seed in range(len(REQUESTS))]
    before = generate_greedy(llama, REQUESTS, loras, max_new_tokens=LIMIT)
    loras[2] = noise(llama, 99)
    after = generate_greedy(llama, REQUESTS, loras, max_new_tokens=LIMIT)
    assert [b == a for b, a in zip(before, after, strict=True)] == [i != 2 for i in range(len(REQUESTS))]


def test_adapters_of_one_batch_may_adapt_different_modules(llama: Backbone) -> None:
    loras = [noise(llama, 0), noise(llama, 1, rank=4, modules=("o_proj",))]
    answers = generate_greedy(llama, REQUESTS[:2], loras, max_new_tokens=LIMIT)
    assert answers == [plainest(llama, r, lora) for r, lora in zip(REQUESTS, loras, strict=False)]


def test_one_adapter_for_all_is_that_adapter_attached(llama: Backbone) -> None:
    lora = noise(llama, 0)
    with attach(llama.model, lora):
        attached = generate_greedy(llama, REQUESTS, max_new_tokens=LIMIT)
    assert generate_greedy(llama, REQUESTS, lora, max_new_tokens=LIMIT) == attached
    assert generate_greedy(llama, REQUESTS, max_new_tokens=LIMIT) != attached


def test_identity_adapters_change_nothing(llama: Backbone) -> None:
    identity = LoRA.identity(llama.shape.select(("q_proj",), None), 2, 4.0)
    bare = generate_greedy(llama, REQUESTS, max_new_tokens=LIMIT)
    assert generate_greedy(llama, REQUESTS, [identity] * len(REQUESTS), max_new_tokens=LIMIT) == bare


@pytest.mark.parametrize("batch_size", [1, 2, 5, 32])
def test_the_batch_size_changes_nothing(llama: Backbone, batch_size: int) -> None:
    answers = generate_greedy(llama, REQUESTS, max_new_tokens=LIMIT, batch_size=batch_size)
    assert answers == [plainest(llama, request) for request in REQUESTS]


def test_the_models_own_generation_settings_are_left_out(
    llama: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = generate_greedy(llama, REQUESTS, max_new_tokens=LIMIT)
    for name, value in {"repetition_penalty": 50.0, "do_sample": True, "temperature": 9.0}.items():
        monkeypatch.setattr(llama.model.generation_config, name, value)
    assert generate_greedy(llama, REQUESTS, max_new_tokens=LIMIT) == plain


@pytest.mark.parametrize("limit", [1, 3])
def test_answers_stop_at_the_limit(llama: Backbone, limit: int) -> None:
    ids = [plainest_ids(llama, request, limit=limit) for request in REQUESTS]
    assert generate_greedy(llama, REQUESTS, max_new_tokens=limit) == [llama.decode(i) for i in ids]


def test_no_requests_have_no_answers(llama: Backbone) -> None:
    assert generate_greedy(llama, []) == []
    assert generate_greedy(llama, [], []) == []


def test_a_request_beyond_the_models_positions_is_refused(llama: Backbone) -> None:
    with pytest.raises(UsageError, match=r"request of \d+ tokens .* 512 positions .* shorten"):
        generate_greedy(llama, ["a" * 600])


def test_wrong_numbers_are_refused(llama: Backbone) -> None:
    with pytest.raises(UsageError, match="got 1 adapters for 2 requests"):
        generate_greedy(llama, ["a", "b"], [noise(llama, 0)])
    with pytest.raises(UsageError, match="max_new_tokens 0"):
        generate_greedy(llama, ["a"], max_new_tokens=0)
    with pytest.raises(UsageError, match="batch_size 0"):
        generate_greedy(llama, ["a"], batch_size=0)
    with pytest.raises(UsageError, match="must be a list"):
        generate_greedy(llama, "a")


def test_adapters_that_do_not_fit_are_refused_and_nothing_stays_attached(llama: Backbone) -> None:
    plain = generate_greedy(llama, ["a"], max_new_tokens=LIMIT)
    wrong = LoRA({"model.layers.0.self_attn.q_proj": LoraFactors(torch.zeros(1, 7), torch.zeros(7, 1))}, 1.0)
    with pytest.raises(UsageError, match=r"q_proj is \(32, 32\)"):
        generate_greedy(llama, ["a"], wrong)
    with pytest.raises(UsageError, match=r"q_proj is \(32, 32\)"):
        generate_greedy(llama, ["a", "b"], [noise(llama, 0), wrong])
    assert generate_greedy(llama, ["a"], max_new_tokens=LIMIT) == plain
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in llama.model.modules())
