"""Adapters from elsewhere, checked before they are kept: size, rank, base model, shapes, finite values, card.

What is kept is written anew from the checked factors, so nothing else of a foreign directory is. Knows PEFT
directories and the registry; nothing of where an adapter came from.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.adapters.card import AdapterCard
from shoal.adapters.files import CONFIG_FILE, FACTS_FILE, StoredAdapter, load_adapter
from shoal.adapters.peft_format import adapted_targets
from shoal.adapters.screening import screen
from shoal.errors import ShoalError, UsageError, shorten
from shoal.models.shapes import BackboneShape
from shoal.registry.registry import AdapterRecord, Quota, Registry

MAX_RANK, MAX_BYTES = 128, 512 * 2**20
MAX_REVISION = 128  # characters
MAX_CARD = 2**14  # characters: a card is in every row of a list


def read_foreign(
    directory: str | os.PathLike[str],
    shape: BackboneShape,
    *,
    max_rank: int = MAX_RANK,
    max_bytes: int = MAX_BYTES,
) -> StoredAdapter:
    """Read a PEFT LoRA that anyone may have written, for one base model; sizes are checked before reading.

    Args:
        directory: of the adapter.
        shape: of the base model.
        max_rank: largest rank.
        max_bytes: largest file of weights, also once all factors have the widest rank.

    Raises:
        UsageError: it is no plain LoRA of this base model within the limits.
    """
    folder = Path(directory)
    try:
        screen(folder, max_rank=max_rank, max_bytes=max_bytes)
        stored = load_adapter(folder)
    except UsageError:
        raise
    except ShoalError as error:  # here the fault is the sender's
        raise UsageError(str(error)) from error
    if not stored.made_for(shape.base_model):
        raise UsageError(
            f"the adapter is for {shorten(stored.base_model)}, not {shape.base_model}; if that is the same "
            f"model under another name, correct base_model_name_or_path in its {CONFIG_FILE}"
        )
    if stored.revision is not None and len(stored.revision) > MAX_REVISION:
        raise UsageError(
            f"the revision in {CONFIG_FILE} has {len(stored.revision)} characters, the limit is "
            f"{MAX_REVISION}; name a branch, a tag or a commit"
        )
    adapted_targets(shape, stored.lora)
    if stored.card is not None and (length := len(stored.card.model_dump_json())) > MAX_CARD:
        raise UsageError(
            f"the card in {FACTS_FILE} has {length} characters, the limit is {MAX_CARD}; shorten its "
            "description and notes, or delete the file"
        )
    return stored


@contextmanager
def without_paths(folder: Path) -> Iterator[None]:
    """Let errors name files of a temporary folder, and not where they lie."""
    try:
        yield
    except ShoalError as error:
        shown = str(error).replace(f"{folder}/", "").replace(str(folder), "the adapter")
        if shown == str(error):
            raise
        raise type(error)(shown) from error


def keep_foreign(
    registry: Registry,
    name: str,
    directory: str | os.PathLike[str],
    shape: BackboneShape,
    *,
    owner: str,
    public: bool = False,
    quota: Quota | None = None,
    max_rank: int = MAX_RANK,
    max_bytes: int = MAX_BYTES,
) -> AdapterRecord:
    """Check an adapter as `read_foreign`, then keep it as `Registry.add`; errors of both."""
    stored = read_foreign(directory, shape, max_rank=max_rank, max_bytes=max_bytes)
    card = stored.card or AdapterCard(generator="imported", trained=True)
    return registry.add(
        name,
        stored.lora,
        shape=shape,
        card=card,
        owner=owner,
        public=public,
        revision=stored.revision,
        quota=quota,
    )
