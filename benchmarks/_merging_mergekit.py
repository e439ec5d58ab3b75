"""Every method beside mergekit's own on the real model, with what is drawn at random left out.

Some run on a copy of the model whose adapted weights are zero. Spherical means turn whole weights there; and
mergekit's deltas are differences of weights, whose rounding moves single elements across a threshold.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from _merging_apart import of_seed
from _merging_bench import Bench
from safetensors.torch import load_file, save_file

from shoal.adapters.files import load_adapter
from shoal.adapters.merging import METHODS, run_recipe
from shoal.adapters.merging.mergekit_writer import write_recipe
from shoal.adapters.merging.recipe import Recipe, Settings, Slice, constant
from shoal.models.sources import find_model
from shoal.models.tensor_files import FILE, TensorFiles

OF_EACH = {"weight": (0.5, 0.9, 0.4), "density": (0.31, 0.57, 0.8), "gamma": (0.01, 0.05, 0.3)}
SHARED = {"lambda": 0.7, "select_topk": 0.43, "t": 0.3}
SPHERICAL = ("multislerp", "karcher")
WHOLE_RANK = 2**20  # no rank is cut


def mergekit(bench: Bench, seed: int) -> None:
    """Measure every method that mergekit has, where `SHOAL_MERGEKIT` names it."""
    program = os.environ.get("SHOAL_MERGEKIT")
    methods = [name for name, method in METHODS.items() if method.mergekit]
    if program is None or all(f"mergekit/{name}" in bench.cells for name in methods):
        return
    names = list(of_seed(bench, seed).parents)[:3]
    parents = [str((bench.args.out / "loras" / f"{name}-{seed}").resolve()) for name in names]
    base = Path(find_model(bench.args.base).location)
    with tempfile.TemporaryDirectory(dir=bench.args.out) as folder:
        there = There(Path(program).with_name("mergekit-yaml"), base, Path(folder))
        for name in methods:
            bench.cell(f"mergekit/{name}", lambda name=name: there.compared(_recipe(name, parents)))


class There:
    """mergekit as a program, and the models that its merges count from."""

    def __init__(self, program: Path, base: Path, folder: Path) -> None:
        self._program, self._base, self._folder = program, base, folder

    def compared(self, recipe: Recipe) -> dict[str, Any]:
        """Relative Frobenius error of our merged change, and seconds of either."""
        started = time.perf_counter()
        loras = [load_adapter(parent).lora for parent in recipe.parents]
        hollow = recipe.method in SPHERICAL or METHODS[recipe.method].form == "elements"
        base = self._hollow(set(loras[0].factors)) if hollow else self._base
        ours = run_recipe(recipe, loras, rank=WHOLE_RANK).lora
        seconds = time.perf_counter() - started
        document = yaml.safe_load(write_recipe(recipe, str(base)))
        if recipe.method in SPHERICAL:
            document.pop("base_model", None)
        path, out = self._folder / "merge.yml", self._folder / "merged"
        path.write_text(yaml.safe_dump(document), "utf-8")
        flags = ["--lora-merge-cache", self._folder / base.name, "--lora-merge-dtype", "float32"]
        # A program of another environment must not find this one's packages.
        clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        started = time.perf_counter()
        command = [self._program, path, out, *flags, "--no-copy-tokenizer", "--quiet"]
        subprocess.run(command, env=clean, check=True, capture_output=True)
        theirs = time.perf_counter() - started
        before, after = TensorFiles(base), TensorFiles(out)
        missed = whole = 0.0
        for module in ours.factors:
            delta = after.read(f"{module}.weight").double() - before.read(f"{module}.weight").double()
            missed += float((ours.delta_weight(module).double() - delta).square().sum())
            whole += float(delta.square().sum())
        shutil.rmtree(out)
        return {"relative_error": (missed / whole) ** 0.5, "our_seconds": seconds, "their_seconds": theirs}

    def _hollow(self, modules: set[str]) -> Path:
        """A copy of the base model whose adapted weights are zero."""
        hollow = self._folder / "hollow"
        if not hollow.exists():
            shutil.copytree(self._base, hollow)
            weights = load_file(self._base / FILE)
            left = {name: w * (name.removesuffix(".weight") not in modules) for name, w in weights.items()}
            save_file(left, hollow / FILE, {"format": "pt"})
        return hollow


def _recipe(name: str, parents: list[str]) -> Recipe:
    """A merge by a method, with a value for most parameters; random masks keep all."""
    method = METHODS[name]
    known = {p.name for p in method.parameters}
    if "rescale_by_density" in known:
        known.remove("density")
    each = tuple(
        {key: constant(values[place]) for key, values in OF_EACH.items() if key in known}
        for place in range(len(parents[: method.most]))
    )
    settings: Settings = {key: constant(value) for key, value in SHARED.items() if key in known}
    return Recipe(name, tuple(parents[: method.most]), (Slice(each=each),), settings, dtype="float32")
