"""Our merges beside mergekit's own, which runs as a program of another environment.

    python -m venv mergekit && mergekit/bin/pip install mergekit==0.1.5
    SHOAL_MERGEKIT=mergekit/bin/mergekit-multi python -m pytest tests/adapters/merging/test_mergekit.py

Spherical methods turn whole weights there, so theirs run on a base model whose adapted weights are zero.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from shoal.adapters.card import AdapterCard
from shoal.adapters.files import load_adapter, save_adapter
from shoal.adapters.merging import run_recipe
from shoal.adapters.merging.mergekit_reader import parse_recipe
from shoal.adapters.merging.mergekit_writer import write_recipe
from shoal.adapters.merging.recipe import Clause, Recipe, Slice, constant
from shoal.models.shapes import load_shape
from tests.fixtures.merging import random_lora

PROGRAM = os.environ.get("SHOAL_MERGEKIT") or shutil.which("mergekit-multi")
WEIGHTS = ({"weight": 0.5}, {"weight": 0.9}, {"weight": 0.4})
OPPOSED = ({"weight": 0.5}, {"weight": 0.9}, {"weight": -0.4})
THIN = ({"weight": 0.5, "density": 0.31}, {"weight": 0.9, "density": 0.57}, {"weight": 0.4, "density": 0.8})
MIDDLE = tuple({**own, "gamma": gamma} for own, gamma in zip(THIN, (0.01, 0.05, 0.3), strict=True))
Case = tuple[str, tuple[dict[str, float], ...], dict[str, float | bool]]
CASES: dict[str, Case] = {
    "mean": ("linear", WEIGHTS, {}),
    "sum": ("linear", WEIGHTS, {"normalize": False}),
    "arithmetic": ("task_arithmetic", OPPOSED, {"lambda": 0.7}),
    "arithmetic-mean": ("task_arithmetic", WEIGHTS, {"normalize": True}),
    "ties-mean": ("ties", THIN, {}),
    "ties-sum": ("ties", THIN, {"normalize": False, "lambda": 1.3}),
    "ties-rescaled": ("ties", THIN, {"rescale": True}),
    "ties-opposed": ("ties", OPPOSED, {"density": 0.5}),
    "breadcrumbs-sum": ("breadcrumbs", MIDDLE, {}),
    "breadcrumbs-signs": ("breadcrumbs_ties", MIDDLE, {}),
    "breadcrumbs-mean": ("breadcrumbs_ties", MIDDLE, {"normalize": True}),
    "sce-all": ("sce", (), {}),
    "sce-some": ("sce", (), {"select_topk": 0.43}),
    "stock": ("model_stock", (), {}),
    "nuslerp-pair": ("nuslerp", WEIGHTS[:2], {}),
    "dare-whole": ("dare_linear", WEIGHTS, {}),
    "dare-signs-whole": ("dare_ties", WEIGHTS, {}),
    "della-whole": ("della", WEIGHTS, {}),
    "della-sum-whole": ("della_linear", WEIGHTS, {}),
}
GRADIENT = (Clause((0.2, 0.5, 1.0), "q_proj"), Clause((0.3,)))
WHOLE_WEIGHTS = {  # {0}, {1} and {2} are models
    "slerp-whole": "{{merge_method: slerp, base_model: {0}, models: [{{model: {0}}}, {{model: {1}}}], "
    "parameters: {{t: 0.3}}, dtype: float32}}",
    "karcher-whole": "{{merge_method: karcher, models: [{{model: {0}}}, {{model: {1}}}, {{model: {2}}}], "
    "dtype: float32}}",
    "multislerp-whole": "{{merge_method: multislerp, models: [{{model: {0}, parameters: {{weight: 0.5}}}}, "
    "{{model: {1}, parameters: {{weight: 0.9}}}}, {{model: {2}, parameters: {{weight: 0.4}}}}], "
    "dtype: float32}}",
}
ALL = (*CASES, "gradient", "slices", *WHOLE_WEIGHTS)


@dataclass(frozen=True)
class Run:
    """One merge of mergekit.

    Attributes:
        recipe: as we read it.
        base: weights that deltas count from.
        merged: weights that mergekit wrote.
    """

    recipe: Recipe
    base: dict[str, Tensor]
    merged: dict[str, Tensor]


@pytest.fixture(scope="module")
def runs(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    if PROGRAM is None:
        pytest.skip(
            "no mergekit: set SHOAL_MERGEKIT to the mergekit-multi of an environment with mergekit 0.1.5"
        )
    folder = tmp_path_factory.mktemp("mergekit")
    shape = load_shape(str(tiny_llama))
    sizes = {t.name: (t.in_features, t.out_features) for t in shape.select(("q_proj", "down_proj"), None)}
    for seed, name in enumerate("abc"):
        lora = random_lora(seed, sizes) * (0.05 + 0.02 * seed)
        save_adapter(folder / name, lora, shape=shape, card=AdapterCard(generator="test", trained=True))
    shutil.copytree(tiny_llama, folder / "hollow")
    weights = load_file(tiny_llama / "model.safetensors")
    hollow = {n: w * (n.removesuffix(".weight") not in sizes) for n, w in weights.items()}
    save_file(hollow, folder / "hollow" / "model.safetensors", {"format": "pt"})

    parents = [str(folder / name) for name in "abc"]
    texts = {name: write_recipe(_recipe(case, parents), str(tiny_llama)) for name, case in CASES.items()}
    plain = _recipe(("task_arithmetic", WEIGHTS, {}), parents)
    texts["gradient"] = write_recipe(
        replace(plain, slices=(Slice(each=({"weight": GRADIENT},) * 3),)), str(tiny_llama)
    )
    first, rest = (replace(plain.slices[0], layers=layers) for layers in ((0, 2), (2, 3)))
    gradients = replace(first, each=({"weight": (Clause((0.1, 0.9)),)},) * 3)
    texts["slices"] = write_recipe(replace(plain, slices=(gradients, rest)), str(tiny_llama))
    models = [f"{folder / 'hollow'}+{parent}" for parent in parents]
    texts |= {name: text.format(*models) for name, text in WHOLE_WEIGHTS.items()}
    config = folder / "all.yml"
    # A stage of mergekit-multi has a name, which must differ from every word in it.
    config.write_text("\n---\n".join(_named(f"stage-{name}", text) for name, text in texts.items()), "utf-8")
    command = [PROGRAM, config, "--intermediate-dir", folder / "out", "--lora-merge-cache", folder / "cache"]
    flags = ["--lora-merge-dtype", "float32", "--no-copy-tokenizer", "--quiet"]
    # A program of another environment must not find this one's packages.
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([*command, *flags], env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return {
        name: Run(
            parse_recipe(text),
            hollow if name in WHOLE_WEIGHTS else weights,
            load_file(folder / "out" / f"stage-{name}" / "model.safetensors"),
        )
        for name, text in texts.items()
    }


def _recipe(case: Case, parents: list[str]) -> Recipe:
    method, each, shared = case
    own = tuple({name: constant(value) for name, value in settings.items()} for settings in each)
    settings = {name: constant(value) for name, value in shared.items()}
    return Recipe(method, tuple(parents[: len(each) or 3]), (Slice(each=own),), settings, dtype="float32")


def _named(name: str, text: str) -> str:
    return f"{{name: {name}, {text[1:]}" if text.startswith("{") else f"name: {name}\n{text}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_the_merged_weights_are_those_of_mergekit(runs: dict[str, Run], name: str) -> None:
    run = runs[name]
    loras = [load_adapter(parent).lora for parent in run.recipe.parents]
    ours = run_recipe(run.recipe, loras, rank=64, num_layers=3).lora
    missed = whole = 0.0
    for module in ours.factors:
        theirs = run.merged[f"{module}.weight"].double() - run.base[f"{module}.weight"].double()
        missed += float((ours.delta_weight(module).double() - theirs).norm() ** 2)
        whole += float(theirs.norm() ** 2)
    assert (missed / whole) ** 0.5 <= 1e-5
