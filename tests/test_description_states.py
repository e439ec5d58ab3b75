"""What the backbone makes of a description: every layer's own states, alone as in any batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shoal.backbone import load_backbone
from shoal.description_states import MAX_TOKENS, StateReader

TEXTS = ["Sort the words.", "Say whether the review of a film is positive or negative.", "Count."]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt"])
def test_a_text_is_read_alone_as_in_a_batch(family: str, tiny_models: dict[str, Path]) -> None:
    backbone = load_backbone(str(tiny_models[family]), dtype=torch.float32)
    reader, width = StateReader(backbone), backbone.shape.targets[0].in_features
    together = reader.read(TEXTS)
    for text, states in zip(TEXTS, together, strict=True):
        assert states.shape == (backbone.shape.num_layers, len(backbone.encode_text(text)), width)
        torch.testing.assert_close(states, reader.read([text])[0], atol=1e-4, rtol=1e-4)
    assert reader.read([]) == []


def test_states_are_what_each_layers_first_map_is_given(tiny_llama: Path) -> None:
    backbone = load_backbone(str(tiny_llama), dtype=torch.float32)
    (read,) = StateReader(backbone).read(TEXTS[:1])
    ids = torch.tensor([backbone.encode_text(TEXTS[0])])
    hidden = backbone.model(ids, output_hidden_states=True).hidden_states
    for layer, module in enumerate(backbone.layers):
        torch.testing.assert_close(read[layer], module.input_layernorm(hidden[layer])[0])


def test_a_long_text_is_read_as_far_as_the_limit(tiny_llama: Path) -> None:
    backbone = load_backbone(str(tiny_llama), dtype=torch.float32)
    (states,) = StateReader(backbone).read(["word " * 1000])
    assert states.shape[1] == MAX_TOKENS
