"""Whole models merged beside mergekit, which runs as a program of another environment.

How to have it: `tests/adapters/merging/test_mergekit.py`. Both read the same documents.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from shoal.adapters.merging.mergekit_reader import parse_recipe
from shoal.adapters.merging.mergekit_writer import write_recipe
from shoal.merging.whole_models import WholeModels
from tests.adapters.merging.test_mergekit import PROGRAM
from tests.fixtures.models import apart, tuned, weights_of

# {0} is the base model, {1} to {3} are tuned from it.
PAIR = "models: [{{model: {1}, parameters: {{weight: 0.5}}}}, {{model: {2}, parameters: {{weight: 0.9}}}}]"
THIN = (
    "models: [{{model: {1}, parameters: {{weight: 0.5, density: 0.31}}}}, "
    "{{model: {2}, parameters: {{weight: 0.9, density: 0.57}}}}, "
    "{{model: {3}, parameters: {{weight: 0.4, density: 0.8}}}}]"
)
SLICED = (
    "slices: [{{sources: [{{model: {1}, layer_range: [0, 2], parameters: {{weight: [0.1, 0.9]}}}}, "
    "{{model: {2}, layer_range: [0, 2], parameters: {{weight: 0.3}}}}, "
    "{{model: {0}, layer_range: [0, 2]}}]}}, "
    "{{sources: [{{model: {1}, layer_range: [2, 3]}}, {{model: {2}, layer_range: [2, 3]}}, "
    "{{model: {0}, layer_range: [2, 3]}}]}}]"
)
DOCUMENTS = {
    "mean": "merge_method: linear, " + PAIR,
    "sum": "merge_method: linear, parameters: {{normalize: false}}, " + PAIR,
    "arithmetic": "merge_method: task_arithmetic, base_model: {0}, parameters: {{lambda: 0.7}}, " + PAIR,
    "gradient": "merge_method: task_arithmetic, base_model: {0}, models: [{{model: {1}, parameters: "
    "{{weight: [{{filter: q_proj, value: [0.2, 0.5, 1.0]}}, {{value: [0.3, 0.9]}}]}}}}, {{model: {2}, "
    "parameters: {{weight: 0.4}}}}]",
    "slices": "merge_method: task_arithmetic, base_model: {0}, parameters: {{weight: 0.6}}, " + SLICED,
    "ties-mean": "merge_method: ties, base_model: {0}, " + THIN,
    "ties-sum": "merge_method: ties, base_model: {0}, parameters: {{normalize: false}}, " + THIN,
    "dare-whole": "merge_method: dare_ties, base_model: {0}, " + PAIR,
    "dare-linear-whole": "merge_method: dare_linear, base_model: {0}, " + PAIR,
    "della-whole": "merge_method: della, base_model: {0}, " + PAIR,
    "breadcrumbs": "merge_method: breadcrumbs, base_model: {0}, parameters: {{gamma: 0.05}}, " + THIN,
    "sce": "merge_method: sce, base_model: {0}, parameters: {{select_topk: 0.43}}, "
    + PAIR.replace(", parameters: {{weight: 0.5}}", "").replace(", parameters: {{weight: 0.9}}", ""),
    "stock": "merge_method: model_stock, base_model: {0}, models: [{{model: {1}}}, {{model: {2}}}]",
    "slerp": "merge_method: slerp, base_model: {1}, models: [{{model: {1}}}, {{model: {4}}}], "
    "parameters: {{t: 0.3}}",
    "nuslerp": "merge_method: nuslerp, base_model: {0}, " + PAIR,
    "nuslerp-alone": "merge_method: nuslerp, models: [{{model: {1}, parameters: {{weight: 0.5}}}}, "
    "{{model: {4}, parameters: {{weight: 0.9}}}}]",
    "multislerp": "merge_method: multislerp, base_model: {0}, " + PAIR,
    "karcher": "merge_method: karcher, models: [{{model: {1}}}, {{model: {2}}}, {{model: {4}}}]",
}


@pytest.fixture(scope="module")
def documents(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Path]]:
    """Name -> what we write of a recipe, and the model that mergekit makes of it."""
    if PROGRAM is None:
        pytest.skip(
            "no mergekit: set SHOAL_MERGEKIT to the mergekit-multi of an environment with mergekit 0.1.5"
        )
    folder = tmp_path_factory.mktemp("mergekit")
    sizes = {"a": 0.02, "b": 0.03, "c": 0.04, "d": 0.2}  # the last turns far from the base
    models = [tuned(tiny_llama, folder / n, seed, size) for seed, (n, size) in enumerate(sizes.items())]
    texts = {}
    for name, text in DOCUMENTS.items():
        recipe = parse_recipe("{" + text.format(tiny_llama, *models) + ", dtype: float32}")
        texts[name] = write_recipe(recipe, recipe.base_model)
    config = folder / "all.yml"
    config.write_text("\n---\n".join(f"name: stage-{n}\n{t}" for n, t in texts.items()), "utf-8")
    command = [PROGRAM, config, "--intermediate-dir", folder / "out", "--no-copy-tokenizer", "--quiet"]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: (text, folder / "out" / f"stage-{name}") for name, text in texts.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", DOCUMENTS)
def test_whole_models_are_those_of_mergekit(
    documents: dict[str, tuple[str, Path]], name: str, tmp_path: Path
) -> None:
    text, theirs = documents[name]
    WholeModels(parse_recipe(text), None).write(tmp_path / "out")
    assert apart(weights_of(tmp_path / "out"), weights_of(theirs)) <= 1e-5
