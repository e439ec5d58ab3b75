"""Covariances of modules' inputs, measured under an adapter."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from shoal.adapters.lora import LoRA
from shoal.errors import UsageError
from shoal.inference.covariances import input_covariances
from shoal.models.backbone import load_backbone
from tests.fixtures.merging import random_lora

TEXTS = ["one text", "another, longer text"]


def test_the_first_layer_sees_the_same_under_any_adapter_and_the_last_does_not(tiny_llama: Path) -> None:
    backbone = load_backbone(str(tiny_llama), dtype=torch.float32)
    sizes = {t.name: (t.in_features, t.out_features) for t in backbone.shape.select(("q_proj",), None)}
    first, *_, last = sizes
    plain = LoRA.identity(backbone.shape.select(("q_proj",), None), 2, 4.0)
    before, after = (input_covariances(backbone, lora, TEXTS) for lora in (plain, random_lora(0, sizes)))
    torch.testing.assert_close(after[first], before[first])
    assert not torch.allclose(after[last], before[last])
    assert float(before[last].diagonal().min()) > 0 and torch.equal(before[last], before[last].T)


def test_what_all_prompts_begin_with_does_not_count(tiny_llama: Path) -> None:
    backbone = load_backbone(str(tiny_llama), dtype=torch.float32)
    lora = LoRA.identity(backbone.shape.select(("q_proj",), None)[:1], 2, 4.0)
    (name,) = lora.factors
    prompts = backbone.encode_prompts(TEXTS)
    shared = len(os.path.commonprefix(prompts))
    inputs = []
    with torch.no_grad():
        hook = backbone.model.get_submodule(name).register_forward_pre_hook(
            lambda module, given: inputs.append(given[0][0, shared:])
        )
        for prompt in prompts:
            backbone.model(input_ids=torch.tensor([prompt]))
        hook.remove()
    own = torch.cat(inputs)
    assert 0 < shared < min(map(len, prompts))
    torch.testing.assert_close(input_covariances(backbone, lora, TEXTS)[name], own.T @ own / len(own))


def test_what_is_no_linear_map_is_refused(tiny_llama: Path) -> None:
    backbone = load_backbone(str(tiny_llama), dtype=torch.float32)
    lora = LoRA.identity(backbone.shape.select(("q_proj",), None), 2, 4.0)
    for name in ("model.embed_tokens", "model.layers.0.mlp.experts.gate_up_proj"):
        with pytest.raises(UsageError, match="is no linear map"):
            input_covariances(backbone, lora, TEXTS, [name])
