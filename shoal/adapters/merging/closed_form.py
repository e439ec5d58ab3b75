"""One adapter from several by a closed form: module by module, then truncated to a rank.

Knows values alone: adapters come loaded, covariances measured, and the result is written by others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.adapters.card import AdapterCard
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.adapters.merging.arithmetic import check_sizes
from shoal.adapters.merging.methods import method_of
from shoal.adapters.merging.modules import (
    difference,
    folded,
    generator_of,
    joined,
    merge_by_inputs,
    merge_module,
)
from shoal.adapters.merging.recipe import Recipe
from shoal.adapters.merging.regmean import Covariances
from shoal.adapters.merging.truncation import Truncation
from shoal.errors import UsageError

RANK = 16  # what vLLM serves without a flag


@dataclass(frozen=True, eq=False)
class Merged:
    """One adapter from several.

    Attributes:
        lora: the adapter.
        recipe: how it was merged.
        report: facts for machines, JSON values.
        card: its provenance.
    """

    lora: LoRA
    recipe: Recipe
    report: Mapping[str, Any]
    card: AdapterCard


def merge(
    loras: Mapping[str, LoRA] | Sequence[LoRA],
    *,
    method: str | None = None,
    weights: Sequence[float] = (),
    rank: int = RANK,
    covariances: Mapping[str, Covariances] | Sequence[Covariances] | None = None,
    start: LoRA | None = None,
    seed: int = 0,
    **parameters: float | bool,
) -> Merged:
    """Merge adapters of one base model into one.

    Args:
        loras: two or more; a mapping gives their names.
        method: of `shoal.adapters.merging.methods`; by default `regmean` with covariances, else `linear`.
        weights: of each; none mean 1 for each.
        rank: of the result at most.
        covariances: of the modules' inputs under each parent, for RegMean (`shoal.inference.covariances`).
        start: adapter that every parent was trained on from; deltas count from it, and it is in the result.
        seed: of random masks, which depend on it, the parent and the module alone.
        **parameters: of the method; `lambda` as `**{"lambda": 0.5}`.

    Raises:
        UsageError: as `run_recipe`, or as many weights as adapters are not given.
    """
    names = tuple(loras) if isinstance(loras, Mapping) else tuple(str(i) for i in range(len(loras)))
    values = list(loras.values()) if isinstance(loras, Mapping) else list(loras)
    recipe = Recipe.of(method or ("linear" if covariances is None else "regmean"), names, weights, parameters)
    if isinstance(covariances, Mapping):
        covariances = [covariances[name] for name in names]
    return run_recipe(recipe, values, rank=rank, covariances=covariances, start=start, seed=seed)


def run_recipe(
    recipe: Recipe,
    loras: Sequence[LoRA],
    *,
    rank: int = RANK,
    covariances: Sequence[Covariances] | None = None,
    start: LoRA | None = None,
    seed: int = 0,
    num_layers: int | None = None,
) -> Merged:
    """Merge the adapters of a recipe, which are its parents in order.

    Args:
        recipe: method and parameters.
        loras: the parents.
        rank: of the result at most.
        covariances: for RegMean, of each parent.
        start: as `merge`.
        seed: as `merge`.
        num_layers: of the base model; only gradients need it.

    Raises:
        UsageError: a mistake of the recipe (`Recipe.check`, `Recipe.values`), modules of different sizes, NaN
            or infinity in a parent, a rank below 1, or RegMean without covariances.
    """
    if rank < 1:
        raise UsageError(f"rank {rank} is below 1; choose 1 or more, {RANK} is what vLLM serves by default")
    cut = Truncation(rank)
    prints = [lora.fingerprint() for lora in loras]
    given: dict[str, Any] = {"covariances": covariances, "start": start, "seed": seed}
    for name, factors in merged_modules(recipe, loras, prints, **given, num_layers=num_layers):
        cut.take(name, factors)
    lacking = {
        parent: missing
        for parent, lora in zip(recipe.labels, loras, strict=True)
        if (missing := sorted(cut.kept.keys() - folded(lora).keys()))
    }
    return _described(recipe, cut, dict(zip(recipe.labels, prints, strict=True)), lacking, start, seed)


def merged_modules(
    recipe: Recipe,
    loras: Sequence[LoRA],
    prints: Sequence[str],
    *,
    covariances: Sequence[Covariances] | None = None,
    start: LoRA | None = None,
    seed: int = 0,
    num_layers: int | None = None,
) -> Iterator[tuple[str, LoraFactors]]:
    """Every module of a merge with its factors, the start's among them, before any rank is cut.

    `prints` are the parents' fingerprints, by which random masks are drawn; other arguments and errors are
    those of `run_recipe`.
    """
    recipe.check()
    method = method_of(recipe.method)
    _check_values(recipe, loras, start)
    if method.form == "covariances" and (covariances is None or len(covariances) != len(loras)):
        raise UsageError(
            f"{recipe.method} needs the covariances of inputs under each of {len(loras)} parents; give "
            "inputs, or choose another method"
        )
    parents, origin = [folded(lora) for lora in loras], {} if start is None else folded(start)
    for name, like in {n: f for each in (*parents, origin) for n, f in each.items()}.items():
        own = [difference(parent.get(name), origin.get(name), like) for parent in parents]
        values = recipe.values(name, num_layers)
        scale = values.pop("lambda", 1.0)
        if method.form == "covariances":
            merged = merge_by_inputs(own, [each.get(name) for each in covariances or ()], name, values)
        else:
            merged = merge_module(method, own, values, [generator_of(seed, name, p) for p in prints])
        merged = LoraFactors(merged.a, merged.b * scale)
        yield name, joined([merged, *([origin[name]] if name in origin else [])])


def _check_values(recipe: Recipe, loras: Sequence[LoRA], start: LoRA | None) -> None:
    if len(loras) != len(recipe.parents):
        raise UsageError(f"{len(loras)} adapters for a recipe of {len(recipe.parents)}; give its parents")
    given = dict(zip(recipe.labels, loras, strict=True))
    for parent, lora in {**given, **({"the start": start} if start else {})}.items():
        for name, f in lora.factors.items():
            if not (bool(f.a.isfinite().all()) and bool(f.b.isfinite().all())):
                raise UsageError(f"{name} of {parent} holds NaN or infinity; train or copy it again")
    check_sizes([*loras, *([start] if start else [])])


def _described(
    recipe: Recipe,
    cut: Truncation,
    parents: Mapping[str, str],
    lacking: Mapping[str, Sequence[str]],
    start: LoRA | None,
    seed: int,
) -> Merged:
    lora, method = cut.lora(), method_of(recipe.method)
    notes = [f"Merged by {recipe.method} ({method.paper}) from {', '.join(recipe.labels)}.", *recipe.notes]
    notes += [
        f"{parent} lacks {len(names)} modules, such as {names[0]}; they count as zero."
        for parent, names in lacking.items()
    ]
    if lora.rank > RANK:
        notes.append(f"Rank {lora.rank} is above {RANK}, which vLLM serves by default.")
    origin = start.fingerprint() if start else None
    report = {
        "method": recipe.method,
        "paper": method.paper,
        "parents": dict(parents),
        "start": origin,
        "seed": seed,
        "rank": lora.rank,
        "truncation_error": cut.error,
        "truncation_error_by_module": cut.errors,
        "bytes": lora.nbytes,
        "notes": notes,
    }
    card = AdapterCard(
        generator="merging",
        trained=True,
        seed=seed,
        start_sha256=origin,
        parents=dict(parents),
        scores={"truncation_error": cut.error},
        notes=tuple(notes),
    )
    return Merged(lora, recipe, report, card)
