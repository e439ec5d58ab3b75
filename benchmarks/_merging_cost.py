"""Cost of a candidate: beside a plain forward pass of the same rows, and beside mergekit's write and load.

Run alone (`--parts cost`), its peak memory is that of a search.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from _machine import machine
from _merging_apart import Apart, of_seed
from _merging_bench import Bench
from transformers import AutoModelForCausalLM, PreTrainedModel

from shoal.adapters.files import load_adapter
from shoal.adapters.hooks import attach
from shoal.adapters.merging.mergekit_writer import write_recipe
from shoal.adapters.merging.recipe import Recipe
from shoal.inference.beginning import common_beginning, losses_under_each
from shoal.merging.levels import TaskLevels
from shoal.merging.mixtures import Sum
from shoal.merging.population import MergePopulation
from shoal.models.backbone import load_backbone
from shoal.models.sources import find_model
from shoal.training.batches import tokenise

POPULATION, REPEATS = 16, 2


def cost(bench: Bench, seed: int) -> None:
    """Measure a generation of 16 candidates, what one costs, and mergekit where `SHOAL_MERGEKIT` names it."""
    own = of_seed(bench, seed)
    bench.cell("cost/candidate", lambda: _candidate(own))
    bench.cell("cost/generation", lambda: _generation(own))
    if program := os.environ.get("SHOAL_MERGEKIT"):
        bench.cell("cost/mergekit", lambda: _mergekit(own, Path(program).with_name("mergekit-yaml")))


def _plain(own: Apart) -> tuple[Sum, MergePopulation]:
    """A population over the plain sum; what a candidate earns costs nothing more."""
    backbone, config = own.bench.backbone, own.config.model_copy(update={"batch_size": 30})
    corpus = tokenise(own.selection, backbone, config.max_length)
    mixture = Sum(backbone, own.parents, config.layer_groups, start=own.bench.start)
    levels = [TaskLevels(1.0, name, 0.0) for name in mixture.names]
    return mixture, MergePopulation(backbone, mixture, corpus, config, levels)


def _generation(own: Apart) -> dict[str, Any]:
    """Seconds of 16 candidates on 30 examples, and the process's peak memory."""
    _, population = _plain(own)
    candidates = population.genome[None].repeat(POPULATION, 1)
    seconds, processor = _spent(lambda: population.judge(candidates, population.examples(0)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "generation_seconds": seconds,
        "processor_seconds": processor,
        "candidates": POPULATION,
        "peak_bytes": peak,
    }


def _candidate(own: Apart) -> dict[str, Any]:
    """Median processor seconds of 16 candidates on 4 examples, and of the same rows in other ways.

    `plain` has them under one LoRA of the summed rank, each candidate's beginning read once as well;
    `whole` reads the beginning with every row.
    """
    mixture, population = _plain(own)
    backbone = own.bench.backbone
    rows = [(e.prompt, e.completion) for e in population.examples(0)[:4]]
    candidates = population.genome[None].repeat(POPULATION, 1)

    def plain() -> None:
        with attach(backbone.model, mixture.joined):
            losses_under_each(backbone, rows, POPULATION)

    def under_all(share: bool) -> None:
        with torch.no_grad(), mixture.attach(backbone.model, candidates):
            losses_under_each(backbone, rows, POPULATION, share=share)

    ways: Mapping[str, Callable[[], object]] = {
        "population": lambda: under_all(True),
        "plain": plain,
        "whole": lambda: under_all(False),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS + 1):
        for name, way in ways.items():
            times[name].append(_spent(way)[1])
    found = {name: statistics.median(taken[1:]) for name, taken in times.items()}
    return {
        **found,
        "rows": len(rows) * POPULATION,
        "machine": machine(backbone.dtype),
        "beginning": len(common_beginning([prompt for prompt, _ in rows])),
        "ratio": found["population"] / found["plain"],
    }


def _mergekit(own: Apart, program: Path) -> dict[str, Any]:
    """Seconds of one merge of the parents by mergekit and by `shoal merge`, until the model is loaded."""
    bench, names = own.bench, [f"{t.name}-{own.seed}" for t in own.tasks]
    base = str(find_model(bench.args.base).location)
    recipe = Recipe.of("task_arithmetic", [str((bench.args.out / "loras" / n).resolve()) for n in names])
    with tempfile.TemporaryDirectory(dir=bench.args.out) as folder:
        path, out = Path(folder, "merge.yml"), Path(folder, "merged")
        path.write_text(write_recipe(recipe, base), "utf-8")
        flags = ["--lora-merge-cache", Path(folder, "cache"), "--lora-merge-dtype", "float32"]
        clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [program, path, out, *flags, "--no-copy-tokenizer", "--quiet"]

        def write_and_load() -> PreTrainedModel:
            subprocess.run(command, env=clean, check=True, capture_output=True)
            return AutoModelForCausalLM.from_pretrained(out)

        # The second merge finds every parent merged into a copy, as an evolution does.
        first, _ = _spent(write_and_load)
        again, processor = _spent(write_and_load)
        theirs = AutoModelForCausalLM.from_pretrained(out)
        written = sum(f.stat().st_size for f in Path(folder).rglob("*.safetensors"))
        ours = Path(folder, "ours")
        started = time.perf_counter()
        merge = [sys.executable, "-m", "shoal.apps.cli.main", "merge", path, "--base", bench.args.base]
        flags = ["--rank", str(own.whole), "--out", ours]
        subprocess.run([*merge, *flags], check=True, capture_output=True)
        loaded = load_backbone(bench.args.base)
        lora = load_adapter(ours).lora
        with attach(loaded.model, lora):
            ours_took = time.perf_counter() - started
    missed = whole = 0.0
    for name in lora.factors:
        own_weight, weight = (m.get_submodule(name).weight.detach() for m in (loaded.model, theirs))
        delta = (weight - own_weight).double()
        missed += float((lora.delta_weight(name) - delta).square().sum())
        whole += float(delta.square().sum())
    return {
        "first_seconds": first,
        "seconds_again": again,
        "processor_seconds_again": processor,
        "our_seconds": ours_took,
        "bytes_written": written,
        "relative_error": (missed / whole) ** 0.5,
    }


def _spent(way: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and seconds of processors, those of programs that it ran among them."""
    started = time.perf_counter(), _processors()
    way()
    return time.perf_counter() - started[0], _processors() - started[1]


def _processors() -> float:
    return sum(os.times()[:4])
