"""The cache of the frozen layers: the model's numbers, the same bits in any company, within its bound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch

from shoal.inference.forward import Sequences, hidden_before, pad_sequences
from shoal.models.backbone import Backbone
from shoal.training import prefix_cache
from shoal.training.batches import TokenisedExample, tokenise
from shoal.training.prefix_cache import PrefixCache

FAMILIES = ("llama", "gemma2", "gpt2", "gpt_neox", "opt")
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def batch_of(examples: Sequence[TokenisedExample], backbone: Backbone) -> Sequences:
    pairs = [(e.prompt, e.completion) for e in examples]
    return pad_sequences(pairs, backbone.end_of_turn, backbone.device)


def examples_of(toy: ModuleType, backbone: Backbone) -> list[TokenisedExample]:
    return [e for row in tokenise(toy.toy_tasks(2), backbone, 512).examples for e in row]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every pass through the frozen layers."""
    rows: list[int] = []

    def counted(backbone: Backbone, batch: Sequences, layer: int) -> torch.Tensor:
        rows.append(len(batch.ids))
        return hidden_before(backbone.model, batch, layer)

    monkeypatch.setattr(prefix_cache, "hidden_before", counted)
    return rows


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_states_are_the_models(family: str, toy: ModuleType, tiny_models: dict[str, Path]) -> None:
    backbone = toy.toy_backbone(tiny_models[family])
    examples = examples_of(toy, backbone)
    cache = PrefixCache(backbone, 2)
    for chosen in (examples[:4], examples[2:9]):
        batch = batch_of(chosen, backbone)
        hidden = cache.hidden(chosen, batch)
        assert hidden is not None and hidden.dtype == backbone.dtype
        torch.testing.assert_close(
            hidden[batch.real], hidden_before(backbone.model, batch, 2)[batch.real], **CLOSE
        )
        assert not hidden[~batch.real].any()


def test_bits_do_not_depend_on_company(toy: ModuleType, backbone: Backbone) -> None:
    """Otherwise a resumed run, whose cache is empty, would differ from one that was not interrupted."""
    examples = examples_of(toy, backbone)
    example, others = examples[0], examples[1:]
    alone = PrefixCache(backbone, 1).hidden([example], batch_of([example], backbone))
    crowd = [*others[:6], example]
    full = PrefixCache(backbone, 1)
    full.hidden(others[:3], batch_of(others[:3], backbone))
    together = full.hidden(crowd, batch_of(crowd, backbone))
    assert alone is not None and together is not None
    assert torch.equal(together[-1, : example.length], alone[0])


def test_an_example_is_computed_once(toy: ModuleType, backbone: Backbone, computed: list[int]) -> None:
    examples = examples_of(toy, backbone)[:4]
    cache = PrefixCache(backbone, 1)
    twice = [*examples, examples[0]]  # as a batch of the contrastive term has it
    first = cache.hidden(twice, batch_of(twice, backbone))
    assert sum(computed) == 4
    again = cache.hidden(twice, batch_of(twice, backbone))
    assert sum(computed) == 4 and first is not None and again is not None and torch.equal(first, again)


def test_the_bound_is_in_bytes(toy: ModuleType, backbone: Backbone, computed: list[int]) -> None:
    examples = examples_of(toy, backbone)[:6]
    sizes = [e.length * backbone.model.config.hidden_size * 4 for e in examples]
    batch = batch_of(examples, backbone)
    unbounded = PrefixCache(backbone, 1).hidden(examples, batch)
    computed.clear()
    cache = PrefixCache(backbone, 1, limit=sum(sizes[:3]))
    for passes in (1, 2):
        hidden = cache.hidden(examples, batch)
        kept = sum(t.untyped_storage().nbytes() for t in cache._kept.values())
        assert 0 < kept <= sum(sizes[:3])
        assert hidden is not None and unbounded is not None and torch.equal(hidden, unbounded)
        assert sum(computed) == (6 if passes == 1 else 12 - len(cache._kept))


def test_without_a_frozen_layer_there_is_nothing_to_keep(toy: ModuleType, backbone: Backbone) -> None:
    examples = examples_of(toy, backbone)[:2]
    assert PrefixCache(backbone, 0).hidden(examples, batch_of(examples, backbone)) is None


def test_accelerators_compute_a_batch_at_once(
    toy: ModuleType, backbone: Backbone, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = examples_of(toy, backbone)[:5]
    batch = batch_of(examples, backbone)
    monkeypatch.setattr(prefix_cache, "COMPUTED_ALONE", ())
    grouped = PrefixCache(backbone, 1).hidden(examples, batch)
    assert computed == [5] and grouped is not None
    monkeypatch.undo()
    alone = PrefixCache(backbone, 1).hidden(examples, batch)
    torch.testing.assert_close(grouped, alone, **CLOSE)
