"""Shapes from configurations: roles map onto every family's own names, and no weight is ever read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from transformers import AutoModelForCausalLM, BertConfig, T5Config

from shoal.adapters.lora import LoRA
from shoal.errors import ShoalError, UsageError
from shoal.models.known import DEFAULT_HUB_ID, KNOWN_MODELS
from shoal.models.shapes import ROLES, BackboneShape, load_shape, on_meta, shape_of
from shoal.models.sources import DEFAULT_MODEL, find_model, read_config

LLAMA_LIKE = tuple(f"self_attn.{role}" for role in ("q_proj", "k_proj", "v_proj", "o_proj"))
ATTENTION = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"), LLAMA_LIKE),
    "gpt2": ("attn.c_attn", "attn.c_proj"),
    "gpt_neox": ("attention.query_key_value", "attention.dense"),
    "opt": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    "phi": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense"),
    **dict.fromkeys(("mixtral", "qwen3_moe", "gpt_oss"), LLAMA_LIKE),
    "deepseek_v2": ("self_attn.q_proj", "self_attn.kv_b_proj", "self_attn.o_proj"),
    "deepseek_v3": ("self_attn.q_b_proj", "self_attn.kv_b_proj", "self_attn.o_proj"),
}
FEED_FORWARD = {
    "llama": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    "gpt2": ("mlp.c_fc", "mlp.c_proj"),
    "gpt_neox": ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    "opt": ("fc1", "fc2"),
    "phi": ("mlp.fc1", "mlp.fc2"),
}
GUIDE_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.fixture
def shape(tiny_llama: Path) -> BackboneShape:
    return load_shape(str(tiny_llama))


def config_only(source: Path, directory: Path, **changes: Any) -> str:
    """A model directory that holds a configuration and nothing else; None takes a key out."""
    config = {**json.loads((source / "config.json").read_text()), **changes}
    directory.mkdir()
    kept = {key: value for key, value in config.items() if key not in changes or value is not None}
    (directory / "config.json").write_text(json.dumps(kept))
    return str(directory)


@pytest.mark.parametrize("family", ATTENTION)
def test_roles_map_onto_the_names_of_each_family(family: str, tiny_models: dict[str, Path]) -> None:
    shape = load_shape(str(tiny_models[family]))
    chosen = shape.select(GUIDE_MODULES, None)
    assert {t.type for t in chosen} == set(ATTENTION[family])
    assert len(chosen) == len({t.name for t in chosen}) == 3 * len(ATTENTION[family])
    assert {t.layer for t in chosen} == {0, 1, 2}
    assert all(t.fan_in_fan_out == (family == "gpt2") for t in chosen)


@pytest.mark.parametrize("family", FEED_FORWARD)
def test_feed_forward_roles(family: str, tiny_models: dict[str, Path]) -> None:
    roles = ("gate_proj", "up_proj", "down_proj") if family == "llama" else ("up_proj", "down_proj")
    chosen = load_shape(str(tiny_models[family])).select(roles, 1)
    assert {t.type for t in chosen} == set(FEED_FORWARD[family])


@pytest.mark.parametrize("family", ATTENTION)
def test_a_configuration_alone_gives_the_shape_of_the_model(
    family: str, tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_models[family])

    def read(*arguments: object, **named: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(safetensors, "safe_open", read)
    name = config_only(tiny_models[family], tmp_path / "config")
    shape = load_shape(name)
    assert shape == shape_of(model, name)
    built = on_meta(read_config(find_model(name)), name)
    assert {p.device for p in built.parameters()} == {torch.device("meta")}  # nor is memory taken for one
    assert shape.model_type == family and shape.num_layers == 3
    for target in shape.targets:
        weight = model.get_submodule(target.name).weight
        stored = (
            (target.in_features, target.out_features)
            if target.fan_in_fan_out
            else (target.out_features, target.in_features)
        )
        assert weight.shape == stored


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_models_of_the_documentation_need_no_hub(name: str) -> None:
    shape = load_shape(name)
    assert shape.base_model == name
    assert LoRA.identity(shape.select(GUIDE_MODULES, 8), 16, 32.0).rank == 16


def test_shape_of_the_guides_example() -> None:
    small, medium = load_shape("microsoft/DialoGPT-small"), load_shape("microsoft/DialoGPT-medium")
    assert (small.model_type, small.num_layers, medium.num_layers) == ("gpt2", 12, 24)
    fused = small.select(("q_proj", "k_proj", "v_proj"), 1)
    assert [(t.name, t.in_features, t.out_features) for t in fused] == [
        ("transformer.h.11.attn.c_attn", 768, 2304)
    ]
    assert medium.select(("o_proj",), 1)[0].out_features == 1024


def test_the_default_has_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
    assert load_shape() == load_shape(DEFAULT_MODEL) == load_shape(DEFAULT_HUB_ID)
    assert load_shape().base_model == DEFAULT_HUB_ID
    assert not (tmp_path / "cache").exists()


def test_a_directory_goes_before_a_known_name(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_llama, tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    assert load_shape("gpt2").model_type == "llama"


def test_select_takes_the_last_layers_and_keeps_the_models_order(shape: BackboneShape) -> None:
    chosen = shape.select(("v_proj", "q_proj"), 2)
    names = [f"model.layers.{layer}.self_attn.{role}" for layer in (1, 2) for role in ("q_proj", "v_proj")]
    assert [t.name for t in chosen] == names
    assert chosen == shape.select(("self_attn.q_proj", "self_attn.v_proj"), 2)


def test_select_takes_the_models_own_names(tiny_models: dict[str, Path]) -> None:
    shape = load_shape(str(tiny_models["gpt2"]))
    assert {t.type for t in shape.select(("c_proj",), 1)} == {"attn.c_proj", "mlp.c_proj"}
    assert {t.type for t in shape.select(("attn.c_proj",), 1)} == {"attn.c_proj"}


@pytest.mark.parametrize("layers", [0, -1, 4])
def test_layers_that_the_model_has_not(shape: BackboneShape, layers: int) -> None:
    with pytest.raises(
        UsageError, match=rf"cannot adapt {layers} layers .* which has 3; .* 1\.\.3"
    ) as caught:
        shape.select(("q_proj",), layers)
    assert "\n" not in str(caught.value)


def test_experts_are_no_target_modules(tiny_models: dict[str, Path]) -> None:
    shape = load_shape(str(tiny_models["mixtral"]))
    for name in ("down_proj", "mlp.experts.down_proj", "mlp.gate"):
        with pytest.raises(
            UsageError, match=f"'{name}' .its experts are not trained here.; choose from self"
        ):
            shape.select((name,), None)


def test_modules_that_the_model_has_not(shape: BackboneShape) -> None:
    with pytest.raises(UsageError, match="no target module 'nope'; choose from .*self_attn.q_proj.* q_proj"):
        shape.select(("q_proj", "nope"), None)
    with pytest.raises(UsageError, match="no target module '_proj'"):
        shape.select(("_proj",), None)  # a name is matched whole
    with pytest.raises(UsageError, match=f"no target modules are named; choose .*{', '.join(ROLES)}"):
        shape.select((), None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "foo"}, "model type `foo`"),
        ({"model_type": None}, "model_type"),
        ({"hidden_size": "abc"}, "expected int, got str"),
        ({"num_attention_heads": 0}, "zero"),
        ({"hidden_act": "nope"}, "'nope'"),
        ({"num_hidden_layers": 0}, "no list of 0 decoder layers"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "not a causal language model"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_broken_configurations(
    changes: dict[str, Any], message: str, tiny_llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(ShoalError, match=message) as caught:
        load_shape(config_only(tiny_llama, tmp_path / "model", **changes))
    assert not isinstance(caught.value, UsageError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", b"\xff\xfe\x00"])
def test_configurations_that_are_no_json_object(content: str | bytes, tmp_path: Path) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(ShoalError, match="cannot read the configuration") as caught:
        load_shape(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("named", [True, False], ids=["with its class", "without"])
@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_encoders_are_not_causal(
    kind: str, named: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = BertConfig() if kind == "bert" else T5Config()
    classes = {"bert": "BertForMaskedLM", "t5": "T5ForConditionalGeneration"}
    config.architectures = [classes[kind]] if named else None
    config.save_pretrained(tmp_path)
    with pytest.raises(ShoalError, match=f"is a {kind} model .*not a causal language model; choose"):
        load_shape(str(tmp_path))
    assert capfd.readouterr().err == ""


def test_code_of_a_model_is_never_run(tiny_llama: Path, tmp_path: Path) -> None:
    classes = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    name = config_only(tiny_llama, tmp_path / "model", model_type="evil", auto_map=classes)
    (tmp_path / "model" / "evil.py").write_text("raise AssertionError('the code of a model was run')")
    with pytest.raises(ShoalError, match="cannot read the configuration"):
        load_shape(name)
