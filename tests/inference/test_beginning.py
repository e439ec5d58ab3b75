"""Losses behind a beginning that is read once are those of whole rows, on every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from shoal.adapters.hooks import attach
from shoal.adapters.lora import BatchedLoRA, LoraFactors
from shoal.inference.beginning import common_beginning, losses_under_each
from shoal.inference.forward import answer_losses, pad_sequences
from shoal.models.backbone import Backbone, load_backbone
from tests.conftest import COMMON, FAMILIES, byte_tokenizer

COMMONLY = list(range(40, 64))
PAIRS = [
    ([*COMMONLY, 7, 8, 9, 10, 11], [12, 13, 14]),
    ([*COMMONLY, 20, 21], [22]),
    ([*COMMONLY, 30, 31, 32, 33], [31, 32, 33, 34, 35, 36, 37, 38, 39]),
]
# Positions by a bias that grows with the distance, and windows shorter than the beginning.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "alibi": ("bloom", {"hidden_size": 32, "n_layer": 3, "n_head": 4, "initializer_range": 0.1}),
    "windows": ("mistral", {**COMMON, "sliding_window": 6}),
    "some windows": (
        "gemma3_text",
        {**COMMON, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 6},
    ),
}
STATES = {
    **{name: COMMON[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")},
    **{name: COMMON[name] for name in ("num_attention_heads", "num_key_value_heads")},
    "layer_types": ["conv", "full_attention", "conv"],
}


def saved(family: str, settings: dict[str, Any], folder: Path) -> Backbone:
    tokenizer = byte_tokenizer()
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **ids, **settings)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_backbone(str(folder), device="cpu", dtype=torch.float32)


def two_adapters(backbone: Backbone) -> BatchedLoRA:
    """Of every layer, with an effect."""
    return BatchedLoRA(
        {
            t.name: LoraFactors(torch.randn(2, 3, t.in_features) / 4, torch.randn(2, t.out_features, 3) / 4)
            for t in backbone.shape.select(("q_proj", "k_proj", "o_proj"), None)
        },
        3.0,
    )


def columns_read(model: nn.Module) -> list[tuple[int, ...]]:
    """Sizes of the batches that a model is given from now on."""
    sizes: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return sizes


@torch.no_grad()
def whole_rows(backbone: Backbone) -> Tensor:
    batch = pad_sequences(PAIRS * 2, backbone.end_of_turn, backbone.device)
    return answer_losses(backbone, batch).double().view(2, -1)


def check(backbone: Backbone) -> None:
    with attach(backbone.model, two_adapters(backbone)):
        wanted = whole_rows(backbone)
        sizes = columns_read(backbone.model)
        losses, tokens = losses_under_each(backbone, PAIRS, 2)
    assert not torch.allclose(wanted[0], wanted[1], atol=1e-2)
    torch.testing.assert_close(losses, wanted, atol=1e-5, rtol=1e-5)
    assert sizes == [(2, 24), (6, 12)] and tokens == 2 * (24 + 8 + 3 + 13)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_whole_rows(family: str, tiny_models: dict[str, Path]) -> None:
    check(load_backbone(str(tiny_models[family]), device="cpu", dtype=torch.float32))


@pytest.mark.parametrize("kind", OTHERS)
def test_windows_and_biases_of_attention_see_the_beginning(kind: str, tmp_path: Path) -> None:
    check(saved(*OTHERS[kind], tmp_path))


def test_layers_with_running_states_read_whole_rows(tmp_path: Path) -> None:
    backbone = saved("lfm2", STATES, tmp_path)
    wanted, sizes = whole_rows(backbone)[:1], columns_read(backbone.model)
    losses, tokens = losses_under_each(backbone, PAIRS)
    torch.testing.assert_close(losses, wanted, atol=1e-5, rtol=1e-5)
    assert sizes == [(3, 37)] and tokens == sum(len(p) + len(c) for p, c in PAIRS)


def test_prompts_without_a_common_beginning_are_read_whole(tiny_llama: Path) -> None:
    backbone = load_backbone(str(tiny_llama), device="cpu", dtype=torch.float32)
    pairs = [([1, 2], [3]), ([4], [5])]
    sizes = columns_read(backbone.model)
    losses, _ = losses_under_each(backbone, pairs)
    batch = pad_sequences(pairs, backbone.end_of_turn, backbone.device)
    torch.testing.assert_close(losses[0], answer_losses(backbone, batch).double(), atol=1e-5, rtol=1e-5)
    assert sizes[0] == (2, 3)


def test_a_beginning_leaves_a_token_of_every_prompt() -> None:
    assert common_beginning([(1, 2, 3), (1, 2, 4)]) == [1, 2]
    assert common_beginning([(1, 2), (1, 2, 4)]) == [1] and common_beginning([(1,), (1,)]) == []
    assert common_beginning([(), (1,)]) == [] == common_beginning([(1, 2), (3, 2)])
