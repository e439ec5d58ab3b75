"""The ways of `shoal merge` for adapters: a closed form, a search, and experts; each writes one adapter."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.apps.cli.budgets import seconds_of
from shoal.apps.cli.merge_parents import Parents
from shoal.apps.cli.merge_settings import Merging
from shoal.apps.cli.model import Place, load
from shoal.apps.cli.settings import Output
from shoal.errors import UsageError

if TYPE_CHECKING:
    from shoal.adapters.lora import LoRA
    from shoal.adapters.merging import Merged
    from shoal.adapters.merging.recipe import Recipe
    from shoal.adapters.merging.regmean import Covariances
    from shoal.models.backbone import Backbone
    from shoal.models.shapes import BackboneShape

log = logging.getLogger(__name__)

RECIPE_FILE, REPORT_FILE = "merge.yml", "report.json"
FROM_SENTENCE = "text-to-lora"  # the generator of a card


def merge_loras(place: Place, merging: Merging, found: Parents) -> Output:
    """Merge LoRAs by a closed form, and with tasks say whether to."""
    from shoal.adapters.files import load_adapter
    from shoal.adapters.merging import run_recipe
    from shoal.adapters.merging.starts import check_start
    from shoal.apps.cli.tasks import read_tasks
    from shoal.merging.verdict import judge, with_verdict
    from shoal.tasks.loading import check_no_leakage
    from shoal.tasks.sketches import check_not_learnt, examples_of

    plan, parents, shape = found.plan, found.adapters, found.shape
    loras = [parent.adapter for parent in parents]
    start = load_adapter(plan.start).lora if plan.start else None
    cards = {name: parent.card for name, parent in zip(plan.labels, parents, strict=True)}
    notes = check_start(cards, start)
    for note in notes:
        log.warning("%s", note)
    plan = replace(plan, notes=(*plan.notes, *notes))
    inputs = inputs_of(merging, plan)
    covariances, backbone = None, None
    if inputs is not None:
        backbone = _loaded(place, shape)
        values = dict(zip(plan.labels, loras, strict=True))
        covariances = list(_covariances(backbone, values, start, inputs).values())
    split = None if merging.tasks is None else read_tasks(merging.tasks, definition=None)
    merged = run_recipe(
        plan,
        loras,
        rank=merging.rank,
        covariances=covariances,
        start=start,
        seed=merging.seed,
        num_layers=shape.num_layers,
    )
    merged = replace(merged, recipe=plan)
    if split is not None:
        check_no_leakage(split.train, split.held_out)
        check_not_learnt(examples_of(split.train, test_only=True), _trained_on(found))
        backbone = backbone or _loaded(place, shape)
        own = dict(zip(plan.labels, loras, strict=True))
        verdict = judge(backbone, own, merged.lora, split.train, start)
        merged = with_verdict(merged, verdict)
    return _written(merging, merged, shape)


def evolve(place: Place, merging: Merging, parents: Parents) -> Output:
    """Search for the weights of LoRAs."""
    from shoal.adapters.files import load_adapter
    from shoal.adapters.lora import LoRA
    from shoal.adapters.merging.regmean import MIN_INPUTS
    from shoal.apps.cli.tasks import read_tasks
    from shoal.config import MAX_COUNT
    from shoal.merging.config import GENERATIONS, MergeSearchConfig, check_searched
    from shoal.merging.search import evolve_merge
    from shoal.tasks.inputs import inputs_by_name
    from shoal.tasks.sketches import check_not_learnt, examples_of

    plan, shape = parents.plan, parents.shape
    if merging.tasks is None:
        raise UsageError("--evolve needs examples that judge; name the parents' tasks with --tasks")
    if merging.weights:
        raise UsageError("--evolve finds the weights itself; leave --weights out")
    method = merging.method or ("regmean" if merging.inputs else "task_arithmetic")
    flags = plan.settings if merging.parameters else {}
    parameters = {name: setting[0].values[0] for name, setting in flags.items()}
    check_searched(method, parameters, by_inputs=bool(merging.inputs))
    minutes = seconds_of(merging.budget) / 60 if merging.budget else None
    generations = merging.generations or (GENERATIONS if minutes is None else MAX_COUNT)
    values = {
        name: parent.adapter
        for name, parent in zip(plan.labels, parents.adapters, strict=True)
        if isinstance(parent.adapter, LoRA)
    }
    if len(values) < len(parents.adapters):
        raise UsageError("--evolve searches among LoRAs, and a parent is an expert; merge by a closed form")
    split = read_tasks(merging.tasks, definition=None)
    check_not_learnt(examples_of(split.train), _trained_on(parents))
    inputs = inputs_by_name(merging.inputs, plan.labels, least=MIN_INPUTS) if merging.inputs else None
    start = load_adapter(plan.start).lora if plan.start else None
    backbone = _loaded(place, shape)
    found = evolve_merge(
        backbone,
        values,
        split.train,
        merging.run or merging.out.with_name(f"{merging.out.name}.run"),
        MergeSearchConfig(steps=generations, minutes=minutes, seed=merging.seed),
        rank=merging.rank,
        start=start,
        covariances=None if inputs is None else _covariances(backbone, values, start, inputs),
        method=method,
        parameters=parameters,
        prior=[
            name
            for name, parent in zip(plan.labels, parents.adapters, strict=True)
            if parent.card is not None and parent.card.generator == FROM_SENTENCE
        ],
        held_out=split.held_out,
    )
    if merging.front is not None:
        for niche, member in found.front.items():
            _save(merging.front / niche, _named(member, plan), shape)
    return _written(merging, _named(found.merged, plan), shape)


def merge_experts(place: Place, merging: Merging, found: Parents) -> Output:
    """Merge experts over z - 1."""
    from shoal.adapters.card import AdapterCard
    from shoal.adapters.kinds import basis_for, save
    from shoal.adapters.merging.experts import merge_experts as merged_experts

    plan, parents, shape = found.plan, found.adapters, found.shape
    if plan.start is not None or merging.inputs or merging.tasks:
        raise UsageError("experts are merged over z - 1, without a start, inputs or tasks; leave these out")
    expert = merged_experts(
        plan, [parent.adapter for parent in parents], seed=merging.seed, num_layers=shape.num_layers
    )
    backbone = _loaded(place, shape)
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


def _loaded(place: Place, shape: BackboneShape) -> Backbone:
    """The base model that is named, else the parents' own."""
    return load(place, shape.base_model if place.base is None else None)


def inputs_of(merging: Merging, plan: Recipe) -> Mapping[str, Sequence[str]] | None:
    """The inputs of each parent by name, where the method needs them."""
    from shoal.adapters.merging.methods import METHODS
    from shoal.adapters.merging.regmean import MIN_INPUTS
    from shoal.tasks.inputs import inputs_by_name

    needed = METHODS[plan.method].form == "covariances"
    if not needed and merging.inputs:
        raise UsageError(f"{plan.method} reads no inputs; leave --inputs out, or take --method regmean")
    return inputs_by_name(merging.inputs, plan.labels, least=MIN_INPUTS) if needed else None


def _trained_on(parents: Parents) -> dict[str, Sequence[str]]:
    """The sketch of what every parent was trained on, as far as cards have it."""
    cards = [parent.card for parent in parents.adapters]
    return {n: c.trained_on for n, c in zip(parents.plan.labels, cards, strict=True) if c is not None}


def _covariances(
    backbone: Backbone,
    loras: Mapping[str, LoRA],
    start: LoRA | None,
    inputs: Mapping[str, Sequence[str]],
) -> dict[str, Covariances]:
    """Those of each LoRA's inputs under it, for every module that one of them or the start adapts."""
    from shoal.inference.covariances import input_covariances

    modules = {name: None for lora in (*loras.values(), *([start] if start else [])) for name in lora.factors}
    return {name: input_covariances(backbone, lora, inputs[name], modules) for name, lora in loras.items()}


def _written(merging: Merging, merged: Merged, shape: BackboneShape) -> Output:
    """Write a merge, and say what it is."""
    _save(merging.out, merged, shape)
    record = {**merged.report, "base_model": shape.base_model, "out": str(merging.out)}
    end = (
        f"Rank {merged.lora.rank} keeps all but {merged.report['truncation_error']:.1%} of the change, "
        f"written to {merging.out}"
    )
    return Output(record, "\n".join((*merged.card.notes, end)))


def _named(merged: Merged, plan: Recipe) -> Merged:
    """A merge whose recipe says where its parents lie."""
    recipe = replace(
        merged.recipe, parents=plan.parents, names=plan.labels, start=plan.start, dtype=plan.dtype
    )
    return replace(merged, recipe=recipe)


def _save(folder: Path, merged: Merged, shape: BackboneShape) -> None:
    """Write a merge with its recipe and report."""
    import torch

    from shoal.adapters.files import save_adapter
    from shoal.adapters.merging.mergekit_writer import write_recipe

    dtype = merged.recipe.dtype
    save_adapter(
        folder,
        merged.lora,
        shape=shape,
        card=merged.card,
        dtype=getattr(torch, dtype) if dtype else None,
        beside={
            RECIPE_FILE: write_recipe(merged.recipe, shape.base_model),
            REPORT_FILE: json.dumps(merged.report, indent=2) + "\n",
        },
    )
