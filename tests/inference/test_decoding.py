"""Rows that come and go: at every step each has the logits that it has alone, in one pass without a cache."""

import gc
import weakref
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.adapters.base import Adapter
from shoal.adapters.decomposition import ModelBasis
from shoal.adapters.kinds import attach_adapter
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.adapters.svf import ExpertVector
from shoal.adapters.svf_cache import decompose_model
from shoal.errors import UsageError
from shoal.inference.decoding import Rows
from shoal.inference.kv_cache import SPARE
from shoal.models.backbone import Backbone, load_backbone

TOLERANCE = 1e-4  # of logits, float32: other batches are other orders of summation
ADAPTED = [
    (("q_proj", "v_proj"), 2),
    (("q_proj", "k_proj", "v_proj", "o_proj"), 5),
    (("down_proj",), 1),
    (("up_proj",), 16),
]


class Model:
    """A tiny model with some adaptations of it."""

    def __init__(self, path: Path) -> None:
        self.backbone = load_backbone(str(path), device="cpu", dtype=torch.float32)
        names = [t.name for t in self.backbone.shape.select(("up_proj", "down_proj"), None)]
        self.decompositions = decompose_model(self.backbone.model, names)
        self.basis = ModelBasis(self.backbone.model, self.decompositions)
        self.adaptations: list[Adapter | None] = [None, *(noise(self.backbone, *a) for a in ADAPTED)]
        self.adaptations += [
            ExpertVector({n: torch.linspace(0, last, d.s.numel()) for n, d in self.decompositions.items()})
            for last in (2.0, 3.0)
        ]

    @torch.no_grad()
    def logits(self, ids: list[int], adapter: Adapter | None) -> torch.Tensor:
        context = nullcontext()
        if adapter is not None:
            context = attach_adapter(self.backbone.model, adapter, self.decompositions)
        with context:
            return self.backbone.model(torch.tensor([ids]), use_cache=False).logits[0, -1]

    def check(self, logits: torch.Tensor, texts: list[list[int]], chosen: list[Adapter | None]) -> None:
        for own, ids, adapter in zip(logits, texts, chosen, strict=True):
            assert torch.allclose(own, self.logits(ids, adapter), atol=TOLERANCE, rtol=0)


def noise(backbone: Backbone, modules: tuple[str, ...], rank: int) -> LoRA:
    identity = LoRA.identity(backbone.shape.select(modules, None), rank, 2.0 * rank)
    factors = {n: LoraFactors(f.a, torch.randn_like(f.b)) for n, f in identity.factors.items()}
    return LoRA(factors, identity.alpha)


@pytest.fixture(scope="session", params=["llama", "gpt2", "gemma2", "opt"])
def model(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Model:
    return Model(tiny_models[request.param])


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_row_has_the_logits_that_it_has_alone(model: Model, data: st.DataObject) -> None:
    rows = Rows(model.backbone, basis=model.basis)
    texts: list[list[int]] = []
    chosen: list[Adapter | None] = []

    tokens = st.integers(0, 255)
    for _ in range(data.draw(st.integers(1, 6), label="rounds")):
        if data.draw(st.booleans(), label="join") or not texts:
            prompts = data.draw(
                st.lists(st.lists(tokens, min_size=1, max_size=40), min_size=1, max_size=3), label="prompts"
            )
            adapters = [data.draw(st.sampled_from(model.adaptations)) for _ in prompts]
            more = Rows(model.backbone, prompts, adapters, basis=model.basis)
            while more.unread:
                logits = more.read(data.draw(st.sampled_from([None, 1, 7])))
            model.check(logits, prompts, adapters)
            picks = data.draw(st.lists(st.sampled_from(range(len(prompts))), min_size=1, max_size=4))
            rows.join(more, picks)
            texts += [list(prompts[pick]) for pick in picks]
            chosen += [adapters[pick] for pick in picks]
        for _ in range(data.draw(st.integers(0, 3), label="drops")):
            if len(texts) > 1:
                row = data.draw(st.integers(0, len(texts) - 1))
                rows.drop(row)
                for listed in (texts, chosen):
                    listed[row] = listed[-1]
                    listed.pop()
        for _ in range(data.draw(st.integers(1, 4), label="steps")):
            appended = [data.draw(tokens) for _ in texts]
            for ids, token in zip(texts, appended, strict=True):
                ids.append(token)
            model.check(rows.step(torch.tensor(appended)), texts, chosen)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.backbone.model.modules())


def test_columns_that_no_row_needs_are_given_up(tiny_llama: Path) -> None:
    backbone = load_backbone(str(tiny_llama), device="cpu", dtype=torch.float32)
    rows = Rows(backbone, [[1] * 20])
    rows.read()
    for number in range(300):
        rows.step(torch.tensor([number % 256]))
    long = rows.cache.end
    other = Rows(backbone, [[5, 6]])
    other.read()
    rows.join(other, [0])
    rows.drop(0)
    for number in range(3 * SPARE):
        logits = rows.step(torch.tensor([number % 200]))
    plain = backbone.model(torch.tensor([[5, 6, *(n % 200 for n in range(3 * SPARE))]])).logits[0, -1]
    assert torch.allclose(logits[0], plain, atol=TOLERANCE, rtol=0)
    assert long > 300 and rows.cache.end < long + 3 * SPARE


def test_what_a_broken_row_left_does_not_reach_the_next_one(tiny_llama: Path) -> None:
    backbone = load_backbone(str(tiny_llama), device="cpu", dtype=torch.float32)
    broken = noise(backbone, ("v_proj",), 1)
    next(iter(broken.factors.values())).b.fill_(float("nan"))
    rows = Rows(backbone, [[1] * 9, [2] * 12], [None, broken])
    assert rows.read().isfinite().all(1).tolist() == [True, False]
    rows.drop(1)
    other = Rows(backbone, [[3, 4]])
    other.read()
    rows.join(other, [0])
    logits = rows.step(torch.tensor([5, 6]))
    for own, ids in zip(logits, [[1] * 9 + [5], [3, 4, 6]], strict=True):
        assert torch.allclose(own, backbone.model(torch.tensor([ids])).logits[0, -1], atol=TOLERANCE, rtol=0)


def test_adaptations_that_do_not_fit_are_refused(model: Model) -> None:
    expert = model.adaptations[-1]
    assert isinstance(expert, ExpertVector)
    with pytest.raises(UsageError, match="is not decomposed"):
        Rows(model.backbone, [[1]], [expert])
    with pytest.raises(UsageError, match="batch of 2 experts"):
        Rows(model.backbone, [[1]], [ExpertVector.stack([expert, expert])], basis=model.basis)


def test_what_a_batch_held_is_free_as_soon_as_it_is_dropped(tiny_models: dict[str, Path]) -> None:
    """Without the garbage collector, which may come a hundred batches later."""
    backbone = load_backbone(str(tiny_models["llama"]), device="cpu", dtype=torch.float32)
    gc.collect()
    gc.disable()
    try:
        rows, others = Rows(backbone, [[1, 2, 3], [4]]), Rows(backbone, [[5, 6]])
        rows.read()
        others.read()
        rows.join(others, [0])
        rows.step(torch.tensor([1, 2, 3]))
        held = [weakref.ref(layer.keys) for batch in (rows, others) for layer in batch.cache.cache.layers]
        assert len(held) == 6 and all(buffer() is not None for buffer in held)
        del rows, others
        assert not any(buffer() is not None for buffer in held)
    finally:
        gc.enable()
