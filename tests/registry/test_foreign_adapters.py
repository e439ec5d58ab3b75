"""Adapters as other trainers name and write them: taken rightly, or refused by their cause."""

from __future__ import annotations

import io
import itertools
import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shoal.adapters import peft_scalings
from shoal.adapters.archive import unpack
from shoal.adapters.files import CONFIG_FILE, WEIGHTS_FILE
from shoal.adapters.foreign_names import factor_name
from shoal.adapters.lora import LoRA
from shoal.adapters.peft_scalings import Places
from shoal.errors import ShoalError, UsageError
from shoal.models.backbone import load_backbone
from shoal.models.shapes import BackboneShape, load_shape
from shoal.registry.importing import may_be_same, read_foreign

Write = Callable[..., Path]
QUERY, VALUE = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"


@pytest.fixture(scope="module")
def shape(tiny_llama: Path) -> BackboneShape:
    return load_shape(str(tiny_llama))


@pytest.fixture
def write(tmp_path: Path, shape: BackboneShape) -> Write:
    """Writes an adapter of two modules, with other names, tensors and settings."""

    def written(
        rename: Callable[[str], str] = lambda key: key,
        change: Callable[[dict[str, Tensor]], object] = lambda tensors: None,
        **config: Any,
    ) -> Path:
        generator = torch.Generator().manual_seed(1)
        sizes = {t.name: (t.in_features, t.out_features) for t in shape.targets}
        tensors = {}
        for name in (QUERY, VALUE):
            inner, outer = sizes[name]
            key = f"base_model.model.{name}.lora_"
            tensors[f"{key}A.weight"] = torch.randn(2, inner, generator=generator)
            tensors[f"{key}B.weight"] = torch.randn(outer, 2, generator=generator)
        change(tensors)
        folder = tmp_path / "adapter"
        folder.mkdir()
        save_file({rename(key): t for key, t in tensors.items()}, folder / WEIGHTS_FILE)
        settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": shape.base_model}
        (folder / CONFIG_FILE).write_text(json.dumps(settings | config))
        return folder

    return written


@pytest.fixture
def plain(write: Write, shape: BackboneShape, tmp_path: Path) -> LoRA:
    lora = read_foreign(write(), shape).lora
    (tmp_path / "adapter").rename(tmp_path / "plain")
    return lora


NAMES: dict[str, Callable[[str], str]] = {
    "the adapter's name": lambda k: k.replace(".weight", ".default.weight"),
    "another adapter's name": lambda k: k.replace(".weight", ".my-task.weight"),
    "compiled": lambda k: f"_orig_mod.{k}",
    "compiled within": lambda k: k.replace("base_model.model.", "base_model.model._orig_mod."),
    "distributed": lambda k: f"module.{k}",
    "distributed and compiled": lambda k: f"module._orig_mod.{k}",
    "sharded": lambda k: k.replace("layers.", "layers._fsdp_wrapped_module."),
    "checkpointed": lambda k: k.replace(".self_attn", "._checkpoint_wrapped_module.self_attn"),
    "with eyes": lambda k: k.replace("model.layers", "model.language_model.layers"),
    "with eyes before": lambda k: k.replace("model.layers", "language_model.model.layers"),
    "with ears": lambda k: k.replace("model.layers", "thinker.model.layers"),
    "a language model among others": lambda k: k.replace("model.model.layers", "model.llm.model.layers"),
    "with a value head": lambda k: f"pretrained_model.{k}",
    "of a trainer that wraps": lambda k: f"_forward_module.{k}",
    "of a module of Lightning": lambda k: f"model.{k}",
    "wrapped twice": lambda k: f"base_model.model.{k}",
    "without model": lambda k: k.replace("model.model.layers", "model.layers"),
    "with model twice": lambda k: k.replace("model.layers", "model.model.layers"),
    "without PEFT's prefix": lambda k: k.removeprefix("base_model.model."),
    "a base layer": lambda k: k.replace(".lora_", ".base_layer.lora_"),
}


@pytest.mark.parametrize("kind", NAMES)
def test_what_a_wrapper_adds_to_names_is_taken_off(
    kind: str, plain: LoRA, write: Write, shape: BackboneShape
) -> None:
    assert read_foreign(write(NAMES[kind]), shape).lora == plain


REFUSED: dict[str, tuple[Callable[[str], str], str]] = {
    "a head of other size": (lambda k: k.replace(QUERY, "lm_head"), "lm_head is 32 x 32 .*32 x 259"),
    "a head of other name": (lambda k: k.replace(QUERY, "embed_out"), "output layer has another name"),
    "an embedding of other size": (
        lambda k: k.replace(f"{QUERY}.lora_", "model.embed_tokens.lora_embedding_"),
        "embed_tokens is 32 x 32 .*259 x 32",
    ),
    "an embedding of other name": (
        lambda k: k.replace(f"{QUERY}.lora_", "transformer.wte.lora_embedding_"),
        "embedding has another name",
    ),
    "an embedding of places": (
        lambda k: k.replace(f"{QUERY}.lora_", "transformer.wpe.lora_embedding_"),
        "the embedding of tokens and the output layer are adapted",
    ),
    "experts": (
        lambda k: k.replace(QUERY, "model.layers.0.mlp.experts.0.up_proj"),
        "no such experts",
    ),
    "eyes": (lambda k: k.replace("model.layers", "vision_tower.layers"), "a prefix that is not known"),
    "ears": (lambda k: k.replace("model.layers", "thinker.audio_tower.layers"), "a prefix that is not known"),
    "another architecture": (lambda k: k.replace(QUERY, "model.layers.0.attn.Wqkv"), "another architecture"),
    "twice": (lambda k: k.replace(VALUE, f"module.{QUERY}"), "twice"),
    "two adapters": (lambda k: k.replace(".weight", ".b.weight") if QUERY in k else k, "adapters , b"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_supported_is_named_by_its_cause(kind: str, write: Write, shape: BackboneShape) -> None:
    rename, message = REFUSED[kind]
    with pytest.raises(UsageError, match=message) as caught:
        read_foreign(write(rename), shape)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dtypes", "widest"),
    [
        ((torch.bfloat16, torch.float32), torch.float32),
        ((torch.float16, torch.bfloat16), torch.float32),
        ((torch.float16, torch.float16), torch.float16),
    ],
)
def test_factors_of_several_dtypes_have_the_widest(
    dtypes: tuple[torch.dtype, torch.dtype], widest: torch.dtype, write: Write, shape: BackboneShape
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for key in tensors:
            tensors[key] = tensors[key].to(dtypes["lora_B" in key])

    factors = read_foreign(write(change=change), shape).lora.factors
    assert {t.dtype for f in factors.values() for t in f} == {widest}


PATTERNS: dict[str, dict[str, Any]] = {
    "an expression": {"rank_pattern": {r".*\.layers\.0\..*": 3}, "alpha_pattern": {r".*\.layers\.0\..*": 9}},
    "alternatives": {"alpha_pattern": {"(q_proj|k_proj)": 9}},
    "a class": {"alpha_pattern": {r"self_attn\.[qk]_proj": 9}},
    "anchored": {"alpha_pattern": {r"^model\.layers\.\d+\.self_attn\.q_proj": 9}},
    "a plain end": {"alpha_pattern": {"q_proj": 9}},
}


@pytest.mark.parametrize("kind", PATTERNS)
def test_ranks_are_those_of_tensors_and_alphas_match_as_in_peft(
    kind: str, write: Write, shape: BackboneShape
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        a, b = (f"base_model.model.{QUERY}.lora_{letter}.weight" for letter in "AB")
        tensors[a], tensors[b] = torch.ones(3, tensors[a].shape[1]), torch.ones(tensors[b].shape[0], 3)

    folder = write(change=change, **PATTERNS[kind])
    lora = read_foreign(folder, shape).lora
    tensors = load_file(folder / WEIGHTS_FILE)
    for name, scaling in ((QUERY, 9 / 3), (VALUE, 4 / 2)):
        a, b = (tensors[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
        torch.testing.assert_close(lora.delta_weight(name), scaling * (b @ a))


@pytest.mark.parametrize("pattern", [r"(a|a?)+" * 30 + "b", r"(.*)*" * 20 + "x", r"((\w+)\.)*y"])
def test_a_slow_expression_ends_in_time(pattern: str, write: Write, shape: BackboneShape) -> None:
    begun = time.perf_counter()
    try:
        read_foreign(write(alpha_pattern={pattern: 4}), shape)
    except UsageError as error:
        assert "\n" not in str(error)
    assert time.perf_counter() - begun < 2


def test_expressions_whose_matches_take_too_long_together_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    share = peft_scalings.MATCH_SECONDS / 10
    clock = itertools.count(step=peft_scalings.FREE_SECONDS + share)
    monkeypatch.setattr(peft_scalings.time, "thread_time", clock.__next__)
    places = Places({r"q.*_proj": 4}, "alpha_pattern", "an adapter")
    with pytest.raises(ShoalError, match="takes too long"):
        for number in range(12):  # each takes a tenth of the time of all
            places.key_of(f"layer{number}")


def test_many_harmless_expressions_match_many_modules() -> None:
    expressions = [rf".*\.layers\.({i}|{i + 32})\..*_proj" for i in range(32)]
    places = Places(dict.fromkeys(expressions, 8), "alpha_pattern", "an adapter")
    modules = {
        f"model.layers.{i}.experts.{j}.up_proj": expressions[i % 32] for i in range(64) for j in range(32)
    }
    assert {module: places.key_of(module) for module in modules} == modules


@pytest.mark.parametrize("pattern", ["(", "[a", "x" * 300 + "*", "(?P<n"])
def test_what_is_no_expression_is_one_line(pattern: str, write: Write, shape: BackboneShape) -> None:
    with pytest.raises(UsageError, match="regular expression"):
        read_foreign(write(alpha_pattern={pattern: 4}), shape)


def test_copies_of_the_base_are_left_out_and_other_values_are_not(
    write: Write, plain: LoRA, shape: BackboneShape, tmp_path: Path
) -> None:
    own = load_backbone(shape.base_model, device="cpu", dtype=torch.float32).model
    embedding = own.get_input_embeddings().weight.detach()
    copies = {
        "base_model.model.model.embed_tokens.weight": embedding,
        f"base_model.model.{QUERY}.base_layer.weight": own.get_submodule(QUERY).weight.detach(),
    }
    folder = write(change=lambda tensors: tensors.update(copies), modules_to_save=["embed_tokens"])
    assert read_foreign(folder, shape).lora == plain
    folder.rename(tmp_path / "first")
    other = {"base_model.model.model.embed_tokens.weight": embedding + 1}
    with pytest.raises(UsageError, match="differs from the base model's own"):
        read_foreign(write(change=lambda tensors: tensors.update(other)), shape)


SAME = [
    ("/home/me/models/m", "org/m"),
    ("C:\\models\\m", "org/m"),
    ("./model", "org/m"),
    ("model", "org/m"),
    ("unsloth/Tiny-bnb-4bit", "org/tiny"),
    ("unsloth/tiny-unsloth-bnb-4bit", "org/tiny"),
    ("other/Tiny-AWQ", "org/tiny"),
]


@pytest.mark.parametrize(("named", "base"), SAME)
def test_another_name_of_the_same_base_is_taken(named: str, base: str) -> None:
    assert may_be_same(named, base)


def test_another_model_needs_a_word(write: Write, shape: BackboneShape) -> None:
    folder = write(base_model_name_or_path="org/another")
    with pytest.raises(UsageError, match="--other-base"):
        read_foreign(folder, shape)
    assert read_foreign(folder, shape, other_base=True).lora.rank == 2


def zipped(folder: Path, *places: str) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for place in places:
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                archive.writestr(
                    place + name, (folder / name).read_bytes() if place == places[0] else b"step"
                )
    file.seek(0)
    return file


@pytest.mark.parametrize(
    "places",
    [
        ("", "checkpoint-10/", "checkpoint-20/"),
        ("out/", "out/checkpoint-10/"),
        ("out\\", "out\\checkpoint-10\\"),
        ("out/", "__MACOSX/"),
    ],
)
def test_the_adapter_nearest_the_top_of_a_zip_is_meant(
    places: tuple[str, ...], write: Write, shape: BackboneShape, tmp_path: Path
) -> None:
    (tmp_path / "unpacked").mkdir()
    unpack(zipped(write(), *places), tmp_path / "unpacked", max_bytes=2**20)
    assert read_foreign(tmp_path / "unpacked", shape).lora.rank == 2


def test_several_adapters_side_by_side_are_named(write: Write, tmp_path: Path) -> None:
    (tmp_path / "unpacked").mkdir()
    with pytest.raises(UsageError, match="several adapters, 'checkpoint-1' and 'checkpoint-2'"):
        unpack(zipped(write(), "checkpoint-1/", "checkpoint-2/"), tmp_path / "unpacked", max_bytes=2**20)


def test_links_are_followed_into_the_hubs_cache_alone(
    write: Write, shape: BackboneShape, tmp_path: Path
) -> None:
    folder, cache = write(), tmp_path / "models--someone--lora"
    snapshot = cache / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, name in enumerate((CONFIG_FILE, WEIGHTS_FILE)):
        (folder / name).rename(cache / "blobs" / str(number))
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    assert read_foreign(snapshot, shape).lora.rank == 2
    (snapshot / CONFIG_FILE).unlink()
    outside = tmp_path / "outside.json"
    outside.write_bytes((cache / "blobs" / "0").read_bytes())
    (snapshot / CONFIG_FILE).symlink_to(outside)
    with pytest.raises(UsageError, match="link to outside"):
        read_foreign(snapshot, shape)


@pytest.mark.parametrize(
    "key", ["model.norm.weight", "lora_A.weight", "x.lora_C.weight", "x.lora_A.bias.more", "a" * 2000]
)
def test_names_of_no_factor(key: str) -> None:
    assert factor_name(key) is None
