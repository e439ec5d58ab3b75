"""Parents of a merge: directories, adapters of the registry by name, or adapters from a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.apps.cli import registry
from shoal.apps.cli.merge_settings import Merging
from shoal.apps.cli.model import Place, warn_of_another_base
from shoal.errors import UsageError, shorten

if TYPE_CHECKING:
    from shoal.adapters.base import LoadedAdapter
    from shoal.adapters.merging.recipe import Recipe
    from shoal.models.shapes import BackboneShape

DESCRIBED = "describe:"


@dataclass(frozen=True)
class Parents:
    """The parents of a merge, loaded.

    Attributes:
        plan: the recipe, with every parent's directory.
        adapters: in the recipe's order.
        shape: of their base model.
    """

    plan: Recipe
    adapters: tuple[LoadedAdapter[Any], ...]
    shape: BackboneShape


def load_parents(place: Place, registry_place: registry.Place, merging: Merging, plan: Recipe) -> Parents:
    """Load every parent of a recipe, and see that they are adapters of one base model and kind.

    One from a sentence is generated for the base model, and kept in `OUT.parents`, where the recipe finds it.

    Raises:
        UsageError: a parent that is neither a directory nor in the registry, only sentences without --base,
            or parents of several base models or kinds.
    """
    from shoal.adapters.kinds import load as load_adapter
    from shoal.models.shapes import load_shape

    texts = {
        label: parent.removeprefix(DESCRIBED).strip()
        for label, parent in zip(plan.labels, plan.parents, strict=True)
        if parent.startswith(DESCRIBED)
    }
    found: dict[str, LoadedAdapter[Any]] = {}
    paths: dict[str, str] = {}
    with ExitStack() as stack:
        for label, parent in zip(plan.labels, plan.parents, strict=True):
            if label not in texts:
                # A recipe names directories, with a slash or without.
                path = (
                    Path(parent)
                    if not plan.names
                    else registry.adapter_directory(stack, parent, registry_place)
                )
                paths[label], found[label] = str(path), load_adapter(path)
    shape = load_shape(place.base or plan.base_model or _named_base(found, texts))
    for label, loaded in found.items():
        if loaded.base_model not in (None, shape.base_model):
            if place.base is None:
                raise UsageError(
                    f"{paths[label]} is for {loaded.base_model}, not {shape.base_model}; merge adapters of "
                    "one base model, or name it with --base where both are the same"
                )
            warn_of_another_base(loaded.base_model, place.base, paths[label])
    if texts:
        base = place.base or shape.base_model
        for label, directory in _generated(base, texts, merging.out).items():
            paths[label], found[label] = str(directory), load_adapter(directory)
    adapters = tuple(found[label] for label in plan.labels)
    if len({type(parent.adapter) for parent in adapters}) != 1:
        raise UsageError("the parents are LoRAs and experts; merge adapters of one kind")
    plan = replace(plan, parents=tuple(paths[label] for label in plan.labels), names=plan.labels)
    return Parents(plan, adapters, shape)


def _generated(base: str, texts: Mapping[str, str], out: Path) -> dict[str, Path]:
    """Name -> directory of an adapter that is generated from its sentence, which its card has."""
    from shoal.adapters.files import save_adapter
    from shoal.text_to_lora.generator import TextToLoRA

    for label, text in texts.items():
        if not text or Path(label).name != label:
            raise UsageError(
                f"{label}={shorten(DESCRIBED + text)}: give a plain name and a sentence of the task"
            )
    generator, folder = TextToLoRA(base), out.with_name(f"{out.name}.parents")
    adapters = dict(zip(texts, generator.generate_many(list(texts.values())), strict=True))
    for label, adapter in adapters.items():
        save_adapter(folder / label, adapter.lora, shape=adapter.shape, card=adapter.card())
    return {label: folder / label for label in texts}


def _named_base(found: Mapping[str, LoadedAdapter[Any]], texts: Mapping[str, str]) -> str:
    """The base model that the first parent names which names one."""
    named = next((parent.base_model for parent in found.values() if parent.base_model), None)
    if named is None:
        first = next(iter([*found, *texts]))
        raise UsageError(f"{first} names no base model; give it with --base")
    return named
