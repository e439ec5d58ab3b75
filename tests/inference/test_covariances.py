"""Covariances of modules' inputs, measured under an adapter."""

from __future__ import annotations

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


def test_what_is_no_linear_map_is_refused(tiny_llama: Path) -> None:
    backbone = load_backbone(str(tiny_llama), dtype=torch.float32)
    lora = LoRA.identity(backbone.shape.select(("q_proj",), None), 2, 4.0)
    for name in ("model.embed_tokens", "model.layers.0.mlp.experts.gate_up_proj"):
        with pytest.raises(UsageError, match="is no linear map"):
            input_covariances(backbone, lora, TEXTS, [name])
