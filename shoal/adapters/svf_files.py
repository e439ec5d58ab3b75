"""Experts on disk: z as safetensors, what they belong to as JSON; written whole, read strictly.

An expert scales the singular values of one model, so it carries a fingerprint of them: loaded beside another
model's decompositions, it is refused. Knows files and values; nothing of training or dispatch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from shoal.adapters.svf import Decomposition, Decompositions, ExpertVector, check_fits
from shoal.adapters.svf_cache import decompose_model
from shoal.errors import ShoalError, UsageError
from shoal.files import read_directory, read_json, read_tensors, write_directory

WEIGHTS_FILE = "expert.safetensors"
CONFIG_FILE = "expert.json"
EXPERT_FILES = (WEIGHTS_FILE, CONFIG_FILE)
FORMAT = 1
TOLERANCE = 1e-3  # relative; the same weights give the same values to 1e-5 on other machines and in bfloat16


@dataclass(frozen=True, eq=False)
class StoredExpert:
    """An expert and what it belongs to.

    Attributes:
        expert: a single one.
        base_model: hub id or path of the model that it scales.
        skill: what it is for, as dispatch names it.
        provenance: how it was trained, as JSON values.
    """

    expert: ExpertVector
    base_model: str
    skill: str
    provenance: Mapping[str, Any] = field(default_factory=dict)


def save_expert(directory: Path, stored: StoredExpert, basis: Decompositions) -> None:
    """Write an expert with the fingerprint of its singular values, whole or not at all.

    Raises:
        UsageError: it is a batch of experts, it does not fit, or the directory holds other files.
        ShoalError: the directory cannot be written.
    """
    check_fits(basis, stored.expert)
    if stored.expert.batch is not None:
        raise UsageError(f"a batch of {stored.expert.batch} experts is not one expert; save its rows")
    description = {
        "format": FORMAT,
        "base_model": stored.base_model,
        "skill": stored.skill,
        "fingerprint": {name: fingerprint(basis[name]) for name in stored.expert.z},
        "provenance": dict(stored.provenance),
    }
    z = {name: z.detach().float().cpu().contiguous() for name, z in stored.expert.z.items()}

    def write(folder: Path) -> None:
        save_file(z, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(description, indent=1) + "\n", "utf-8")

    write_directory(directory, write)


def load_expert(directory: Path, basis: Decompositions) -> StoredExpert:
    """Read an expert and see that it belongs to these singular values.

    Raises:
        UsageError: no such directory, or the expert is for other weights or another expert_vector_dim.
        ShoalError: a file is missing, truncated, of another format, or holds numbers that are not finite.
    """
    return read_directory(directory, lambda folder: _read(folder, basis))


def modules_of(directory: Path) -> dict[str, int]:
    """Module name -> length of z, of an expert that is not loaded; errors as `load_expert`."""
    tensors = read_directory(directory, lambda folder: read_tensors(folder / WEIGHTS_FILE))
    return {name: z.numel() for name, z in tensors.items()}


def is_for(directory: Path, model: nn.Module) -> bool:
    """Whether an expert was trained on a model's weights, as far as the first that it scales tells.

    Raises:
        ShoalError: the expert is damaged.
    """
    name, kept = next(iter(modules_of(directory).items()))
    try:
        basis = decompose_model(model, [name], components=kept)
    except UsageError:  # no such weight
        return False
    description = read_json(directory / CONFIG_FILE, format=FORMAT)
    return _alike(description["fingerprint"][name], fingerprint(basis[name]))


def fingerprint(decomposition: Decomposition) -> list[float]:
    """The largest singular value, their sum and their root of squares."""
    s = decomposition.s.double()
    return [float(s[0]), float(s.sum()), float(s.norm())]


def _read(folder: Path, basis: Decompositions) -> StoredExpert:
    path = folder / CONFIG_FILE
    description = read_json(path, format=FORMAT)
    try:
        expert = ExpertVector({name: z.float() for name, z in read_tensors(folder / WEIGHTS_FILE).items()})
        prints = {name: [float(x) for x in row] for name, row in description["fingerprint"].items()}
        if any(len(row) != 3 for row in prints.values()):
            raise ValueError("a fingerprint has 3 numbers")
        stored = StoredExpert(
            expert, str(description["base_model"]), str(description["skill"]), dict(description["provenance"])
        )
    except (UsageError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ShoalError(f"{folder} holds no expert ({error}); copy or train it again") from None
    if prints.keys() != expert.z.keys() or any(z.dim() != 1 for z in expert.z.values()):
        raise ShoalError(f"{folder}: {WEIGHTS_FILE} and {CONFIG_FILE} do not belong together; copy it again")
    check_fits(basis, expert)
    for name, theirs in prints.items():
        ours = fingerprint(basis[name])
        if not _alike(theirs, ours):
            raise UsageError(
                f"{folder} was trained on other weights: the singular values of {name} sum to {ours[1]:.4g}, "
                f"its own to {theirs[1]:.4g}; use its base model {stored.base_model}"
            )
    return stored


def _alike(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=TOLERANCE) for a, b in zip(one, other, strict=True))
