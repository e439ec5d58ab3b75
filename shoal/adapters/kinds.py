"""The kinds of adapters, as one table, and the functions that serve an adapter of any kind.

A new kind is one module (its value, an `Adapter`, and the functions of its `Kind`) and one row here.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from shoal.adapters.base import Adapter, Attachment, Kind, LoadedAdapter
from shoal.adapters.card import AdapterCard, parse_card
from shoal.adapters.decomposition import Decompositions
from shoal.adapters.files import CONFIG_FILE as LORA_CONFIG
from shoal.adapters.files import load_adapter, save_adapter
from shoal.adapters.hooks import adapted_modules, attach
from shoal.adapters.lora import LoRA
from shoal.adapters.lora_rows import LoraRows
from shoal.adapters.merging import compose
from shoal.adapters.svf import ExpertVector, check_single
from shoal.adapters.svf_files import CONFIG_FILE as EXPERT_CONFIG
from shoal.adapters.svf_files import StoredExpert, basis_of, read_expert, save_expert
from shoal.adapters.svf_hooks import attach_expert
from shoal.adapters.svf_rows import ExpertRows
from shoal.errors import ShoalError, UsageError, shorten
from shoal.models.shapes import BackboneShape


def _attach_lora(model: nn.Module, lora: LoRA, basis: Decompositions) -> Attachment:
    weight = next(model.parameters())
    return attach(model, lora.to(weight.device, weight.dtype))


def _save_lora(
    directory: Path, lora: LoRA, shape: BackboneShape, basis: Decompositions, card: AdapterCard
) -> None:
    save_adapter(directory, lora, shape=shape, card=card)


def _load_lora(directory: Path) -> LoadedAdapter[LoRA]:
    stored = load_adapter(directory)
    return LoadedAdapter(stored.lora, stored.base_model, stored.card)


def _attach_expert(model: nn.Module, expert: ExpertVector, basis: Decompositions) -> Attachment:
    check_single(basis, expert)
    return attach_expert(model, basis, expert)


def _save_expert(
    directory: Path, expert: ExpertVector, shape: BackboneShape, basis: Decompositions, card: AdapterCard
) -> None:
    # Routers know an expert by its skill, which is the name of its directory in a set.
    skill = directory.absolute().name
    provenance = {"card": card.model_dump(mode="json")}
    save_expert(directory, StoredExpert(expert, shape.base_model, skill, provenance), basis)


def _load_expert(directory: Path) -> LoadedAdapter[ExpertVector]:
    stored = read_expert(directory)
    own = stored.provenance.get("card")  # trained experts have other provenance
    card = None if own is None else parse_card(own, directory / EXPERT_CONFIG)
    return LoadedAdapter(stored.expert, stored.base_model, card, lambda model: basis_of(stored, model))


# The type of the values -> what the kind does with them.
KINDS: dict[type, Kind[Any]] = {
    LoRA: Kind(
        name="LoRA",
        config_file=LORA_CONFIG,
        check=lambda model, lora, basis: adapted_modules(model, lora),
        attach=_attach_lora,
        rows=lambda model, basis: LoraRows(model),
        save=_save_lora,
        load=_load_lora,
        compose=compose,
    ),
    ExpertVector: Kind(
        name="expert",
        config_file=EXPERT_CONFIG,
        check=lambda model, expert, basis: check_single(basis, expert),
        attach=_attach_expert,
        rows=ExpertRows,
        save=_save_expert,
        load=_load_expert,
    ),
}


def kind_of(adapter: Adapter) -> Kind[Any]:
    """The kind of an adapter.

    Raises:
        UsageError: it is of none.
    """
    kind = KINDS.get(type(adapter))
    if kind is None:
        known = ", ".join(value.__name__ for value in KINDS)
        raise UsageError(f"a {type(adapter).__name__} is no adapter; give one of {known}")
    return kind


def check_adapter(model: nn.Module, adapter: Adapter | None, basis: Decompositions) -> None:
    """See that an adapter fits one row of a model; None always does.

    Raises:
        UsageError: a module is missing or of another shape, weights that it scales are not decomposed, or it
            is a batch of adapters.
    """
    if adapter is not None:
        kind_of(adapter).check(model, adapter, basis)


def attach_adapter(
    model: nn.Module, adapter: Adapter | None, basis: Decompositions | None = None
) -> Attachment:
    """Adapt every row of a model's batches until the attachment ends; errors as `check_adapter`.

    Args:
        model: whose modules are adapted.
        adapter: of any kind; None leaves the model as it is.
        basis: decompositions that experts scale.
    """
    if adapter is None:
        return Attachment(ExitStack())
    return kind_of(adapter).attach(model, adapter, basis or {})


def compose_adapters(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """The adapter whose change is the weighted sum of the others'.

    Raises:
        UsageError: no adapters, several kinds, a kind whose sum is not served, or what the kind refuses.
    """
    kinds = list(dict.fromkeys(kind_of(adapter).name for adapter in adapters))
    if len(kinds) != 1:
        raise UsageError(f"a mix needs adapters of one kind, got {', '.join(kinds) or 'none'}; name others")
    compose_kind = kind_of(adapters[0]).compose
    if compose_kind is None:
        raise UsageError(
            f"adapters of the kind {kinds[0]} are not mixed by name; name one alone, or mix experts with "
            "`shoal adapt`"
        )
    composed: Adapter = compose_kind(adapters, weights)
    return composed


def save(
    directory: Path,
    adapter: Adapter,
    *,
    shape: BackboneShape,
    card: AdapterCard,
    basis: Decompositions | None = None,
) -> None:
    """Write an adapter as its kind lies on disk, whole or not at all.

    Args:
        directory: where to; made if missing, an adapter there is replaced.
        adapter: of any kind.
        shape: of its base model.
        card: provenance.
        basis: decompositions that experts scale.

    Raises:
        UsageError: the adapter does not fit the model, or the directory holds other files.
        ShoalError: the directory cannot be written.
    """
    kind_of(adapter).save(directory, adapter, shape, basis or {}, card)


def load(directory: Path) -> LoadedAdapter[Any]:
    """Read an adapter of any kind, whichever model it belongs to; see `basis_for`.

    Raises:
        UsageError: no such directory.
        ShoalError: the directory holds no adapter, or a damaged one.
    """
    if not directory.is_dir():
        raise UsageError(f"there is no directory {shorten(str(directory))}; check the path")
    found = [kind for kind in KINDS.values() if (directory / kind.config_file).exists()]
    if len(found) != 1:
        files = ", ".join(kind.config_file for kind in KINDS.values())
        raise ShoalError(
            f"{directory} holds {len(found)} of {files}, an adapter has one of them; check the path"
        )
    return found[0].load(directory)


def basis_for(model: nn.Module, loaded: LoadedAdapter[Any]) -> Decompositions:
    """See that an adapter that was read fits a model; the decompositions that attaching it needs.

    Raises:
        UsageError: the adapter does not fit the model, an expert was trained on other weights, or as
            `check_adapter`.
    """
    basis = loaded.basis_of(model)
    check_adapter(model, loaded.adapter, basis)
    return basis
