"""`shoal merge`: one adapter from several by a closed form, a search, or as a recipe of mergekit says."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, Field

from shoal.apps.cli.model import Place, load, warn_of_another_base
from shoal.apps.cli.settings import Output
from shoal.errors import UsageError

if TYPE_CHECKING:
    from shoal.adapters.base import LoadedAdapter
    from shoal.adapters.lora import LoRA
    from shoal.adapters.merging import Merged
    from shoal.adapters.merging.recipe import Recipe
    from shoal.models.shapes import BackboneShape

log = logging.getLogger(__name__)

RECIPE_FILE, REPORT_FILE = "merge.yml", "report.json"


class Merging(BaseModel):
    """Parents and method of a merge, and its target."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adapter: Mapping[str, Path] = Field(
        default_factory=dict, description="a parent: its name and its directory; give two or more"
    )
    method: str | None = Field(
        None, description="how to merge; none means regmean with --inputs, else linear"
    )
    weights: tuple[float, ...] = Field((), description="of each parent, in order; none means 1 each")
    parameters: tuple[str, ...] = Field((), description="of the method, as density=0.5,lambda=0.7")
    inputs: tuple[str, ...] = Field(
        (), description="for regmean: FILE of 16 or more inputs without answers, or NAME=FILE for each parent"
    )
    start: Path | None = Field(
        None, description="adapter that the parents were trained on from; deltas count from it"
    )
    rank: int = Field(16, ge=1, description="of the result at most; vLLM serves 16 without a flag")
    evolve: bool = Field(
        False, description="search for weights by groups of layers with --tasks, instead of a closed form"
    )
    tasks: str | None = Field(None, description="for --evolve: the tasks whose training examples judge")
    generations: int = Field(12, ge=1, le=10_000, description="of --evolve")
    minutes: float | None = Field(None, gt=0, description="of --evolve, instead of generations")
    run: Path | None = Field(
        None, description="of --evolve: folder of the search, which goes on there; none means OUT.run"
    )
    seed: int = Field(0, description="of random masks and of the search")
    out: Path = Field(description="directory to write")


def merge(
    place: Place,
    merging: Merging,
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="YAML of mergekit, with models BASE+DIR")
    ] = None,
) -> Output:
    """Merge adapters into one by a closed form, or by a search for weights.

    RECIPE or --adapter says which. Beside the adapter are merge.yml, the recipe as mergekit takes it, and
    report.json.
    """
    from shoal.adapters.files import ADAPTER_FILES
    from shoal.adapters.kinds import load as load_adapter
    from shoal.adapters.lora import LoRA
    from shoal.files import check_place
    from shoal.models.shapes import load_shape

    if (recipe is None) == (not merging.adapter):
        raise UsageError("parents are named by RECIPE or by --adapter NAME=DIR; give one of these")
    plan = _from_file(recipe, merging) if recipe else _from_flags(merging)
    plan.check()
    check_place(merging.out, (*ADAPTER_FILES, RECIPE_FILE, REPORT_FILE))
    parents = [load_adapter(Path(parent)) for parent in plan.parents]
    shape = load_shape(place.base or plan.base_model or _common_base(plan, parents))
    for parent, directory in zip(parents, plan.parents, strict=True):
        if parent.base_model not in (None, shape.base_model):
            if place.base is None:
                raise UsageError(
                    f"{directory} is for {parent.base_model}, not {shape.base_model}; merge adapters of one "
                    "base model"
                )
            warn_of_another_base(parent.base_model, place.base, directory)
    kinds = {type(parent.adapter) for parent in parents}
    if len(kinds) != 1:
        raise UsageError("the parents are LoRAs and experts; merge adapters of one kind")
    if merging.evolve:
        return _evolve(place, merging, plan, parents, shape)
    if LoRA not in kinds:
        return _merge_experts(place, merging, plan, parents, shape)
    return _merge_loras(place, merging, plan, parents, shape)


def _merge_loras(
    place: Place,
    merging: Merging,
    plan: Recipe,
    parents: Sequence[LoadedAdapter[LoRA]],
    shape: BackboneShape,
) -> Output:
    from shoal.adapters.files import load_adapter
    from shoal.adapters.merging import run_recipe
    from shoal.adapters.merging.starts import check_start
    from shoal.inference.covariances import input_covariances

    loras = [parent.adapter for parent in parents]
    start = load_adapter(plan.start).lora if plan.start else None
    cards = {name: parent.card for name, parent in zip(plan.labels, parents, strict=True)}
    notes = check_start(cards, start)
    for note in notes:
        log.warning("%s", note)
    plan = replace(plan, notes=(*plan.notes, *notes))
    inputs = _inputs(merging, plan)
    covariances = None
    if inputs is not None:
        modules = {name: None for lora in (*loras, *([start] if start else [])) for name in lora.factors}
        backbone = load(place, shape.base_model if place.base is None else None)
        covariances = [
            input_covariances(backbone, lora, inputs[name], modules)
            for name, lora in zip(plan.labels, loras, strict=True)
        ]
    merged = run_recipe(
        plan,
        loras,
        rank=merging.rank,
        covariances=covariances,
        start=start,
        seed=merging.seed,
        num_layers=shape.num_layers,
    )
    return _written(merging, replace(merged, recipe=plan), shape)


def _evolve(
    place: Place,
    merging: Merging,
    plan: Recipe,
    parents: Sequence[LoadedAdapter[Any]],
    shape: BackboneShape,
) -> Output:
    from shoal.adapters.lora import LoRA
    from shoal.apps.cli.tasks import read_tasks
    from shoal.merging.config import MergeSearchConfig
    from shoal.merging.search import evolve_merge

    if merging.tasks is None:
        raise UsageError("--evolve needs examples that judge; name the parents' tasks with --tasks")
    fixed = ("method", "weights", "parameters", "inputs", "start")
    if given := next((name for name in fixed if getattr(merging, name)), None):
        raise UsageError(f"--evolve finds the weights of a plain sum itself; leave --{given} out")
    values = {
        name: parent.adapter
        for name, parent in zip(plan.labels, parents, strict=True)
        if isinstance(parent.adapter, LoRA)
    }
    if len(values) < len(parents):
        raise UsageError("--evolve searches among LoRAs, and a parent is an expert; merge by a closed form")
    split = read_tasks(merging.tasks, definition=None)
    found = evolve_merge(
        load(place, shape.base_model if place.base is None else None),
        values,
        split.train,
        merging.run or merging.out.with_name(f"{merging.out.name}.run"),
        MergeSearchConfig(steps=merging.generations, minutes=merging.minutes, seed=merging.seed),
        rank=merging.rank,
        held_out=split.held_out,
    )
    recipe = replace(found.merged.recipe, parents=plan.parents, names=plan.labels)
    return _written(merging, replace(found.merged, recipe=recipe), shape)


def _written(merging: Merging, merged: Merged, shape: BackboneShape) -> Output:
    """Write a merge with its recipe and report."""
    import torch

    from shoal.adapters.files import save_adapter
    from shoal.adapters.merging.mergekit_yaml import write_recipe

    dtype = merged.recipe.dtype
    save_adapter(
        merging.out,
        merged.lora,
        shape=shape,
        card=merged.card,
        dtype=getattr(torch, dtype) if dtype else None,
        beside={
            RECIPE_FILE: write_recipe(merged.recipe, shape.base_model),
            REPORT_FILE: json.dumps(merged.report, indent=2) + "\n",
        },
    )
    record = {**merged.report, "base_model": shape.base_model, "out": str(merging.out)}
    text = (
        f"{' '.join(merged.card.notes)} Rank {merged.lora.rank} keeps all but "
        f"{merged.report['truncation_error']:.1%} of the change, written to {merging.out}"
    )
    return Output(record, text)


def _merge_experts(
    place: Place,
    merging: Merging,
    plan: Recipe,
    parents: Sequence[LoadedAdapter[Any]],
    shape: BackboneShape,
) -> Output:
    from shoal.adapters.card import AdapterCard
    from shoal.adapters.kinds import basis_for, save
    from shoal.adapters.merging.experts import merge_experts

    if plan.start is not None or merging.inputs:
        raise UsageError("experts are merged over z - 1, without a start or inputs; leave these out")
    expert = merge_experts(
        plan, [parent.adapter for parent in parents], seed=merging.seed, num_layers=shape.num_layers
    )
    backbone = load(place, shape.base_model if place.base is None else None)
    for parent in parents:
        basis = basis_for(backbone.model, parent)
    prints = {name: one.adapter.fingerprint() for name, one in zip(plan.labels, parents, strict=True)}
    note = f"Merged by {plan.method} from the experts {', '.join(plan.labels)}."
    card = AdapterCard(generator="merging", trained=True, seed=merging.seed, parents=prints, notes=(note,))
    save(merging.out, expert, shape=shape, card=card, basis=basis)
    record = {
        "method": plan.method,
        "parents": prints,
        "base_model": shape.base_model,
        "out": str(merging.out),
    }
    return Output(record, f"{note} Written to {merging.out}")


def _from_flags(merging: Merging) -> Recipe:
    from shoal.adapters.merging.recipe import Recipe

    method = merging.method or ("regmean" if merging.inputs else "linear")
    parameters = dict(_parameter(text) for text in merging.parameters)
    parents = [str(directory) for directory in merging.adapter.values()]
    recipe = Recipe.of(method, parents, merging.weights, parameters, list(merging.adapter))
    return replace(recipe, start=str(merging.start) if merging.start else None)


def _from_file(path: Path, merging: Merging) -> Recipe:
    from shoal.adapters.merging.mergekit_yaml import read_recipe

    given = [name for name in ("method", "weights", "parameters", "start") if getattr(merging, name)]
    if given:
        raise UsageError(f"--{given[0]} is what the recipe {path} says; leave it out, or change the recipe")
    return read_recipe(path)


def _parameter(text: str) -> tuple[str, float | bool]:
    name, equals, value = text.partition("=")
    if value in ("true", "false"):
        return name, value == "true"
    try:
        return name, float(value)
    except ValueError:
        raise UsageError(f"--parameters {text!r} is no NAME=NUMBER; write for example density=0.5") from None


def _inputs(merging: Merging, plan: Recipe) -> Mapping[str, Sequence[str]] | None:
    """The inputs of each parent by name, where the method needs them."""
    from shoal.adapters.merging.methods import METHODS
    from shoal.adapters.merging.regmean import MIN_INPUTS
    from shoal.tasks.inputs import inputs_by_name

    needed = METHODS[plan.method].form == "covariances"
    if not needed and merging.inputs:
        raise UsageError(f"{plan.method} reads no inputs; leave --inputs out, or take --method regmean")
    return inputs_by_name(merging.inputs, plan.labels, least=MIN_INPUTS) if needed else None


def _common_base(plan: Recipe, parents: Sequence[LoadedAdapter[Any]]) -> str:
    """The base model that the first parent names which names one."""
    named = next((parent.base_model for parent in parents if parent.base_model), None)
    if named is None:
        raise UsageError(f"{plan.parents[0]} names no base model; give it with --base")
    return named
