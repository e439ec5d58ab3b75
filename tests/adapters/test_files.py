"""An adapter directory loads in every tool, comes back equal, is whole or absent; foreign ones are named."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from shoal.adapters.card import VLLM_RANKS, AdapterCard
from shoal.adapters.files import (
    CONFIG_FILE,
    FACTS_FILE,
    WEIGHTS_FILE,
    check_name,
    load_adapter,
    save_adapter,
)
from shoal.adapters.hooks import attach, merge
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.errors import ShoalError, UsageError
from shoal.models.backbone import Backbone, BackboneShape, load_backbone, load_shape
from shoal.models.modules import TargetModule

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gpt2", "gpt_neox", "opt", "phi")
CARD = AdapterCard(
    generator="text-to-lora",
    trained=True,
    description="Answer with the plural.",
    checkpoint_sha256="abc",
    seed=3,
    scores={"exact match": 0.75},
)
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def shape(tiny_llama: Path) -> BackboneShape:
    return load_shape(str(tiny_llama))


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Backbone:
    return load_backbone(str(tiny_models[request.param]), device="cpu", dtype=torch.float32)


def random_lora(targets: tuple[TargetModule, ...], rank: int = 4, alpha: float = 8.0) -> LoRA:
    generator = torch.Generator().manual_seed(0)
    factors = {
        t.name: LoraFactors(
            torch.randn(rank, t.in_features, generator=generator) / t.in_features**0.5,
            torch.randn(t.out_features, rank, generator=generator) * 0.1,
        )
        for t in targets
    }
    return LoRA(factors, alpha)


def read_config(directory: Path) -> dict[str, Any]:
    return json.loads((directory / CONFIG_FILE).read_text())


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.randint(0, 256, (2, 7), generator=torch.Generator().manual_seed(1))
    return model(ids, use_cache=False).logits


def peft_logits(model_path: str, directory: Path) -> torch.Tensor:
    """Logits through PEFT, in which a missing tensor or an unknown key is a warning, and so an error here."""
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # PEFT reads a property that transformers 5.23 deprecates.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return logits(peft.PeftModel.from_pretrained(base, directory).eval())


@pytest.mark.parametrize(
    ("roles", "num_layers"),
    [(("q_proj", "v_proj"), None), (("o_proj",), 1), (("down_proj",), 2), (None, None)],
)
def test_peft_computes_what_attached_and_merged_do(
    backbone: Backbone, tmp_path: Path, roles: tuple[str, ...] | None, num_layers: int | None
) -> None:
    types = roles or tuple({t.type for t in backbone.shape.targets})
    lora = random_lora(backbone.shape.select(types, num_layers))
    save_adapter(tmp_path / "a", lora, shape=backbone.shape, card=CARD)
    base = logits(backbone.model)
    with attach(backbone.model, load_adapter(tmp_path / "a").lora):
        attached = logits(backbone.model)
    with merge(backbone.model, lora):
        merged = logits(backbone.model)
    assert (attached - base).abs().max() > 1e-3
    torch.testing.assert_close(merged, attached, **CLOSE)
    torch.testing.assert_close(peft_logits(backbone.shape.base_model, tmp_path / "a"), attached, **CLOSE)


def test_padded_layers_change_nothing_and_are_said(backbone: Backbone, tmp_path: Path) -> None:
    lora = random_lora(backbone.shape.select(("q_proj",), 1))
    save_adapter(tmp_path / "a", lora, shape=backbone.shape, card=CARD, pad_layers=True)
    padded = load_adapter(tmp_path / "a").lora
    assert len(padded.factors) == 3 and "layers_to_transform" not in read_config(tmp_path / "a")
    assert all(
        not padded.factors[n].b.any() and padded.factors[n].a.any()
        for n in padded.factors.keys() - lora.factors
    )
    assert json.loads((tmp_path / "a" / FACTS_FILE).read_text())["zero_layers"] == [0, 1]
    assert "all 3; B is zero in layers 0-1" in (tmp_path / "a" / "README.md").read_text()
    with attach(backbone.model, lora):
        torch.testing.assert_close(
            peft_logits(backbone.shape.base_model, tmp_path / "a"), logits(backbone.model), **CLOSE
        )


def test_uneven_adapters_are_filled_up(shape: BackboneShape, tmp_path: Path, tiny_llama: Path) -> None:
    uneven = random_lora((*shape.select(("q_proj",), 2), *shape.select(("v_proj",), 1)))
    save_adapter(tmp_path / "a", uneven, shape=shape, card=CARD)
    assert read_config(tmp_path / "a")["layers_to_transform"] == [1, 2]
    assert len(load_adapter(tmp_path / "a").lora.factors) == 4
    backbone = load_backbone(str(tiny_llama), device="cpu", dtype=torch.float32)
    with attach(backbone.model, uneven):
        torch.testing.assert_close(
            peft_logits(str(tiny_llama), tmp_path / "a"), logits(backbone.model), **CLOSE
        )


@pytest.mark.parametrize(
    ("family", "roles", "expected"),
    [
        ("llama", ("q_proj", "v_proj"), ["q_proj", "v_proj"]),
        ("gpt2", ("q_proj", "o_proj"), ["attn.c_proj", "c_attn"]),
        ("gpt2", ("down_proj",), ["mlp.c_proj"]),
        ("gpt2", ("o_proj", "down_proj"), ["c_proj"]),
        ("gpt_neox", ("o_proj",), ["dense"]),
        ("opt", ("o_proj", "up_proj"), ["fc1", "out_proj"]),
    ],
)
def test_names_match_no_other_module(
    tiny_models: dict[str, Path], tmp_path: Path, family: str, roles: tuple[str, ...], expected: list[str]
) -> None:
    shape = load_shape(str(tiny_models[family]))
    save_adapter(tmp_path / "a", random_lora(shape.select(roles, None)), shape=shape, card=CARD)
    config = read_config(tmp_path / "a")
    assert config["target_modules"] == expected
    assert config["fan_in_fan_out"] is (family == "gpt2")


def vllm_accepts(config: dict[str, Any], max_lora_rank: int) -> bool:
    """The checks of vLLM's `PEFTHelper.validate_legal` and of its file-system resolver, as data."""
    plain = not any(
        config.get(key)
        for key in (
            "modules_to_save",
            "use_dora",
            "lora_bias",
            "rank_pattern",
            "alpha_pattern",
            "layer_replication",
        )
    )
    return (
        plain
        and config["peft_type"] == "LORA"
        and config.get("bias", "none") == "none"
        and isinstance(config["target_modules"], list)
        and isinstance(config["base_model_name_or_path"], str)
        and max_lora_rank in VLLM_RANKS
        and config["r"] <= max_lora_rank
    )


@pytest.mark.parametrize("rank", [1, 4, 8, 16])
def test_the_directory_obeys_vllm_and_lorax(shape: BackboneShape, tmp_path: Path, rank: int) -> None:
    targets = shape.select(("q_proj", "v_proj"), 1)
    save_adapter(tmp_path / "a", random_lora(targets, rank), shape=shape, card=CARD, pad_layers=True)
    config = read_config(tmp_path / "a")
    assert vllm_accepts(config, max_lora_rank=next(r for r in VLLM_RANKS if r >= rank))
    assert len(config) <= 13  # old versions of PEFT fail on keys that they do not know
    with safe_open(tmp_path / "a" / WEIGHTS_FILE, "pt") as file:
        held = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        assert file.metadata() == {"format": "pt"}
    wanted = {
        f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_{letter}.weight"
        for layer in range(3)
        for name in config["target_modules"]
        for letter in "AB"
    }
    assert held.keys() == wanted
    assert {t.dtype for t in held.values()} == {torch.float32}
    assert all(t.is_contiguous() and t.isfinite().all() for t in held.values())


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_adapters_come_back_equal(shape: BackboneShape, tmp_path: Path, dtype: torch.dtype | None) -> None:
    lora = random_lora(shape.select(("q_proj", "k_proj"), 2), alpha=7.5)
    save_adapter(tmp_path / "a", lora, shape=shape, card=CARD, dtype=dtype, revision="main")
    stored = load_adapter(tmp_path / "a")
    assert stored.lora == (lora.to(dtype) if dtype else lora)
    assert (stored.base_model, stored.revision, stored.card) == (shape.base_model, "main", CARD)
    save_adapter(tmp_path / "b", stored.lora, shape=shape, card=CARD, revision="main")
    for name in os.listdir(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_views_of_one_tensor_and_leaves_with_gradients_are_written(
    shape: BackboneShape, tmp_path: Path
) -> None:
    targets = shape.select(("q_proj",), None)
    a, b = torch.randn(3, 32, 4, requires_grad=True), torch.randn(3, 4, 32)
    lora = LoRA({t.name: LoraFactors(a[i].T, b[i].T) for i, t in enumerate(targets)}, 4.0)
    save_adapter(tmp_path / "a", lora, shape=shape, card=CARD)
    assert load_adapter(tmp_path / "a").lora == lora


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_saves_is_read(tiny_llama: Path, tmp_path: Path, rslora: bool) -> None:
    peft = pytest.importorskip("peft")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "up_proj"], use_rslora=rslora, task_type="CAUSAL_LM"
    )
    wrapped = peft.get_peft_model(model, config).eval()
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    wrapped.save_pretrained(tmp_path / "a")
    stored = load_adapter(tmp_path / "a")
    assert stored.card is None and stored.base_model == str(tiny_llama)
    assert stored.lora.scaling == pytest.approx(6 / 2 if rslora else 6 / 4)
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    with attach(plain, stored.lora):
        torch.testing.assert_close(logits(plain), logits(wrapped), **CLOSE)


@pytest.fixture
def directory(shape: BackboneShape, tmp_path: Path) -> Path:
    save_adapter(tmp_path / "a", random_lora(shape.select(("q_proj",), 1)), shape=shape, card=CARD)
    return tmp_path / "a"


def error_of(directory: Path) -> str:
    with pytest.raises(ShoalError) as caught:
        load_adapter(directory)
    message = str(caught.value)
    assert "\n" not in message and str(directory) in message and len(message) < 400
    return message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, 'peft_type "LOHA"; only LORA'),
        ({"peft_type": None}, "peft_type null"),
        ({"use_dora": True}, "sets use_dora to true; only plain LoRA"),
        ({"rank_pattern": {"q_proj": 0}}, "sets rank_pattern to 0; a rank is"),
        ({"alpha_pattern": {"(a|aa": 4}}, 'has "(a|aa" in alpha_pattern, which is no regular expression'),
        ({"rank_pattern": ["q_proj"]}, 'has ["q_proj"] in rank_pattern; it must be an object'),
        ({"alpha_pattern": {"q_proj": -1}}, "sets alpha_pattern to -1; it must be above 0"),
        ({"alpha_pattern": {"q_proj": "2"}}, 'sets alpha_pattern to "2"'),
        ({"target_parameters": ["experts.down_proj_bias"]}, "names 'experts.down_proj_bias' in target_param"),
        ({"bias": "all"}, 'sets bias to "all"'),
        ({"lora_bias": True}, "sets lora_bias"),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights to "pissa"'),
        ({"init_lora_weights": "PiSSA_niter_16"}, 'init_lora_weights to "PiSSA_niter_16"'),
        ({"init_lora_weights": "olora"}, 'init_lora_weights to "olora"'),
        ({"init_lora_weights": "corda"}, 'init_lora_weights to "corda"'),
        ({"init_lora_weights": "lora_ga"}, 'init_lora_weights to "lora_ga"'),
        ({"init_lora_weights": "loftq"}, 'init_lora_weights to "loftq"'),
        ({"peft_type": "IA3"}, 'peft_type "IA3"; only LORA'),
        ({"peft_type": "PROMPT_TUNING"}, 'peft_type "PROMPT_TUNING"; only LORA'),
        ({"peft_type": "lora"}, 'peft_type "lora"; only LORA'),
        ({"bias": "lora_only"}, 'sets bias to "lora_only"'),
        ({"trainable_token_indices": [1, 2]}, "sets trainable_token_indices"),
        ({"alora_invocation_tokens": [1, 2]}, "sets alora_invocation_tokens"),
        ({"arrow_config": {"top_k": 2}}, "sets arrow_config"),
        ({"kasa_config": {"beta": 1}}, "sets kasa_config"),
        ({"use_qalora": True}, "sets use_qalora"),
        ({"layer_replication": [[0, 2]]}, "sets layer_replication"),
        ({"of_the_year_2030": 1}, "sets of_the_year_2030 to 1"),
        ({"r": 0}, "sets r to 0; a rank is"),
        ({"r": True}, "sets r to true"),
        ({"r": "4"}, 'sets r to "4"'),
        ({"r": None}, "sets r to null"),
        ({"lora_alpha": 0}, "lora_alpha to 0; it must be above 0"),
        ({"lora_alpha": float("nan")}, "lora_alpha to NaN"),
        ({"lora_alpha": float("inf")}, "lora_alpha to Infinity"),
        ({"lora_alpha": 10**400}, "lora_alpha to 1000"),
        ({"lora_alpha": "x" * 10**6}, 'lora_alpha to "xxx'),
    ],
)
def test_more_than_plain_lora_is_named(directory: Path, changes: dict[str, Any], message: str) -> None:
    (directory / CONFIG_FILE).write_text(json.dumps(read_config(directory) | changes))
    assert message in error_of(directory)


@pytest.mark.parametrize(
    "changes",
    [
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "MiCA"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"use_dora": False, "lora_bias": False, "use_qalora": False},
        {"layers_to_transform": [0], "layers_pattern": "layers", "exclude_modules": ["lm_head"]},
        {"trainable_token_indices": None, "alora_invocation_tokens": None, "modules_to_save": None},
        {"target_modules": "all-linear", "auto_mapping": {"base_model_class": "X"}, "peft_version": "9.9"},
        {"lora_dropout": 0.5, "megatron_core": "megatron.core", "runtime_config": {"ephemeral": True}},
    ],
)
def test_settings_of_a_training_change_nothing_of_what_it_made(
    directory: Path, changes: dict[str, Any]
) -> None:
    before = load_adapter(directory).lora
    (directory / CONFIG_FILE).write_text(json.dumps(read_config(directory) | changes))
    assert load_adapter(directory).lora == before


def drop_one(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(list(tensors.items())[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_one, "lacks A or B of model.layers.2.self_attn.q_proj"),
        (lambda tensors: {}, "holds no LoRA factor"),
        (lambda tensors: {n: t.double() for n, t in tensors.items()}, "holds torch.float64; convert"),
        (lambda tensors: {n: t * float("nan") for n, t in tensors.items()}, "holds NaN or infinity"),
        (lambda tensors: {n: t / 0 for n, t in tensors.items()}, "holds NaN or infinity"),
        (lambda tensors: {n: t[None] for n, t in tensors.items()}, "has shape (1, "),
        (lambda tensors: {n: t[:, :0] if "_A" in n else t for n, t in tensors.items()}, "has shape (4, 0)"),
        (lambda tensors: {**tensors, "x" * 5000: torch.ones(1)}, "is no LoRA factor"),
    ],
)
def test_foreign_tensors_are_named(
    directory: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], message: str
) -> None:
    save_file(
        {name: t.contiguous() for name, t in change(load_file(directory / WEIGHTS_FILE)).items()},
        directory / WEIGHTS_FILE,
    )
    assert message in error_of(directory)


def test_missing_files_and_pickles_are_named(directory: Path, tmp_path: Path) -> None:
    assert "there is no directory" in error_of(tmp_path / "none")
    weights = (directory / WEIGHTS_FILE).read_bytes()
    (directory / WEIGHTS_FILE).unlink()
    assert f"has no {WEIGHTS_FILE}, so it is not a PEFT adapter" in error_of(directory)
    (directory / "adapter_model.bin").write_bytes(b"\x80\x04")
    assert "adapter_model.bin is a pickle, which can run code" in error_of(directory)
    (directory / WEIGHTS_FILE).write_bytes(weights)
    assert load_adapter(directory).lora.rank == 4
    (directory / CONFIG_FILE).unlink()
    assert f"has no {CONFIG_FILE}" in error_of(directory)
    os.mkfifo(directory / CONFIG_FILE)  # reading it would wait for ever
    assert f"has no {CONFIG_FILE}" in error_of(directory)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, FACTS_FILE])
def test_links_to_elsewhere_are_refused(directory: Path, tmp_path: Path, name: str) -> None:
    os.rename(directory / name, tmp_path / "elsewhere")
    (directory / name).symlink_to(tmp_path / "elsewhere")
    assert "a link to outside its directory" in error_of(directory)
    (directory / name).unlink()
    (directory / name).symlink_to("/etc/passwd")
    assert "a link to outside its directory" in error_of(directory)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    st.sampled_from([CONFIG_FILE, WEIGHTS_FILE, FACTS_FILE]),
    st.floats(0, 1, exclude_max=True),
    st.binary(max_size=9),
)
def test_broken_files_are_one_line_errors(directory: Path, name: str, share: float, tail: bytes) -> None:
    whole = (directory / name).read_bytes()
    (directory / name).write_bytes(whole[: int(share * len(whole))] + tail)
    try:
        load_adapter(directory)
    except ShoalError as error:
        assert "\n" not in str(error)
    finally:
        (directory / name).write_bytes(whole)


@pytest.mark.parametrize(
    "facts", [{}, {"card": []}, {"card": {"generator": 3}}, {"card": {**CARD.model_dump(), "x": 1}}]
)
def test_a_foreign_card_is_named(directory: Path, facts: dict[str, Any]) -> None:
    (directory / FACTS_FILE).write_text(json.dumps(facts))
    assert f"{FACTS_FILE}: card" in error_of(directory)


def test_what_cannot_be_saved_is_named(
    shape: BackboneShape, tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    lora = random_lora(shape.select(("q_proj",), 1))
    name = next(iter(lora.factors))
    broken = LoRA({name: LoraFactors(lora.factors[name].a * float("nan"), lora.factors[name].b)}, 8.0)
    gpt2 = load_shape(str(tiny_models["gpt2"]))
    cases: list[tuple[LoRA, dict[str, Any], str]] = [
        (broken, {}, "is not finite in torch.float32"),
        (lora * 1e6, {"dtype": torch.float16}, "is not finite in torch.float16; use float32"),
        (lora, {"dtype": torch.float64}, "not torch.float64; choose one of these"),
        (LoRA(lora.factors, 0.0), {}, "alpha 0.0 is outside 0..1e"),
        (LoRA(lora.factors, float("nan")), {}, "alpha nan is outside"),
        (lora, {"shape": gpt2}, "no such module: it is of another architecture"),
        (random_lora((TargetModule(name, 0, "x", 8, 8),)), {}, "is 8 x 8 .in x out., in .* 32 x 32"),
    ]
    for bad, options, message in cases:
        with pytest.raises(UsageError, match=message):
            save_adapter(tmp_path / "a", bad, **({"shape": shape, "card": CARD} | options))
    assert not list(tmp_path.iterdir())


BAD_NAMES = [
    "",
    ".",
    "..",
    "a/b",
    "../a",
    "/etc",
    "A",
    "-a",
    "_a",
    ".a",
    "a" * 65,
    "a\n",
    "a\0",
    "ä",
    "a b",
    "~",
    "a\\b",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is no adapter name; use 1 to 64 of"):
        check_name(name)


@settings(deadline=None)
@given(st.text(max_size=70))
def test_a_name_is_one_step_down(name: str) -> None:
    try:
        path = Path("/store") / check_name(name)
    except UsageError as error:
        assert "\n" not in str(error)
    else:
        assert path.parent == Path("/store") and path.name == name and name != ".."


SAVE_UNTIL_KILLED = """
import sys, torch
from shoal.adapters.files import save_adapter
from shoal.models.backbone import load_shape
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.adapters.card import AdapterCard
shape = load_shape(sys.argv[1])
card = AdapterCard(generator="test", trained=True)
for version in range(1, 10**9):
    factors = {t.name: LoraFactors(torch.full((4, t.in_features), version / 8), torch.ones(t.out_features, 4))
               for t in shape.targets}
    save_adapter(sys.argv[2], LoRA(factors, float(version)), shape=shape, card=card)
    print(version, flush=True)
"""


@pytest.mark.slow
def test_kill_leaves_a_whole_adapter(tiny_llama: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SAVE_UNTIL_KILLED, str(tiny_llama), str(tmp_path / "a")]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    time.sleep(random.uniform(0, 0.1))
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    lora = load_adapter(tmp_path / "a").lora
    assert {f.a.unique().item() for f in lora.factors.values()} == {lora.alpha / 8}
