"""Trained probes on disk: numbers as safetensors, what they belong to as JSON; written whole, read strictly.

Knows files and values; nothing of training or of the model that a probe reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from shoal.errors import ShoalError
from shoal.file_formats import read_json, read_tensors
from shoal.files import read_directory, write_directory
from shoal.transformer2.router import NONE, Probe

WEIGHTS_FILE = "probe.safetensors"
CONFIG_FILE = "probe.json"
PROBE_FILES = (WEIGHTS_FILE, CONFIG_FILE)
FORMAT = 1
TENSORS = ("mean", "scale", "weight", "bias")


@dataclass(frozen=True, eq=False)
class StoredProbe:
    """A probe and what it belongs to.

    Attributes:
        probe: the classifier.
        base_model: hub id or path of the model whose states it reads.
        provenance: how it was trained and what it scored, as JSON values.
    """

    probe: Probe
    base_model: str
    provenance: Mapping[str, Any] = field(default_factory=dict)


def save_probe(directory: Path, stored: StoredProbe) -> None:
    """Write a probe, whole or not at all.

    Raises:
        UsageError: the directory holds other files.
        ShoalError: it cannot be written.
    """
    probe = stored.probe
    description = {
        "format": FORMAT,
        "base_model": stored.base_model,
        "classes": probe.classes,
        "layer": probe.layer,
        "provenance": dict(stored.provenance),
    }

    def write(folder: Path) -> None:
        save_file({name: getattr(probe, name).contiguous() for name in TENSORS}, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(description, indent=1) + "\n", "utf-8")

    write_directory(directory, write)


def load_probe(directory: Path) -> StoredProbe:
    """Read a probe.

    Raises:
        UsageError: no such directory.
        ShoalError: a file is missing, truncated, of another format, or its numbers do not belong together or
            are not finite.
    """
    return read_directory(directory, _read)


def _read(folder: Path) -> StoredProbe:
    description = read_json(folder / CONFIG_FILE, format=FORMAT)
    tensors = read_tensors(folder / WEIGHTS_FILE)
    try:
        listed = description["classes"] if "classes" in description else [*description["skills"], NONE]
        named, layer = tuple(str(skill) for skill in listed), int(description["layer"])
        if named[-1:] != (NONE,):
            raise ValueError(f"its last class is not {NONE}")
        probe = Probe(named, layer, *(tensors[name].float() for name in TENSORS))
        classes, width = len(named), probe.mean.numel()
        shapes = {"mean": (width,), "scale": (width,), "weight": (classes, width), "bias": (classes,)}
        for name, shape in shapes.items():
            tensor = getattr(probe, name)
            if tensor.shape != shape or not bool(tensor.isfinite().all()):
                raise ValueError(f"{name} does not hold {shape} finite numbers")
        return StoredProbe(probe, str(description["base_model"]), dict(description["provenance"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ShoalError(f"{folder} holds no probe ({error}); copy or train it again") from None
