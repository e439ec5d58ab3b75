"""LoRAs of experts as PEFT writes them, now and before `transformers` 5: its logits, or one line why not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from shoal.adapters.card import AdapterCard
from shoal.adapters.files import CONFIG_FILE, WEIGHTS_FILE, load_adapter, save_adapter
from shoal.adapters.hooks import attach, merge
from shoal.adapters.lora import LoRA
from shoal.errors import UsageError
from shoal.models.shapes import BackboneShape, load_shape
from shoal.registry.importing import read_foreign
from tests.fixtures.experts import MOE_FAMILIES, lora_of_all

peft = pytest.importorskip("peft")
# PEFT reads a property that transformers deprecates, and does not see patterns of parameters at work.
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore:The following .* keys:RuntimeWarning"
)

CLOSE = {"atol": 5e-5, "rtol": 1e-4}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
# Settings of PEFT's LoraConfig.
SETTINGS: dict[str, dict[str, Any]] = {
    "all-linear": {"target_modules": "all-linear"},
    "experts alone": {"target_modules": [], "target_parameters": EXPERTS},
    "one parameter": {"target_modules": ["o_proj"], "target_parameters": EXPERTS[1:], "use_rslora": True},
    "routers and experts": {
        "target_modules": ["o_proj"],
        "target_parameters": [*EXPERTS, "mlp.gate.weight", "router.weight"],
    },
    "patterns": {
        "target_modules": ["o_proj"],
        "target_parameters": EXPERTS,
        "rank_pattern": {r".*experts\.down_proj": 3, "o_proj": 1},
        "alpha_pattern": {r"layers\.2\..*gate_up_proj": 9},
    },
    "weights of maps": {
        "target_modules": ["o_proj"],
        "target_parameters": [f"{map}_proj.weight" for map in ("gate", "up", "down", "self_attn.kv_b")],
    },
    "one layer": {"target_modules": [], "target_parameters": [f"model.layers.1.{n}" for n in EXPERTS]},
}


def model_of(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path).requires_grad_(False).eval()


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(torch.randint(0, 250, (3, 9), generator=torch.Generator().manual_seed(1))).logits


def peft_adapter(path: Path, out: Path, **settings: Any) -> Tensor:
    """Writes an adapter of noise with PEFT; its logits."""
    config = peft.LoraConfig(r=2, lora_alpha=6, init_lora_weights=False, task_type="CAUSAL_LM", **settings)
    torch.manual_seed(3)
    wrapped = peft.get_peft_model(model_of(path), config).eval()
    wrapped.save_pretrained(out)
    return logits(wrapped)


WRITTEN = [("mixtral", kind) for kind in SETTINGS if kind != "weights of maps"] + [
    (family, kind) for family in MOE_FAMILIES[1:] for kind in ("all-linear", "routers and experts")
]


@pytest.mark.parametrize(("family", "kind"), WRITTEN)
def test_adapters_of_peft_have_its_logits_both_ways(
    family: str, kind: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    path = tiny_models[family]
    expected, shape = peft_adapter(path, tmp_path / "peft", **SETTINGS[kind]), load_shape(str(path))
    lora = read_foreign(tmp_path / "peft", shape).lora
    model = model_of(path)
    assert (expected - logits(model)).abs().max() > 0.01
    for use in (attach, merge):
        with use(model, lora):
            torch.testing.assert_close(logits(model), expected, **CLOSE)
    save_adapter(tmp_path / "ours", lora, shape=shape, card=AdapterCard(generator="imported", trained=True))
    assert load_adapter(tmp_path / "ours").lora == lora
    again = peft.PeftModel.from_pretrained(model, tmp_path / "ours").eval()
    torch.testing.assert_close(logits(again), expected, **CLOSE)


@pytest.mark.parametrize("only", ["", "shared", "layers.2", "layers.0.mlp.gate_proj"])
@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3"])
def test_maps_that_are_called_as_those_of_experts_once_were_are_loaded_by_peft(
    family: str, only: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    shape = load_shape(str(tiny_models[family]))
    lora = LoRA({n: f for n, f in lora_of_all(shape, 0).factors.items() if only in n}, 4.0)
    save_adapter(tmp_path / "a", lora, shape=shape, card=AdapterCard(generator="imported", trained=True))
    assert load_adapter(tmp_path / "a").lora == lora
    model = model_of(tiny_models[family])
    with attach(model, lora):
        expected = logits(model)
    wrapped = peft.PeftModel.from_pretrained(model, tmp_path / "a").eval()
    torch.testing.assert_close(logits(wrapped), expected, **CLOSE)
    torch.testing.assert_close(logits(wrapped.merge_and_unload()), expected, **CLOSE)


def gradients_of_peft(path: Path, adapter: Path, ids: Tensor, out: Path) -> LoRA:
    """Gradients of the mean loss of tokens by PEFT, in the places of the factors."""
    model = peft.PeftModel.from_pretrained(model_of(path), adapter, is_trainable=True)
    model(ids, labels=ids).loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    tensors = peft.get_peft_model_state_dict(model, state_dict=found)
    out.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out / WEIGHTS_FILE)
    (out / CONFIG_FILE).write_bytes((adapter / CONFIG_FILE).read_bytes())
    return load_adapter(out).lora


@pytest.mark.parametrize("family", MOE_FAMILIES)
def test_gradients_of_experts_routers_and_attention_are_those_of_peft(
    family: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    path, shape = tiny_models[family], load_shape(str(tiny_models[family]))
    card = AdapterCard(generator="imported", trained=True)
    lora = lora_of_all(shape, 0)
    save_adapter(tmp_path / "ours", lora, shape=shape, card=card)
    ids = torch.randint(0, 250, (3, 9), generator=torch.Generator().manual_seed(1))
    theirs = gradients_of_peft(path, tmp_path / "ours", ids, tmp_path / "gradients")
    leaves = [factor.requires_grad_() for pair in lora.factors.values() for factor in pair]
    model = model_of(path)
    with attach(model, lora):
        model(ids, labels=ids).loss.backward()
    assert all(leaf.grad is not None and leaf.grad.abs().max() > 1e-6 for leaf in leaves)
    assert theirs.factors.keys() == lora.factors.keys()
    for name, pair in theirs.factors.items():
        for own, expected in zip(lora.factors[name], pair, strict=True):
            torch.testing.assert_close(own.grad, expected, **CLOSE, msg=lambda said, n=name: f"{n}: {said}")


# Family -> the module of its experts, and the maps of one, as they were called before.
OLD: dict[str, tuple[str, str, tuple[str, str, str]]] = {
    "mixtral": ("mixtral", "block_sparse_moe", ("w1", "w3", "w2")),
    "mixtral renamed": ("mixtral", "mlp", ("w1", "w3", "w2")),
    "qwen3_moe": ("qwen3_moe", "mlp", ("gate_proj", "up_proj", "down_proj")),
    "deepseek_v3": ("deepseek_v3", "mlp", ("gate_proj", "up_proj", "down_proj")),
}
Change = Callable[[dict[str, Tensor]], object]


def old_adapter(
    path: Path, out: Path, block: str, maps: tuple[str, ...], change: Change = lambda tensors: None
) -> BackboneShape:
    """Writes an adapter that names every expert."""
    shape = load_shape(str(path))
    generator = torch.Generator().manual_seed(2)
    tensors = {}
    for parameter in shape.parameters:
        experts, inner, outer = parameter.sizes
        names = {"gate_up_proj": maps[:2], "down_proj": maps[2:]}.get(parameter.type.split(".")[-1], ())
        modules = [f"experts.{e}.{own}" for e in range(experts) for own in names] or ["gate"]
        for module in modules:
            key = f"base_model.model.model.layers.{parameter.layer}.{block}.{module}.lora_"
            tensors[f"{key}A.weight"] = torch.randn(2, inner, generator=generator) * 0.3
            tensors[f"{key}B.weight"] = torch.randn(outer // max(len(names), 1), 2, generator=generator) * 0.3
    change(tensors)
    out.mkdir()
    save_file(tensors, out / WEIGHTS_FILE)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "lora_dropout": 0.0}
    config |= {"target_modules": [*maps, "gate"], "base_model_name_or_path": str(path), "bias": "none"}
    (out / CONFIG_FILE).write_text(json.dumps(config))
    return shape


@pytest.mark.parametrize("kind", OLD)
def test_names_of_single_experts_mean_what_they_mean_to_peft(
    kind: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    family, block, maps = OLD[kind]
    shape = old_adapter(tiny_models[family], tmp_path / "old", block, maps)
    lora = read_foreign(tmp_path / "old", shape).lora
    model = model_of(tiny_models[family])
    base = logits(model)
    with attach(model, lora):
        ours = logits(model)
    assert (ours - base).abs().max() > 0.1
    theirs = peft.PeftModel.from_pretrained(model, tmp_path / "old").eval()
    torch.testing.assert_close(ours, logits(theirs), **CLOSE)


def without(expression: str) -> Change:
    def change(tensors: dict[str, Tensor]) -> None:
        for key in [key for key in tensors if re.search(expression, key)]:
            del tensors[key]

    return change


def moved(tensors: dict[str, Tensor]) -> None:
    for key in [key for key in tensors if ".experts.3." in key]:
        tensors[key.replace(".3.", ".4.")] = tensors.pop(key)


def narrowed(tensors: dict[str, Tensor]) -> None:
    for key in [key for key in tensors if "w1.lora_B" in key]:
        tensors[key] = tensors[key][:-1].contiguous()


UNFIT_SINGLE: dict[str, tuple[Change, str]] = {
    "one is missing": (
        without(r"layers\.1\..*experts\.2\."),
        "lacks expert 2 of model.layers.1.mlp.experts.",
    ),
    "the last is missing": (without(r"experts\.3\."), "lacks expert 3"),
    "half of one is missing": (without(r"experts\.0\.w3"), "lacks expert 0 of .*gate_up_proj"),
    "one too many": (moved, "has expert 4 of .*, .* has 4;"),
    "other sizes": (narrowed, r"expert 0 of the adapter's .*gate_up_proj is 32 x 63 \(in x out\)"),
}


@pytest.mark.parametrize("kind", UNFIT_SINGLE)
def test_single_experts_that_do_not_fit_are_named(
    kind: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    change, message = UNFIT_SINGLE[kind]
    shape = old_adapter(
        tiny_models["mixtral"], tmp_path / "old", "block_sparse_moe", ("w1", "w3", "w2"), change
    )
    with pytest.raises(UsageError, match=message) as caught:
        read_foreign(tmp_path / "old", shape)
    assert "\n" not in str(caught.value)


def test_gates_alone_leave_the_values_half_as_it_is(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    maps = ("w1", "w3", "w2")
    shape = old_adapter(tiny_models["mixtral"], tmp_path / "old", "mlp", maps, without(r"w3|w2|gate"))
    lora = read_foreign(tmp_path / "old", shape).lora
    delta = lora.delta_weight("model.layers.0.mlp.experts.gate_up_proj")
    key = "base_model.model.model.layers.0.mlp.experts.3.w1.lora_"
    tensors = load_file(tmp_path / "old" / WEIGHTS_FILE)
    torch.testing.assert_close(delta[3, :64], 2 * (tensors[f"{key}B.weight"] @ tensors[f"{key}A.weight"]))
    assert not delta[:, 64:].any() and lora.factors.keys() == {
        f"model.layers.{layer}.mlp.experts.gate_up_proj" for layer in range(3)
    }


def rewritten(folder: Path, change: Change, **config: Any) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)
    settings = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(settings | config))


def kept(tensors: dict[str, Tensor]) -> None:
    """Leaves the tensors as they are."""


def fewer_experts(tensors: dict[str, Tensor]) -> None:
    for key in tensors:
        tensors[key] = tensors[key][:6] if "lora_A" in key else tensors[key][:, :6].contiguous()


UNFIT: dict[str, tuple[Change, dict[str, Any], str]] = {
    "another number of experts": (fewer_experts, {}, "is of 3 experts, .* has 4; use the model"),
    "a rank that does not divide": (
        kept,
        {"r": 3},
        "has 8 rows, which are not divided into experts by rank 3",
    ),
    "a rank of all experts": (kept, {"r": 8}, "is of 1 experts, .* has 4"),
    "one of two parameters": (without("base_layer"), {}, "holds factors of 1 parameters"),
    "biases": (kept, {"target_parameters": ["mlp.experts.down_proj_bias"]}, "'mlp.experts.down_proj_bias'"),
    "no list": (kept, {"target_parameters": "down_proj"}, "must be a list of names"),
    "no names": (kept, {"target_parameters": None}, "twice"),
    "a rank that is none": (kept, {"rank_pattern": {"down_proj": 0}}, "a whole number of at least 1"),
    "ranks above the limit": (kept, {"r": 129}, "rank 129, the limit is 128"),
    "rows without columns": (
        lambda tensors: tensors.update({k: t[:6] for k, t in tensors.items() if "lora_A" in k}),
        {},
        "has rank 6, B has 8",
    ),
}


@pytest.fixture(scope="module")
def experts_alone(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "experts"
    peft_adapter(tiny_models["mixtral"], folder, **SETTINGS["experts alone"])
    return folder


@pytest.fixture
def foreign(experts_alone: Path, tmp_path: Path) -> Path:
    """A copy of an adapter of Mixtral's experts that may be changed."""
    copy = tmp_path / "adapter"
    copy.mkdir()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        (copy / name).write_bytes((experts_alone / name).read_bytes())
    return copy


@pytest.mark.parametrize("kind", UNFIT)
def test_experts_that_do_not_fit_are_named(kind: str, foreign: Path, tiny_models: dict[str, Path]) -> None:
    change, config, message = UNFIT[kind]
    rewritten(foreign, change, **config)
    with pytest.raises(UsageError, match=message) as caught:
        read_foreign(foreign, load_shape(str(tiny_models["mixtral"])))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_dense_model_has_no_experts(family: str, foreign: Path, tiny_models: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="no such experts; use the mixture-of-experts model") as caught:
        read_foreign(foreign, load_shape(str(tiny_models[family])), other_base=True)
    assert "\n" not in str(caught.value)


def test_experts_of_another_family_do_not_fit(foreign: Path, tiny_models: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="use the model that it was made for"):
        read_foreign(foreign, load_shape(str(tiny_models["qwen3_moe"])), other_base=True)


def test_many_experts_are_no_large_rank(foreign: Path, tiny_models: dict[str, Path]) -> None:
    shape = load_shape(str(tiny_models["mixtral"]))
    assert read_foreign(foreign, shape, max_rank=2).lora.rank == 2
    with pytest.raises(UsageError, match="rank 2, the limit is 1"):
        read_foreign(foreign, shape, max_rank=1)
    with pytest.raises(UsageError, match="the limit is 1000"):
        read_foreign(foreign, shape, max_bytes=1000)


def test_what_is_kept_of_some_layers_is_read_back(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    shape = load_shape(str(tiny_models["deepseek_v3"]))
    whole = lora_of_all(shape, 0)
    some = {name: f for name, f in whole.factors.items() if ".2." in name and "shared" not in name}
    lora = LoRA(some, 4.0)
    save_adapter(tmp_path / "a", lora, shape=shape, card=AdapterCard(generator="imported", trained=True))
    assert load_adapter(tmp_path / "a").lora == lora
    stated = json.loads((tmp_path / "a" / CONFIG_FILE).read_text())["target_parameters"]
    assert all(name.startswith("model.layers.2.mlp.") for name in stated) and len(stated) == 3
