"""Adapters from elsewhere, checked before they are kept: size, rank, base model, shapes, finite values, card.

What is kept is written anew from the checked factors, so nothing else of a foreign directory is. Knows PEFT
directories and the registry; nothing of where an adapter came from.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePath

from shoal.adapters.card import AdapterCard
from shoal.adapters.files import CONFIG_FILE, FACTS_FILE, StoredAdapter, load_adapter
from shoal.adapters.matching import check_targets, named_as
from shoal.adapters.screening import screen
from shoal.errors import ShoalError, UsageError, shorten
from shoal.models.known import KNOWN_MODELS
from shoal.models.shapes import BackboneShape
from shoal.models.weights import is_base_tensor
from shoal.registry.records import AdapterRecord
from shoal.registry.registry import Quota, Registry

log = logging.getLogger(__name__)

_QUANTISED = re.compile(
    r"[-_.](bnb|unsloth|4bit|8bit|int4|int8|fp8|gptq|awq|gguf|hf|bf16|fp16|nf4|mlx|dynamic)$"
)
MAX_RANK, MAX_BYTES = 128, 512 * 2**20
MAX_REVISION = 128  # characters
MAX_CARD = 2**14  # characters: a card is in every row of a list


def read_foreign(
    directory: str | os.PathLike[str],
    shape: BackboneShape,
    *,
    max_rank: int = MAX_RANK,
    max_bytes: int = MAX_BYTES,
    other_base: bool = False,
) -> StoredAdapter:
    """Read a PEFT LoRA that anyone may have written, for one base model; sizes are checked before reading.

    Args:
        directory: of the adapter.
        shape: of the base model.
        max_rank: largest rank.
        max_bytes: largest file of weights, also once all factors have the widest rank.
        other_base: the base model is right, though the adapter names another.

    Raises:
        UsageError: it is no plain LoRA of this base model within the limits.
    """
    folder = Path(directory)
    try:
        screen(folder, max_rank=max_rank, max_bytes=max_bytes)
        tied = [f"{end.name}.weight" for end in shape.ends if end.tied]
        stored = load_adapter(
            folder, is_copy=lambda name, values: is_base_tensor(shape.base_model, name, values, tied)
        )
        stored = replace(stored, lora=named_as(stored.lora, shape))
    except UsageError:
        raise
    except ShoalError as error:  # here the fault is the sender's
        raise UsageError(str(error)) from error
    if stored.revision is not None and len(stored.revision) > MAX_REVISION:
        raise UsageError(
            f"the revision in {CONFIG_FILE} has {len(stored.revision)} characters, the limit is "
            f"{MAX_REVISION}; name a branch, a tag or a commit"
        )
    check_targets(shape, stored.lora)
    if stored.base_model is not None and not stored.made_for(shape.base_model):
        if not other_base and not may_be_same(stored.base_model, shape.base_model):
            raise UsageError(
                f"the adapter is for {shorten(stored.base_model)}, not {shape.base_model}; if that is the "
                "same model under another name, import it with --other-base, or correct "
                f"base_model_name_or_path in its {CONFIG_FILE}"
            )
        log.warning("the adapter names the base %s; it fits %s", shorten(stored.base_model), shape.base_model)
    if stored.card is not None and (length := len(stored.card.model_dump_json())) > MAX_CARD:
        raise UsageError(
            f"the card in {FACTS_FILE} has {length} characters, the limit is {MAX_CARD}; shorten its "
            "description and notes, or delete the file"
        )
    return stored


def may_be_same(named: str, base: str) -> bool:
    """True where a name may mean this base model: a folder of any machine, or a quantised copy's name.

    A folder's name says nothing of what is in it; that all sizes fit is checked beside this.
    """
    if named in KNOWN_MODELS:
        return False
    if named.count("/") != 1 or named.startswith(("/", ".", "~")) or "\\" in named or ":" in named:
        return True
    return _short_name(named) == _short_name(base)


def _short_name(model: str) -> str:
    """A model's name without its owner, in lower case, without what quantisation adds."""
    name = PurePath(model).name.lower()
    while (shorter := _QUANTISED.sub("", name)) != name:
        name = shorter
    return name


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
    other_base: bool = False,
    job: str | None = None,
) -> AdapterRecord:
    """Check an adapter as `read_foreign`, then keep it as `Registry.add`; errors of both."""
    stored = read_foreign(directory, shape, max_rank=max_rank, max_bytes=max_bytes, other_base=other_base)
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
        job=job,
    )
