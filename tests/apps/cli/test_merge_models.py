"""`shoal merge` of whole models: flags and mergekit's YAML in, one model's directory out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fixtures.cli import Shoal, assert_one_line
from tests.fixtures.models import apart, tuned, weights_of


@pytest.fixture(scope="module")
def models(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: tuned(tiny_llama, folder / name, seed) for seed, name in enumerate("ab")}


def test_flags_and_the_recipe_beside_the_result_give_the_same(
    shoal: Shoal, models: dict[str, Path], tiny_llama: Path, tmp_path: Path
) -> None:
    given = ("--model", models["a"], "--model", models["b"], "--base", tiny_llama)
    how = ("--method", "ties", "--weights", "1,0.5", "--parameters", "density=0.4", "--out-dtype", "float32")
    ended = shoal("merge", *given, *how, "--out", tmp_path / "out", "--json")
    assert ended.code == 0, ended.err
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report == {k: v for k, v in ended.record.items() if k != "out"}
    assert set(report["parents"]) == {str(models["a"]), str(models["b"])} and report["bytes"] > 0
    again = shoal("merge", tmp_path / "out" / "merge.yml", "--out", tmp_path / "again")
    assert again.code == 0, again.err
    assert apart(weights_of(tmp_path / "again"), weights_of(tmp_path / "out")) == 0


def test_regmean_reads_inputs_under_every_model(
    shoal: Shoal, models: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(f"text number {i}" for i in range(20)), "utf-8")
    given = ("--model", models["a"], "--model", models["b"], "--inputs", tmp_path / "texts.txt")
    ended = shoal("merge", *given, "--dtype", "float32", "--out", tmp_path / "out", "--json")
    assert ended.code == 0, ended.err
    a, b, merged = (weights_of(path) for path in (models["a"], models["b"], tmp_path / "out"))
    mean = {name: (a[name] + b[name]) / 2 for name in a}
    assert ended.record["method"] == "regmean" and 0 < apart(merged, mean) < apart(a, b)


def test_mistakes_are_one_line(
    shoal: Shoal, models: dict[str, Path], tiny_llama: Path, tmp_path: Path
) -> None:
    given = ("merge", "--model", models["a"], "--model", models["b"], "--out", tmp_path / "out")
    assert_one_line(shoal(*given, "--method", "ties"), 2, "name it with --base")
    assert_one_line(shoal(*given, "--evolve", "--tasks", "x"), 2, "--evolve is for adapters")
    assert_one_line(shoal(*given, "--adapter", "a=x"), 2, "give one of these")
    assert_one_line(shoal(*given, "--model", tmp_path / "none"), 2, "is no directory")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("x")
    given = (*given[:-1], tmp_path / "taken")
    assert_one_line(shoal(*given), 2, "holds mine.txt")
