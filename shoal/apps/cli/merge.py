"""`shoal merge`: one adapter or model from several by a closed form, a search, or a recipe of mergekit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.apps.cli import registry
from shoal.apps.cli.merge_models import merge_models
from shoal.apps.cli.merge_parents import load_parents
from shoal.apps.cli.merge_runs import (
    RECIPE_FILE,
    REPORT_FILE,
    evolve,
    inputs_of,
    merge_experts,
    merge_loras,
)
from shoal.apps.cli.merge_settings import WHOLE_RANK, Base, Exact, Merging
from shoal.apps.cli.model import Place
from shoal.apps.cli.settings import Output
from shoal.errors import UsageError

if TYPE_CHECKING:
    from shoal.adapters.merging.recipe import Recipe

OF_SEARCH = ("front", "run", "generations", "budget")


def merge(
    place: Place,
    registry_place: registry.Place,
    merging: Merging,
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="YAML of mergekit, with models DIR or BASE+DIR")
    ] = None,
) -> Output:
    """Merge adapters, or whole models, into one by a closed form, or by a search for weights.

    RECIPE, --adapter or --model says which. Beside the result are merge.yml, the recipe as mergekit takes it,
    and report.json.
    """
    if [recipe is not None, bool(merging.adapter), bool(merging.model)].count(True) != 1:
        raise UsageError(
            "parents are named by RECIPE, by --adapter NAME=SOURCE or by --model DIR; give one of these"
        )
    plan = _from_file(recipe, merging) if recipe else _from_flags(merging)
    if merging.out_dtype:
        plan = replace(plan, dtype=merging.out_dtype)
    return run(place, registry_place, merging, plan)


def merge_exactly(
    sources: Annotated[list[str], typer.Argument(metavar="NAME|DIR...", help=registry.SOURCE_HELP)],
    place: registry.Place,
    base: Base,
    exact: Exact,
) -> Output:
    """Merge adapters into one, the weighted sum of them.

    The same as `shoal merge --method task_arithmetic`. The sum is exact, at the sum of their ranks; --rank
    gives the nearest adapter of a smaller rank.
    """
    from shoal.adapters.merging.recipe import Recipe

    weights = exact.weights or (1 / len(sources),) * len(sources)
    plan = Recipe.of("task_arithmetic", sources, weights, names=sources)
    output = run(Place(base=base.base), place, Merging(out=exact.out, rank=exact.rank or WHOLE_RANK), plan)
    return replace(output, record={**output.record, "adapters": sources, "weights": weights})


def run(place: Place, registry_place: registry.Place, merging: Merging, plan: Recipe) -> Output:
    """Run a recipe, whatever its parents are."""
    from shoal.adapters.files import ADAPTER_FILES
    from shoal.adapters.lora import LoRA
    from shoal.files import check_place

    plan.check()
    if not merging.evolve and (
        given := next((n for n in OF_SEARCH if getattr(merging, n) is not None), None)
    ):
        raise UsageError(f"--{given} belongs to a search; add --evolve, or leave it out")
    if plan.whole:
        return merge_models(place, merging, plan, inputs_of(merging, plan))
    check_place(merging.out, (*ADAPTER_FILES, RECIPE_FILE, REPORT_FILE))
    parents = load_parents(place, registry_place, merging, plan)
    if merging.evolve:
        return evolve(place, merging, parents)
    way = merge_loras if isinstance(parents.adapters[0].adapter, LoRA) else merge_experts
    return way(place, merging, parents)


def _from_flags(merging: Merging) -> Recipe:
    from shoal.adapters.merging.recipe import Recipe

    method = merging.method or ("regmean" if merging.inputs else "linear")
    parameters = dict(_parameter(text) for text in merging.parameters)
    if merging.model:
        recipe = Recipe.of(method, merging.model, merging.weights, parameters)
        return replace(recipe, whole=True)
    recipe = Recipe.of(
        method, list(merging.adapter.values()), merging.weights, parameters, list(merging.adapter)
    )
    return replace(recipe, start=str(merging.start) if merging.start else None)


def _from_file(path: Path, merging: Merging) -> Recipe:
    from shoal.adapters.merging.mergekit_reader import read_recipe

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
