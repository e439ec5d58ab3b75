"""What the backbone makes of a description: every layer's own states and outputs, alone as in any batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shoal.models.backbone import load_backbone
from shoal.text_to_lora.encoders.states import MAX_TOKENS, StateReader

TEXTS = ["Sort the words.", "Say whether the review of a film is positive or negative.", "Count."]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt"])
def test_a_text_is_read_alone_as_in_a_batch(family: str, tiny_models: dict[str, Path]) -> None:
    backbone = load_backbone(str(tiny_models[family]), dtype=torch.float32)
    targets = backbone.shape.targets[:1]
    reader, width = StateReader(backbone, targets), targets[0].in_features + targets[0].out_features
    together = reader.read(TEXTS)
    for text, states in zip(TEXTS, together, strict=True):
        assert states.shape == (1, len(backbone.encode_text(text)), width)
        torch.testing.assert_close(states, reader.read([text])[0], atol=1e-4, rtol=1e-4)
    assert reader.read([]) == []


def test_states_are_what_each_layers_first_map_is_given(tiny_llama: Path) -> None:
    backbone = load_backbone(str(tiny_llama), dtype=torch.float32)
    (read,) = StateReader(backbone, backbone.shape.select(("v_proj",), None)).read(TEXTS[:1])
    ids = torch.tensor([backbone.encode_text(TEXTS[0])])
    hidden = backbone.model(ids, output_hidden_states=True).hidden_states
    for layer, module in enumerate(backbone.layers):
        given = module.input_layernorm(hidden[layer])[0]
        expected = torch.cat([given, module.self_attn.v_proj(given)], dim=-1)
        torch.testing.assert_close(read[layer], expected)


def test_layers_without_a_module_of_a_type_have_zeros_for_it(tiny_llama: Path) -> None:
    backbone = load_backbone(str(tiny_llama), dtype=torch.float32)
    last = backbone.shape.num_layers - 1
    (target,) = (t for t in backbone.shape.targets if t.type == "mlp.down_proj" and t.layer == last)
    (read,) = StateReader(backbone, [target]).read(TEXTS[:1])
    width = backbone.shape.targets[0].in_features
    made = read[..., width:]
    assert made.shape[-1] == target.out_features and (read[..., :width] != 0).any(-1).all()
    assert not made[:last].any() and made[last].any()


def test_a_long_text_is_read_as_far_as_the_limit(tiny_llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    backbone = load_backbone(str(tiny_llama), dtype=torch.float32)
    (states,) = StateReader(backbone, backbone.shape.targets).read(["word " * 1000])
    assert states.shape[1] == MAX_TOKENS
    assert f"is read as far as {MAX_TOKENS} of its " in caplog.text
