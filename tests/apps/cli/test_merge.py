"""`shoal merge`: adapters and recipes in, one adapter with its recipe and report out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.adapters.card import AdapterCard
from shoal.adapters.files import load_adapter, save_adapter
from shoal.adapters.merging import compose
from shoal.adapters.merging.mergekit_reader import read_recipe
from shoal.adapters.svf import ExpertVector
from shoal.adapters.svf_cache import decompose_model
from shoal.adapters.svf_files import StoredExpert, read_expert, save_expert
from shoal.errors import UsageError
from shoal.models.backbone import load_backbone
from shoal.models.shapes import load_shape
from shoal.tasks.loading import load_task_json
from shoal.tasks.sketches import sketch_of
from tests.fixtures.cli import Shoal, assert_one_line
from tests.fixtures.merging import distance, random_lora

INPUTS = [f"text number {i} of a task" for i in range(20)]


@pytest.fixture
def adapters(tiny_llama: Path, tmp_path: Path) -> dict[str, Path]:
    """Two adapters that were trained on from a third."""
    shape = load_shape(str(tiny_llama))
    sizes = {t.name: (t.in_features, t.out_features) for t in shape.select(("q_proj", "down_proj"), None)}
    start = random_lora(9, sizes) * 0.1
    values = {
        "start": start,
        **{n: compose([start, random_lora(s, sizes) * 0.1], [1, 1]) for s, n in enumerate("ab")},
    }
    for name, lora in values.items():
        own = None if name == "start" else start.fingerprint()
        card = AdapterCard(generator="test", trained=True, start_sha256=own)
        save_adapter(tmp_path / name, lora, shape=shape, card=card)
    return {name: tmp_path / name for name in values}


def named(adapters: dict[str, Path]) -> list[str]:
    return [word for name in "ab" for word in ("--adapter", f"{name}={adapters[name]}")]


def test_the_mean_with_its_recipe_and_report(shoal: Shoal, adapters: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "merged"
    ended = shoal("merge", *named(adapters), "--out", out, "--json")
    assert ended.code == 0, ended.err
    a, b, merged = (load_adapter(path) for path in (adapters["a"], adapters["b"], out))
    assert distance(merged.lora, compose([a.lora, b.lora], [0.5, 0.5])) < 1e-5
    report = json.loads((out / "report.json").read_text("utf-8"))
    assert report["parents"] == {"a": a.lora.fingerprint(), "b": b.lora.fingerprint()} == merged.card.parents
    assert {**ended.record, **report} == ended.record and "as start" in merged.card.notes[1]
    again = shoal("merge", out / "merge.yml", "--out", tmp_path / "again")
    assert again.code == 0, again.err
    assert distance(load_adapter(tmp_path / "again").lora, merged.lora) < 1e-5


def test_regmean_reads_inputs_under_every_parent(
    shoal: Shoal, adapters: dict[str, Path], tmp_path: Path
) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name} {text}" for text in INPUTS), "utf-8")
    given = [word for name in "ab" for word in ("--inputs", f"{name}={tmp_path / name}.txt")]
    start = ("--start", adapters["start"], "--rank", "4")
    ended = shoal("merge", *named(adapters), *given, *start, "--out", tmp_path / "merged", "--json")
    assert ended.code == 0, ended.err
    merged = load_adapter(tmp_path / "merged")
    assert ended.record["method"] == "regmean" and merged.lora.rank == 4
    assert merged.card.start_sha256 == load_adapter(adapters["start"]).lora.fingerprint()
    assert 0 < ended.record["truncation_error"] < 1


def test_parameters_are_numbers_and_switches(shoal: Shoal, adapters: dict[str, Path], tmp_path: Path) -> None:
    flags = ("--method", "ties", "--weights", "1,2", "--parameters", "density=0.5,normalize=false")
    ended = shoal("merge", *named(adapters), *flags, "--out", tmp_path / "merged")
    assert ended.code == 0, ended.err
    values = read_recipe(tmp_path / "merged" / "merge.yml").values("q")
    assert values["density"].tolist() == [0.5, 0.5] and values["normalize"] is False
    assert values["weight"].tolist() == [1, 2]


def test_the_dtype_of_a_recipe_is_that_of_the_adapter(
    shoal: Shoal, adapters: dict[str, Path], tiny_llama: Path, tmp_path: Path
) -> None:
    models = [{"model": f"{tiny_llama}+{adapters[name]}", "parameters": {"weight": 1}} for name in "ab"]
    recipe = {"merge_method": "linear", "models": models, "dtype": "bfloat16"}
    (tmp_path / "recipe.yml").write_text(json.dumps(recipe), "utf-8")
    ended = shoal("merge", tmp_path / "recipe.yml", "--out", tmp_path / "merged")
    assert ended.code == 0, ended.err
    assert next(iter(load_adapter(tmp_path / "merged").lora.factors.values())).a.dtype == torch.bfloat16


def test_mistakes_end_in_one_line(shoal: Shoal, adapters: dict[str, Path], tmp_path: Path) -> None:
    merge = ("merge", *named(adapters), "--out", tmp_path / "merged")
    (tmp_path / "few.txt").write_text("\n".join(INPUTS[:9]), "utf-8")
    few = ("--inputs", tmp_path / "few.txt")
    assert_one_line(shoal("merge", "--out", tmp_path / "x"), 2, "RECIPE, by --adapter")
    assert_one_line(shoal(*merge, *few), 2, "9 different inputs, the least is 16")
    assert_one_line(shoal(*merge, *few, "--method", "ties"), 2, "ties reads no inputs")
    assert_one_line(shoal(*merge, "--method", "regmean"), 2, "a has no inputs")
    assert_one_line(shoal(*merge, "--inputs", "c=few.txt"), 2, "no adapter is named c")
    assert_one_line(shoal(*merge, "--parameters", "density"), 2, "is no NAME=NUMBER")
    assert_one_line(shoal(*merge, "--start", adapters["a"]), 2, "a was trained on from")
    assert_one_line(shoal("merge", tmp_path / "no.yml", "--out", tmp_path / "x"), 1, "no.yml")


def test_adapters_of_other_base_models_are_refused(
    shoal: Shoal, adapters: dict[str, Path], tiny_llama: Path, tmp_path: Path
) -> None:
    shape = replace(load_shape(str(tiny_llama)), base_model="another")
    other = load_adapter(adapters["b"])
    save_adapter(tmp_path / "other", other.lora, shape=shape, card=other.card)
    ended = shoal(
        "merge",
        *("--adapter", f"a={adapters['a']}", "--adapter", f"b={tmp_path / 'other'}"),
        *("--out", tmp_path / "x"),
    )
    assert_one_line(ended, 2, "is for another, not")


@pytest.fixture
def experts(tiny_llama: Path, tmp_path: Path) -> dict[str, ExpertVector]:
    """Two experts, each in a directory of its name."""
    backbone = load_backbone(str(tiny_llama), dtype=torch.float32)
    names = [t.name for t in backbone.shape.select(("q_proj",), None)]
    basis = decompose_model(backbone.model, names, components=4)
    values = {name: ExpertVector({n: torch.rand(4) for n in names}) for name in "ab"}
    for name, value in values.items():
        save_expert(tmp_path / f"expert-{name}", StoredExpert(value, backbone.shape.base_model, name), basis)
    return values


def named_experts(folder: Path) -> list[str]:
    return [word for name in "ab" for word in ("--adapter", f"{name}={folder / f'expert-{name}'}")]


def test_one_expert_is_written_of_two(shoal: Shoal, experts: dict[str, ExpertVector], tmp_path: Path) -> None:
    parents = named_experts(tmp_path)
    ended = shoal("merge", *parents, "--dtype", "float32", "--out", tmp_path / "merged")
    assert ended.code == 0, ended.err
    merged = read_expert(tmp_path / "merged").expert
    for name, z in merged.z.items():
        torch.testing.assert_close(z, (experts["a"].z[name] + experts["b"].z[name]) / 2)


def test_experts_have_no_inputs_and_no_search_and_no_lora_beside_them(
    shoal: Shoal,
    experts: dict[str, ExpertVector],
    adapters: dict[str, Path],
    data: Path,
    tmp_path: Path,
) -> None:
    out = ("--out", tmp_path / "x")
    merge = ("merge", *named_experts(tmp_path), *out)
    assert_one_line(shoal(*merge, "--tasks", data), 2, "without a start, inputs or tasks")
    assert_one_line(shoal(*merge, "--evolve", "--tasks", data), 2, "a parent is an expert")
    assert_one_line(shoal(*merge, "--method", "tsv"), 2, "tsv needs matrices")
    mixed = ("--adapter", f"a={tmp_path / 'expert-a'}", "--adapter", f"b={adapters['b']}", *out)
    assert_one_line(shoal("merge", *mixed), 2, "merge adapters of one kind")


def test_weights_are_searched_for_on_the_parents_tasks(
    shoal: Shoal, adapters: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.merging.levels.LEAST_GAIN", 1e-4)  # the adapters are random
    search = ("merge", *named(adapters), "--evolve", "--out", tmp_path / "merged")
    front = tmp_path / "front"
    ended = shoal(*search, "--tasks", data, "--generations", 2, "--rank", 8, "--front", front, "--json")
    assert ended.code == 0, ended.err
    a, b, merged = (load_adapter(path).lora for path in (adapters["a"], adapters["b"], tmp_path / "merged"))
    assert ended.record["generations"] == 2 and set(ended.record["weights"]) == {"a", "b"}
    assert set(ended.record["verdict"]["ways"]) == {"merge", "mix", "route"}
    assert {path.name for path in front.iterdir()} == {"upper", "reverse", "balanced"}
    assert load_adapter(front / "upper").card.parents == {"a": a.fingerprint(), "b": b.fingerprint()}
    for folder in (tmp_path / "merged", front / "upper"):
        again = shoal("merge", folder / "merge.yml", "--rank", 8, "--out", tmp_path / "again")
        assert again.code == 0, again.err
        assert distance(load_adapter(tmp_path / "again").lora, load_adapter(folder).lora) < 1e-4
    assert set(json.loads((front / "upper" / "report.json").read_text("utf-8"))["kept"]) == {
        "upper",
        "reverse",
    }
    assert distance(compose([a, b], [0.5, 0.5]), merged) > 1e-2


def test_a_search_goes_on_from_regmean_with_inputs_and_counts_from_a_start(
    shoal: Shoal, adapters: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.merging.levels.LEAST_GAIN", 1e-4)  # the adapters are random
    inputs = tmp_path / "inputs.txt"
    inputs.write_text("".join(f"input number {i}\n" for i in range(16)), "utf-8")
    search = ("merge", *named(adapters), "--evolve", "--tasks", data, "--generations", 1, "--budget", "1h")
    more = ("--inputs", inputs, "--start", adapters["a"], "--out", tmp_path / "merged", "--json")
    more = (*more, "--out-dtype", "bfloat16")
    ended = shoal(*search, *more)
    assert ended.code == 0, ended.err
    assert ended.record["method"] == "regmean" and ended.record["generations"] == 1
    assert f"+{adapters['a']}\n" in (tmp_path / "merged" / "merge.yml").read_text("utf-8")
    merged = load_adapter(tmp_path / "merged").lora
    assert next(iter(merged.factors.values())).a.dtype == torch.bfloat16


def test_a_search_takes_a_method_and_a_parent_from_a_sentence_as_prior(
    shoal: Shoal, adapters: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def searched(*args: object, **settings: Any) -> None:
        asked.update(settings)
        raise UsageError("stop here")

    monkeypatch.setattr("shoal.merging.search.evolve_merge", searched)
    parent, shape = load_adapter(adapters["b"]), load_shape(load_adapter(adapters["b"]).base_model)
    card = AdapterCard(generator="text-to-lora", trained=True, description="Translate, then shout.")
    save_adapter(adapters["b"], parent.lora, shape=shape, card=card)
    flags = ("--method", "della", "--parameters", "epsilon=0.1,normalize=true", "--tasks", data)
    ended = shoal("merge", *named(adapters), "--evolve", *flags, "--out", tmp_path / "x")
    assert_one_line(ended, 2, "stop here")
    assert asked["method"] == "della" and asked["prior"] == ["b"]
    assert asked["parameters"] == {"epsilon": 0.1, "normalize": True}


@pytest.mark.parametrize("search", [True, False])
def test_what_a_parent_was_trained_on_judges_no_merge(
    search: bool, shoal: Shoal, adapters: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    task = load_task_json(data / "tasks" / "upper.json")
    parent, shape = load_adapter(adapters["b"]), load_shape(load_adapter(adapters["b"]).base_model)
    learnt = sketch_of(task.train if search else task.test)
    card = parent.card.model_copy(update={"trained_on": learnt})
    save_adapter(adapters["b"], parent.lora, shape=shape, card=card)
    flags = ("--tasks", data, "--out", tmp_path / "x", *(("--evolve",) if search else ()))
    assert_one_line(shoal("merge", *named(adapters), *flags), 1, "b was trained on", "is to judge it")


def test_a_closed_form_with_tasks_says_whether_to_merge(
    shoal: Shoal, adapters: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    ended = shoal("merge", *named(adapters), "--tasks", data, "--out", tmp_path / "merged")
    assert ended.code == 0, ended.err
    for line in ("merge: keeps", "mix: keeps", "route: keeps", "Optimism"):
        assert line in ended.out
    report = json.loads((tmp_path / "merged" / "report.json").read_text("utf-8"))
    assert report["verdict"]["sentence"] in ended.out


def test_parents_are_named_in_the_registry_or_described(
    shoal: Shoal, adapters: dict[str, Path], tiny_llama: Path, tmp_path: Path
) -> None:
    place = ("--registry", tmp_path / "registry")
    for name in "ab":  # two versions of one name
        kept = shoal("adapters", "import", "mine", adapters[name], "--base", tiny_llama, *place)
        assert kept.code == 0, kept.err
    parents = (
        "--adapter",
        "old=mine@1",
        "--adapter",
        "new=mine",
        "--adapter",
        "upper=describe: Answer in capitals.",
    )
    ended = shoal("merge", *parents, *place, "--base", tiny_llama, "--out", tmp_path / "merged", "--json")
    assert ended.code == 0, ended.err
    found = {name: load_adapter(adapters[name]).lora.fingerprint() for name in "ab"}
    assert ended.record["parents"]["old"] == found["a"] and ended.record["parents"]["new"] == found["b"]
    sentence = load_adapter(tmp_path / "merged.parents" / "upper")
    assert sentence.card.description == "Answer in capitals."
    again = ("merge", *parents[:4], "--adapter", "x=mine@9", *place, "--out", tmp_path / "x")
    assert_one_line(shoal(*again), 2, "of version 9")


def test_inputs_may_be_those_of_a_task_file(
    shoal: Shoal, adapters: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    merge = ("merge", *named(adapters), "--inputs", data / "tasks" / "upper.json", "--out", tmp_path / "x")
    assert_one_line(shoal(*merge), 2, "6 different inputs, the least is 16")


def test_mistakes_of_a_search_are_one_line(
    shoal: Shoal, adapters: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    search = ("merge", *named(adapters), "--evolve", "--out", tmp_path / "x")
    assert_one_line(shoal(*search), 2, "name the parents' tasks with --tasks")
    assert_one_line(shoal(*search, "--tasks", data, "--method", "linear"), 2, "no weights of linear")
    assert_one_line(shoal(*search, "--tasks", data, "--weights", "1,1"), 2, "leave --weights out")
    assert_one_line(
        shoal(*search, "--tasks", data, "--budget", "15"), 2, "--budget 15: write seconds, minutes"
    )
    assert_one_line(
        shoal("merge", *named(adapters), "--budget", "15m", "--out", tmp_path / "x"), 2, "--budget belongs"
    )
    alone = ("merge", "--adapter", f"a={adapters['a']}", "--evolve", "--tasks", data, "--out", tmp_path / "x")
    assert_one_line(shoal(*alone), 2, "2")
