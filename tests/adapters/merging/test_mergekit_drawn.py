"""Drawn recipes and random masks beside mergekit's own, which runs as a program of another environment.

`tests/adapters/merging/test_mergekit.py` says how to run it.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from shoal.adapters.card import AdapterCard
from shoal.adapters.files import load_adapter, save_adapter
from shoal.adapters.merging import run_recipe
from shoal.adapters.merging.mergekit_reader import parse_recipe
from shoal.adapters.merging.mergekit_writer import write_recipe
from shoal.adapters.merging.methods import METHODS
from shoal.adapters.merging.recipe import Clause, Recipe, Setting, Slice, constant
from shoal.models.shapes import load_shape
from tests.fixtures.merging import random_lora

PROGRAM = os.environ.get("SHOAL_MERGEKIT") or shutil.which("mergekit-multi")
DRAWN, SEEDS = 20, 64
MASKED = ("dare_linear", "dare_ties", "della", "della_linear")
# Spherical methods stop there at tensors that no parent changes, or turn whole weights.
METHODS_THERE = ("linear", "task_arithmetic", "ties", *MASKED, "breadcrumbs", "breadcrumbs_ties", "sce")
RANGES = {"weight": (0.2, 1.0), "density": (0.3, 0.9), "gamma": (0.01, 0.05), "epsilon": (0.01, 0.05)}
RANGES |= {"lambda": (0.5, 1.5), "select_topk": (0.3, 1.0)}


@dataclass(frozen=True)
class There:
    """What mergekit wrote.

    Attributes:
        recipes: name -> recipe as we read what was written for mergekit.
        deltas: name -> module -> merged weight less the base model's, float64.
        seeds: method -> the same of every seed.
    """

    recipes: dict[str, Recipe]
    deltas: dict[str, dict[str, Tensor]]
    seeds: dict[str, list[dict[str, Tensor]]]


def drawn(number: int, parents: list[str]) -> Recipe:
    """A recipe whose method, shape and values come from a number."""
    chance = random.Random(number)
    method = METHODS_THERE[number % len(METHODS_THERE)]

    def setting(name: str) -> Setting:
        low, high = RANGES[name]
        values = tuple(round(chance.uniform(low, high), 3) for _ in range(chance.choice((1, 1, 3))))
        rest = Clause((round(chance.uniform(low, high), 3),))
        return (
            (Clause(values, chance.choice(("q_proj", "down_proj"))), rest)
            if chance.random() < 0.4
            else (rest,)
        )

    each, shared = [p.name for p in METHODS[method].parameters if p.each and p.name in RANGES], {}
    for parameter in METHODS[method].parameters:
        if not parameter.each and parameter.name in RANGES and chance.random() < 0.5:
            low, high = RANGES[parameter.name]
            shared[parameter.name] = constant(round(chance.uniform(low, high), 3))
        elif parameter.name in ("normalize", "rescale") and method != "linear" and chance.random() < 0.5:
            shared[parameter.name] = constant(chance.random() < 0.5)
    own = tuple({name: setting(name) for name in each} for _ in parents)
    slices = (Slice(each=own),)
    if chance.random() < 0.4:
        again = tuple({name: setting(name) for name in each} for _ in parents)
        slices = (Slice((0, 2), own), Slice((2, 3), again))
    return Recipe(method, tuple(parents), slices, shared, dtype="float32")


@pytest.fixture(scope="module")
def there(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> There:
    if PROGRAM is None:
        pytest.skip(
            "no mergekit: set SHOAL_MERGEKIT to the mergekit-multi of an environment with mergekit 0.1.5"
        )
    folder = tmp_path_factory.mktemp("drawn")
    shape = load_shape(str(tiny_llama))
    sizes = {t.name: (t.in_features, t.out_features) for t in shape.select(("q_proj", "down_proj"), None)}
    for seed, name in enumerate("abc"):
        lora = random_lora(seed, sizes) * 0.05
        save_adapter(folder / name, lora, shape=shape, card=AdapterCard(generator="test", trained=True))
    parents = [str(folder / name) for name in "abc"]
    texts = {f"d{n}": write_recipe(drawn(n, parents), str(tiny_llama)) for n in range(DRAWN)}
    for method in MASKED:
        text = write_recipe(masked(method, parents), str(tiny_llama))
        texts |= {f"{method}{seed}": text for seed in range(SEEDS)}
    config = folder / "all.yml"
    config.write_text("\n---\n".join(f"name: stage-{n}\n{text}" for n, text in texts.items()), "utf-8")
    command = [PROGRAM, config, "--intermediate-dir", folder / "out", "--lora-merge-cache", folder / "cache"]
    flags = ["--lora-merge-dtype", "float32", "--no-copy-tokenizer", "--quiet"]
    # A program of another environment must not find this one's packages.
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([*command, *flags], env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    base = load_file(tiny_llama / "model.safetensors")

    def delta(name: str) -> dict[str, Tensor]:
        merged = load_file(folder / "out" / f"stage-{name}" / "model.safetensors")
        return {m: merged[f"{m}.weight"].double() - base[f"{m}.weight"].double() for m in sizes}

    return There(
        {name: parse_recipe(text) for name, text in texts.items()},
        {name: delta(name) for name in texts if name.startswith("d") and name[1:].isdigit()},
        {method: [delta(f"{method}{seed}") for seed in range(SEEDS)] for method in MASKED},
    )


def masked(method: str, parents: list[str]) -> Recipe:
    """Random masks that leave about half."""
    own = tuple({"weight": constant(w), "density": constant(0.5)} for w in (0.5, 0.9, 0.4))
    return Recipe(method, tuple(parents), (Slice(each=own),), dtype="float32")


def ours(recipe: Recipe, seed: int = 0) -> dict[str, Tensor]:
    loras = [load_adapter(parent).lora for parent in recipe.parents]
    lora = run_recipe(recipe, loras, rank=64, num_layers=3, seed=seed).lora
    return {name: lora.delta_weight(name).double() for name in lora.factors}


@pytest.mark.slow
@pytest.mark.parametrize("number", range(DRAWN))
def test_a_drawn_recipe_runs_there_unchanged(there: There, number: int) -> None:
    recipe, theirs = there.recipes[f"d{number}"], there.deltas[f"d{number}"]
    assert all(bool(delta.isfinite().all()) for delta in theirs.values())
    if recipe.method in MASKED:
        assert any(bool(delta.any()) for delta in theirs.values())
        return
    own = ours(recipe)
    missed = sum(float((own[name] - theirs[name]).norm() ** 2) for name in theirs)
    assert (missed / sum(float(delta.norm() ** 2) for delta in theirs.values())) ** 0.5 <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("method", MASKED)
def test_random_masks_agree_in_the_mean_over_seeds(there: There, method: str) -> None:
    """Means over seeds differ by no more than the spread over seeds lets them."""
    recipe = replace(there.recipes[f"{method}0"])
    of = [[ours(recipe, seed) for seed in range(SEEDS)], there.seeds[method]]
    apart = expected = 0.0
    for name in of[0][0]:
        stacked = [torch.stack([delta[name] for delta in each]) for each in of]
        apart += float((stacked[0].mean(0) - stacked[1].mean(0)).norm() ** 2)
        expected += sum(float(each.var(0).sum()) / SEEDS for each in stacked)
    assert 0.8 < apart / expected < 1.25
