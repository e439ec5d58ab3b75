"""`shoal adapters export`, `merge` and `merge-into-model`: what becomes of adapters that are there."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM

from shoal.adapters.card import AdapterCard
from shoal.adapters.files import load_adapter, save_adapter
from shoal.adapters.hooks import attach
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.models.shapes import load_shape
from tests.fixtures.cli import Shoal, assert_one_line


@pytest.fixture
def adapters(tiny_llama: Path, tmp_path: Path) -> dict[str, Path]:
    """Two adapters of the tiny model that change it."""
    shape = load_shape(str(tiny_llama))
    found = {}
    for seed, name in enumerate(("one", "two")):
        chance = torch.Generator().manual_seed(seed)
        empty = LoRA.identity(shape.select(("q_proj",), None), 2, 4.0, generator=chance)
        factors = {}
        for module, f in empty.factors.items():
            factors[module] = LoraFactors(f.a, torch.randn(f.b.shape, generator=chance))
        card = AdapterCard(generator="test", trained=True, description=name)
        save_adapter(tmp_path / name, LoRA(factors, 4.0), shape=shape, card=card)
        found[name] = tmp_path / name
    return found


def delta(lora: LoRA, name: str) -> torch.Tensor:
    a, b = lora.factors[name]
    return lora.scaling * (b @ a)


@pytest.mark.parametrize("flag", ["--out", "--gguf"])
def test_a_gguf_file_is_written_where_one_is_named(
    shoal: Shoal, adapters: dict[str, Path], tmp_path: Path, flag: str
) -> None:
    file = tmp_path / "one.gguf"
    ended = shoal("adapters", "export", adapters["one"], flag, file, "--json")
    assert ended.code == 0, ended.err
    assert ended.record["written"] == [str(file)]
    reader = gguf.GGUFReader(file)
    assert {tensor.name for tensor in reader.tensors} >= {"blk.0.attn_q.weight.lora_a"}


def test_a_directory_and_a_gguf_file_together(
    shoal: Shoal, adapters: dict[str, Path], tmp_path: Path
) -> None:
    ended = shoal(
        "adapters", "export", adapters["one"], "--out", tmp_path / "copy", "--gguf", tmp_path / "one.gguf"
    )
    assert ended.code == 0, ended.err
    assert load_adapter(tmp_path / "copy").lora == load_adapter(adapters["one"]).lora
    assert (tmp_path / "one.gguf").is_file()


def test_exports_that_go_nowhere_are_refused(shoal: Shoal, adapters: dict[str, Path], tmp_path: Path) -> None:
    export = ("adapters", "export", adapters["one"])
    assert_one_line(shoal(*export), 2, "nothing says where to")
    assert_one_line(shoal(*export, "--gguf", tmp_path / "one.bin"), 2, "ends in .gguf")
    assert_one_line(shoal("adapters", "export", "./nowhere", "--out", tmp_path / "x"), 2, "check the path")


def test_the_merged_adapter_is_the_weighted_sum(
    shoal: Shoal, adapters: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "sum"
    ended = shoal("adapters", "merge", *adapters.values(), "--weights", "0.25,2", "--out", out, "--json")
    assert ended.code == 0, ended.err
    one, two, merged = (load_adapter(path) for path in (*adapters.values(), out))
    assert ended.record["rank"] == merged.lora.rank == 4 and merged.base_model == one.base_model
    for name in one.lora.factors:
        torch.testing.assert_close(
            delta(merged.lora, name), 0.25 * delta(one.lora, name) + 2 * delta(two.lora, name)
        )
    assert ended.record["weights"] == [0.25, 2] and "task_arithmetic" in merged.card.notes[0]
    assert set(merged.card.parents) == set(map(str, adapters.values()))


def test_a_merged_adapter_of_smaller_rank(shoal: Shoal, adapters: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "sum"
    merge = ("adapters", "merge", adapters["one"], adapters["one"], "--rank", 2, "--out", out)
    assert shoal(*merge).code == 0
    one, merged = load_adapter(adapters["one"]).lora, load_adapter(out).lora
    assert merged.rank == 2  # the mean of an adapter and itself, by equal shares
    for name in one.factors:
        torch.testing.assert_close(delta(merged, name), delta(one, name), atol=1e-5, rtol=1e-4)


def test_merges_that_do_not_fit_are_refused(shoal: Shoal, adapters: dict[str, Path], tmp_path: Path) -> None:
    merge = ("adapters", "merge", *adapters.values(), "--out", tmp_path / "sum")
    assert_one_line(shoal(*merge, "--weights", "1"), 2, "1 weights for 2 adapters")
    assert_one_line(shoal(*merge, "--weights", "1,x"), 2, "--weights")
    config = adapters["two"] / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "gpt2"}))
    assert_one_line(shoal(*merge), 2, "merge adapters of one base model")
    assert not (tmp_path / "sum").exists()


def test_a_model_with_an_adapter_in_its_weights(
    shoal: Shoal, adapters: dict[str, Path], tiny_llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    command = ("adapters", "merge-into-model", adapters["one"], "--out", out, "--dtype", "float32")
    ended = shoal(*command)
    assert ended.code == 0, ended.err
    ids = torch.tensor([[1, 2, 3]])
    whole = AutoModelForCausalLM.from_pretrained(out)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with attach(base, load_adapter(adapters["one"]).lora):
        expected = base(ids).logits
    torch.testing.assert_close(whole(ids).logits, expected, atol=1e-4, rtol=1e-4)
    (out / "thesis.txt").write_text("the only copy")
    assert_one_line(shoal(*command), 2, "thesis.txt")
