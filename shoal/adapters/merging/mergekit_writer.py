"""A recipe as mergekit's YAML, which mergekit runs unchanged where it has the method.

Knows recipes and text, no tensors.

Source: mergekit's documented configuration, https://github.com/arcee-ai/mergekit (LGPL; none of its code).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import yaml

from shoal.adapters.merging.methods import FROM_ZERO, METHODS
from shoal.adapters.merging.recipe import Clause, Recipe, Setting, Settings, Slice, constant
from shoal.errors import UsageError


def write_recipe(recipe: Recipe, base_model: str | None) -> str:
    """A recipe as YAML; what mergekit has a method for, it runs unchanged.

    Of adapters, `slerp` becomes `nuslerp`, and `linear` without `normalize` becomes `task_arithmetic`: with a
    base model these count from it, as Shoal does.

    Args:
        recipe: of adapters or whole models.
        base_model: of the adapters; the one that whole models' deltas count from, if any.

    Raises:
        UsageError: a parent whose path has a `+`.
    """
    recipe = recipe if recipe.whole else _counting_from_base(recipe)
    method = recipe.method
    comment = f"# {_DIFFERENT[method]}\n" if method in _DIFFERENT and not recipe.whole else ""
    if not METHODS[method].mergekit:
        comment = f"# mergekit has no {method}; `shoal merge` reads this.\n"
    document: dict[str, Any] = {"merge_method": method}
    origin = []
    if recipe.whole and method == "slerp":
        document["base_model"] = recipe.parents[0]
    elif base_model is not None and method not in FROM_ZERO:
        document["base_model"] = base_model if recipe.start is None else f"{base_model}+{recipe.start}"
        origin = [{"model": document["base_model"]}]  # mergekit wants it in every slice
    shared = _written_all(recipe.settings)
    if len(recipe.slices) == 1 and recipe.slices[0].layers is None:
        document["models"] = _models(recipe, recipe.slices[0], base_model)
        shared |= _written_all(recipe.slices[0].shared)
    else:
        document["slices"] = [
            {
                "sources": [
                    {**source, "layer_range": list(part.layers or ())}
                    for source in (*origin, *_models(recipe, part, base_model))
                ],
                **({"parameters": _written_all(part.shared)} if part.shared else {}),
            }
            for part in recipe.slices
        ]
    if METHODS[method].parameter("weight"):
        shared.setdefault("weight", 1.0)  # which mergekit wants named
    if shared:
        document["parameters"] = shared
    document["dtype"] = recipe.dtype or "float32"
    return comment + yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


_DIFFERENT = {
    "karcher": "mergekit takes this mean of whole weights, Shoal of deltas.",
    "multislerp": "mergekit stops at tensors that no parent changes.",
}


def _counting_from_base(recipe: Recipe) -> Recipe:
    """The same merge by a method that counts from a base model in mergekit as well."""
    if recipe.method == "linear" and recipe.settings.get("normalize", ())[:1] == constant(False):
        return replace(recipe, method="task_arithmetic")
    if recipe.method != "slerp":
        return recipe
    parts = []
    for part in recipe.slices:
        t = (*part.shared.get("t", ()), *recipe.settings.get("t", ()), *constant(0.5))
        first = tuple(Clause(tuple(1 - value for value in own.values), own.filter) for own in t)
        parts.append(Slice(part.layers, ({"weight": first}, {"weight": t})))
    return replace(recipe, method="nuslerp", slices=tuple(parts), settings={})


def _models(recipe: Recipe, part: Slice, base_model: str | None) -> list[dict[str, Any]]:
    models = []
    for parent, own in zip(recipe.parents, part.each or ({},) * len(recipe.parents), strict=True):
        if "+" in parent:
            raise UsageError(f"{parent} has a '+', which parts BASE+ADAPTER in a recipe; rename it")
        written = {"parameters": _written_all(own)} if own else {}
        models.append({"model": parent if recipe.whole else f"{base_model}+{parent}", **written})
    return models


def _written_all(settings: Settings) -> dict[str, Any]:
    return {name: _written(setting) for name, setting in settings.items()}


def _written(setting: Setting) -> Any:
    rows = [clause.values[0] if len(clause.values) == 1 else [*clause.values] for clause in setting]
    if len(rows) == 1 and setting[0].filter is None:
        return rows[0]
    return [
        {**({"filter": clause.filter} if clause.filter else {}), "value": row}
        for clause, row in zip(setting, rows, strict=True)
    ]
