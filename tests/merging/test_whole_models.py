"""Whole models merged tensor by tensor: identities, files, bounded memory, and mistakes in one line."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from shoal.adapters.merging.methods import METHODS
from shoal.adapters.merging.recipe import Clause, Recipe, Slice
from shoal.errors import ShoalError, UnavailableError, UsageError
from shoal.inference.covariances import input_covariances
from shoal.merging.inputs import measured_inputs
from shoal.merging.whole_models import WholeModels
from shoal.models.backbone import load_backbone
from shoal.models.tensor_files import TensorFiles
from tests.conftest import save_tiny_model
from tests.fixtures.models import apart, in_shards, tuned, weights_of

AVERAGING = ("linear", "slerp", "nuslerp", "multislerp", "karcher", "sce", "ties", "regmean")


@pytest.fixture(scope="module")
def models(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: tuned(tiny_llama, folder / name, seed) for seed, name in enumerate("ab")}


def recipe(method: str, *parents: Path, weights: tuple[float, ...] = (), **parameters: Any) -> Recipe:
    return replace(Recipe.of(method, [str(p) for p in parents], weights, parameters), whole=True)


def merged(recipe: Recipe, base: Path | None, out: Path, **more: Any) -> dict[str, Tensor]:
    WholeModels(recipe, None if base is None else str(base)).write(out, **more)
    return weights_of(out)


@pytest.mark.parametrize("method", METHODS)
def test_one_model_twice_is_itself_by_every_mean(
    method: str, models: dict[str, Path], tiny_llama: Path, tmp_path: Path
) -> None:
    equal = merged(
        recipe(method, models["a"], models["a"]), tiny_llama, tmp_path / "out", covariance=lambda name: None
    )
    parent, base = weights_of(models["a"]), weights_of(tiny_llama)
    moved = apart(equal, base) / apart(parent, base)
    assert all(weight.isfinite().all() for weight in equal.values())
    if method in AVERAGING:
        assert apart(equal, parent) < 1e-6
    else:
        assert 0.5 < moved < 2.1  # sums move twice as far


def test_a_result_is_a_model_that_transformers_loads(
    models: dict[str, Path], tiny_llama: Path, tmp_path: Path
) -> None:
    own = merged(recipe("linear", models["a"], models["b"], weights=(3.0, 1.0)), None, tmp_path / "out")
    a, b = weights_of(models["a"]), weights_of(models["b"])
    assert apart(own, {n: 0.75 * a[n] + 0.25 * b[n] for n in a}) < 1e-6
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, own["model.layers.1.mlp.up_proj.weight"])
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("abc") == AutoTokenizer.from_pretrained(
        tiny_llama
    )("abc")


def test_shards_and_dtypes_are_the_base_models(
    models: dict[str, Path], tiny_llama: Path, tmp_path: Path
) -> None:
    shards = in_shards(tiny_llama, tmp_path / "shards")
    plain = recipe("task_arithmetic", models["a"], models["b"], weights=(0.4, 0.3))
    whole = merged(plain, tiny_llama, tmp_path / "whole")
    parts = merged(plain, shards, tmp_path / "parts")
    assert TensorFiles(tmp_path / "parts").files == TensorFiles(shards).files
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    narrow = merged(replace(plain, dtype="bfloat16"), shards, tmp_path / "narrow")
    assert {weight.dtype for weight in narrow.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "narrow" / "config.json").read_text())["dtype"] == "bfloat16"
    index = json.loads((tmp_path / "narrow" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(w.nbytes for w in narrow.values())


def test_order_of_parents_does_not_matter_and_seeds_do(
    models: dict[str, Path], tiny_llama: Path, tmp_path: Path
) -> None:
    one = recipe("dare_ties", models["a"], models["b"], density=0.5)
    other = recipe("dare_ties", models["b"], models["a"], density=0.5)
    first = merged(one, tiny_llama, tmp_path / "first")
    assert apart(merged(other, tiny_llama, tmp_path / "second"), first) < 1e-7
    assert apart(merged(one, tiny_llama, tmp_path / "third", seed=1), first) > 1e-3


def test_the_embedding_is_of_the_first_slice_and_the_head_of_the_last(
    models: dict[str, Path], tiny_llama: Path, tmp_path: Path
) -> None:
    slices = tuple(
        Slice(layers, ({"weight": (Clause((weight,)),)}, {"weight": (Clause((0.0, 1.0)),)}))
        for layers, weight in (((0, 2), 0.0), ((2, 3), 1.0))
    )
    plan = replace(recipe("task_arithmetic", models["a"], models["b"]), slices=slices)
    own, base, a = merged(plan, tiny_llama, tmp_path / "out"), weights_of(tiny_llama), weights_of(models["a"])
    assert torch.equal(own["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    assert torch.allclose(own["model.norm.weight"], a["model.norm.weight"])
    assert torch.allclose(own["lm_head.weight"], a["lm_head.weight"])


def test_regmean_solves_for_the_inputs_of_every_parent(
    models: dict[str, Path], tiny_llama: Path, tmp_path: Path
) -> None:
    texts = {name: [f"{name} text {i}" for i in range(16)] for name in "ab"}
    named = {name: str(models[name]) for name in "ab"}
    plan = replace(recipe("regmean", *models.values(), shrink=1.0, ridge=1e-9), names=("a", "b"))
    whole = WholeModels(plan, str(tiny_llama))

    def load(model: str) -> Any:
        return load_backbone(model, dtype=torch.float32)

    with measured_inputs(named, texts, list(whole.sizes), load) as found:
        own = merged(plan, tiny_llama, tmp_path / "out", covariance=found)
    module = "model.layers.1.self_attn.q_proj"
    weights = [weights_of(models[name])[f"{module}.weight"].double() for name in "ab"]
    g = [input_covariances(load(named[name]), None, texts[name], [module])[module].double() for name in "ab"]
    g = [each / each.diagonal().mean() for each in g]
    wanted = torch.linalg.solve(sum(g), sum(w @ e for w, e in zip(weights, g, strict=True)).T).T

    def missed(weight: Tensor) -> float:
        return sum(float((d @ e * d).sum()) for w, e in zip(weights, g, strict=True) for d in [weight - w])

    assert missed(own[f"{module}.weight"].double()) == pytest.approx(missed(wanted), rel=1e-3)
    assert missed(own[f"{module}.weight"].double()) < 0.95 * missed(sum(weights) / 2)
    a, b = (weights_of(models[name])["model.embed_tokens.weight"] for name in "ab")
    assert torch.allclose(own["model.embed_tokens.weight"], (a + b) / 2, atol=1e-6)


def test_weights_that_are_stored_the_other_way_round_are_merged_by_inputs(tmp_path: Path) -> None:
    base = save_tiny_model("gpt2", tmp_path / "base")
    named = {name: str(tuned(base, tmp_path / name, seed)) for seed, name in enumerate("ab")}
    plan = replace(recipe("regmean", *map(Path, named.values())), names=("a", "b"))
    texts = {name: [f"{name} text {i}" for i in range(16)] for name in "ab"}
    weights = list(WholeModels(plan, str(base)).sizes)
    with measured_inputs(named, texts, weights, lambda m: load_backbone(m, dtype=torch.float32)) as found:
        own = merged(plan, base, tmp_path / "out", covariance=found)
    a, b = (weights_of(Path(model)) for model in named.values())
    name = "transformer.h.1.mlp.c_fc.weight"
    assert own[name].shape == a[name].shape and not torch.allclose(
        own[name], (a[name] + b[name]) / 2, atol=1e-4
    )


def test_one_tensor_of_every_model_is_in_memory_at_a_time(
    models: dict[str, Path], tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    living: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most, read = [0], TensorFiles.read

    def counted(self: TensorFiles, name: str) -> Tensor:
        tensor = read(self, name).clone()
        living.add(tensor)
        most[0] = max(most[0], len(living))
        return tensor

    monkeypatch.setattr(TensorFiles, "read", counted)
    WholeModels(recipe("ties", *models.values(), density=0.5), str(tiny_llama)).write(tmp_path / "out")
    assert 2 <= most[0] <= 3 < len(weights_of(tiny_llama))


KILLED = """
import os, signal, sys
from pathlib import Path
from dataclasses import replace
from shoal.adapters.merging.recipe import Recipe
from shoal.merging.whole_models import WholeModels
from shoal.models.tensor_files import TensorFiles
base, a, b, out, count = sys.argv[1:]
read, number = TensorFiles.read, [0]
def counted(self, name):
    number[0] += 1
    if number[0] == int(count):
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, name)
TensorFiles.read = counted
WholeModels(replace(Recipe.of("ties", [a, b]), whole=True), base).write(Path(out))
"""


def test_a_killed_merge_leaves_nothing_and_the_next_is_whole(
    models: dict[str, Path], tiny_llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for count in (2, 40):
        given = [str(path) for path in (tiny_llama, models["a"], models["b"], out)]
        done = subprocess.run([sys.executable, "-c", KILLED, *given, str(count)], capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not out.exists()
    plan = recipe("ties", models["a"], models["b"])
    assert merged(plan, tiny_llama, out) and not list(tmp_path.glob(".out*"))
    before = weights_of(out)
    assert apart(merged(plan, tiny_llama, out), before) == 0  # an earlier result is replaced


def test_a_full_disk_is_one_line_before_and_while_it_is_written(
    models: dict[str, Path], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small_disk / "ballast").write_bytes(b"0" * 150_000)
    whole = WholeModels(recipe("linear", *models.values()), None)
    with pytest.raises(UnavailableError, match="free some space"):
        whole.write(small_disk / "out")
    room = shutil.disk_usage(small_disk)._replace(free=2**40)
    monkeypatch.setattr("shoal.merging.whole_models.shutil.disk_usage", lambda folder: room)
    with pytest.raises(UnavailableError, match="disk is full"):
        whole.write(small_disk / "out")
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def _change(folder: Path, change: str) -> None:
    file, config = folder / "model.safetensors", folder / "config.json"
    weights = load_file(file)
    if change == "nan":
        weights["model.norm.weight"][3] = float("nan")
    elif change == "shape":
        weights["model.norm.weight"] = torch.ones(5)
    elif change == "name":
        weights["another"] = weights.pop("model.norm.weight")
    elif change == "family":
        config.write_text(config.read_text().replace('"llama"', '"mistral"'))
    save_file(weights, file, {"format": "pt"})
    if change == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif change == "none":
        file.rename(folder / "pytorch_model.bin")
    elif change in ("outside", "missing"):
        file.rename(folder / "weights")
        named = "../a/model.safetensors" if change == "outside" else "model-2.safetensors"
        index = {"weight_map": {"model.norm.weight": named}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "message"),
    {
        "nan": "model.norm.weight of .*/c holds NaN",
        "shape": r"model.norm.weight is \[5\] in .*/c and \[32\] in",
        "name": "which .*/c lacks; merge models of one architecture",
        "family": "is a 'mistral' model and .* a 'llama' one",
        "cut": "cut short|not a whole safetensors",
        "none": "neither model.safetensors nor",
        "outside": "names the file '../a/model.safetensors'",
        "missing": "model-2.safetensors is missing",
    }.items(),
)
def test_models_that_do_not_fit_are_one_line(
    change: str, message: str, models: dict[str, Path], tiny_llama: Path, tmp_path: Path
) -> None:
    shutil.copytree(models["b"], tmp_path / "c")
    _change(tmp_path / "c", change)
    with pytest.raises(ShoalError, match=message) as error:
        merged(recipe("ties", models["a"], tmp_path / "c"), tiny_llama, tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_methods_that_count_from_a_base_need_one(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name it with --base"):
        WholeModels(recipe("ties", *models.values()), None)
    with pytest.raises(UsageError, match="regmean needs inputs"):
        WholeModels(recipe("regmean", *models.values()), None).write(tmp_path / "out")
    with pytest.raises(UsageError, match="merges 2 models, got 3"):
        WholeModels(recipe("slerp", *models.values(), models["a"]), None)
