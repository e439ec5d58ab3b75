"""Decompositions of a model: computed once, found again by the weights' hash, damaged files are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from shoal.adapters.svf_cache import decompose_model
from shoal.adapters.svf_hooks import dense_weight
from shoal.errors import ShoalError, UsageError
from shoal.models.backbone import shape_of


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny_models[request.param]).eval()


def names_of(model: nn.Module) -> list[str]:
    return [t.name for t in shape_of(model, "tiny").targets]


def test_weights_are_decomposed_once(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, seen = names_of(model), []

    def progress(of: list[str]) -> list[str]:
        seen.extend(of)
        return of

    first = decompose_model(model, names, cache=tmp_path, progress=progress)
    assert seen == names and list(first) == names
    for name, (u, s, vt) in first.items():
        weight = dense_weight(model.get_submodule(name))
        torch.testing.assert_close((u * s) @ vt, weight, atol=1e-5, rtol=1e-4)
    monkeypatch.setattr("shoal.adapters.svf_cache.decompose", None)  # a second computation would fail
    again = decompose_model(model, names, components=2, cache=tmp_path)
    assert all(torch.equal(again[n].u, first[n].u[:, :2]) for n in names)
    assert not list(tmp_path.glob("*.tmp"))


def test_parts_come_in_the_model_s_dtype(model: nn.Module, tmp_path: Path) -> None:
    name = names_of(model)[0]
    own = decompose_model(model.to(torch.bfloat16), [name], cache=tmp_path)[name]
    assert (own.u.dtype, own.s.dtype, own.vt.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)


def test_the_cache_is_shoal_s_own(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
    decompose_model(model, names_of(model)[:2])
    assert len(list((tmp_path / "svf").glob("*.safetensors"))) == 2


def test_what_cannot_be_decomposed_is_named(model: nn.Module, tmp_path: Path) -> None:
    name = names_of(model)[0]
    with pytest.raises(UsageError, match="0 weights"):
        decompose_model(model, [], cache=tmp_path)
    with pytest.raises(UsageError, match="nothing: the model has no such module"):
        decompose_model(model, ["nothing"], cache=tmp_path)
    with torch.no_grad():
        model.get_submodule(name).weight[0, 0] = float("inf")
    with pytest.raises(UsageError, match=f"{name}: .*infinity"):
        decompose_model(model, [name], cache=tmp_path)
    with pytest.raises(UsageError, match="no loaded weight"):
        decompose_model(model.to("meta"), [name], cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_named(model: nn.Module, tmp_path: Path) -> None:
    name = names_of(model)[0]
    decompose_model(model, [name], cache=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])
    with pytest.raises(ShoalError, match=file.name):
        decompose_model(model, [name], cache=tmp_path)
