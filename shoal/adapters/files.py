"""The adapter directory on disk: written for every LoRA loader, and read strictly.

A directory holds `adapter_config.json` and `adapter_model.safetensors` (see `peft_format`), a model card
`README.md`, and `shoal.json`, the card's facts for machines. Knows how these are kept; not how adapters are
made, attached or served. Tensors are loaded where they are read or written: names and cards need no torch.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.adapters.card import AdapterCard, AdapterFacts, parse_card, render_card
from shoal.errors import ShoalError, UsageError, shorten
from shoal.file_formats import read_json, read_tensors
from shoal.files import read_directory, write_directory

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from shoal.adapters.lora import LoRA
    from shoal.models.shapes import BackboneShape

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
CARD_FILE = "README.md"
FACTS_FILE = "shoal.json"
ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, FACTS_FILE)
FORMAT = 1

ADAPTER_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, eq=False)
class StoredAdapter:
    """An adapter as read from disk.

    Attributes:
        lora: the factors; rsLoRA is folded into alpha.
        base_model: hub id or path of the model that it adapts, None where the directory names none.
        revision: version of the base model, None for its newest.
        card: where it came from, None for an adapter that another tool wrote.
    """

    lora: LoRA
    base_model: str | None
    revision: str | None
    card: AdapterCard | None

    def made_for(self, base_model: str) -> bool:
        """True where it is for this base model, or names none."""
        return self.base_model in (None, base_model)


def save_adapter(
    directory: str | os.PathLike[str],
    lora: LoRA,
    *,
    shape: BackboneShape,
    card: AdapterCard,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    pad_layers: bool = False,
    beside: Mapping[str, str] | None = None,
) -> None:
    """Write an adapter that every LoRA tool loads, whole or not at all; an old one there is replaced.

    Args:
        directory: where to; made if missing.
        lora: the adapter.
        shape: the base model with all its linear maps, so that no name written matches another module.
        card: provenance.
        revision: version of the base model.
        dtype: float32, float16 or bfloat16; by default the adapter's own.
        pad_layers: also write the layers that the adapter leaves alone, with B zero, as LoRAX needs.
        beside: file name -> text of more files.

    Raises:
        UsageError: the adapter does not fit the shape, is not finite in this dtype, or has no alpha above 0.
        ShoalError: the directory cannot be written.
    """
    from safetensors.torch import save_file

    from shoal.adapters.peft_format import cover, peft_config, peft_tensors

    coverage = cover(lora, shape, pad_layers=pad_layers)
    config = peft_config(lora, coverage, base_model=shape.base_model, revision=revision)
    tensors = peft_tensors(lora, coverage, dtype)
    adapted = {t.layer for t in coverage.targets if t not in coverage.zero}
    adapted |= {t.layer for t in coverage.weights} | {p.layer for p in coverage.parameters}
    types = [*(t.type for t in coverage.weights), *(p.type for p in coverage.parameters)]
    facts = AdapterFacts(
        base_model=shape.base_model,
        rank=lora.rank,
        alpha=lora.alpha,
        target_modules=(*coverage.target_modules, *dict.fromkeys(types)),
        layers=coverage.layers,
        zero_layers=tuple(layer for layer in coverage.layers if layer not in adapted),
        num_layers=shape.num_layers,
    )
    sidecar = {"format": FORMAT, "revision": revision, **asdict(facts), "card": card.model_dump(mode="json")}

    def write(folder: Path) -> None:
        save_file(tensors, folder / WEIGHTS_FILE, {"format": "pt"})
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (folder / FACTS_FILE).write_text(json.dumps(sidecar, indent=2) + "\n", encoding="utf-8")
        (folder / CARD_FILE).write_text(render_card(card, facts), encoding="utf-8")
        for name, text in (beside or {}).items():
            (folder / name).write_text(text, encoding="utf-8")

    write_directory(directory, write)


def load_adapter(
    directory: str | os.PathLike[str], *, is_copy: Callable[[str, Tensor], bool] | None = None
) -> StoredAdapter:
    """Read an adapter that we or another tool wrote; `is_copy` as in `shoal.adapters.peft_format.read_lora`.

    Raises:
        ShoalError: a file is missing, truncated, foreign, not finite or a link to elsewhere, or the adapter
            is more than plain LoRA (DoRA, biases, changed base weights).
    """
    return read_directory(directory, lambda folder: _read_adapter(folder, is_copy))


def check_name(name: object) -> str:
    """Return an adapter's name if it is one; it then holds no path separator and is no link.

    Raises:
        UsageError: not 1 to 64 of `a-z0-9._-`, the first a letter or digit.
    """
    if not isinstance(name, str) or not ADAPTER_NAME.fullmatch(name):
        raise UsageError(
            f"{shorten(name, 80)} is no adapter name; use 1 to 64 of a-z, 0-9, '.', '_', '-', "
            "the first a letter or digit"
        )
    return name


def _read_adapter(directory: Path, is_copy: Callable[[str, Tensor], bool] | None = None) -> StoredAdapter:
    from shoal.adapters.peft_format import read_lora

    if (directory / "adapter_model.bin").exists() and not (directory / WEIGHTS_FILE).exists():
        raise ShoalError(
            f"{directory / 'adapter_model.bin'} is a pickle, which can run code and is never read; "
            f"save the adapter as {WEIGHTS_FILE}"
        )
    config = read_json(_own_file(directory, CONFIG_FILE))
    lora = read_lora(config, read_tensors(_own_file(directory, WEIGHTS_FILE)), directory, is_copy=is_copy)
    base_model = _text_or_none(config.get("base_model_name_or_path"))
    return StoredAdapter(lora, base_model, _text_or_none(config.get("revision")), _read_card(directory))


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _own_file(directory: Path, name: str) -> Path:
    path, home = directory / name, directory.resolve()
    homes = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(path.resolve().is_relative_to(place) for place in homes):  # the hub's cache links to its blobs
        raise ShoalError(
            f"{path} is a link to outside its directory; copy the adapter with its files (cp -rL)"
        )
    if not path.is_file():
        raise ShoalError(f"{directory} has no {name}, so it is not a PEFT adapter; check the path")
    return path


def _read_card(directory: Path) -> AdapterCard | None:
    if not os.path.lexists(directory / FACTS_FILE):
        return None
    path = _own_file(directory, FACTS_FILE)
    try:
        return parse_card(read_json(path).get("card"), path)
    except ShoalError as error:
        raise ShoalError(f"{error}, or delete the file to load without a card") from None
