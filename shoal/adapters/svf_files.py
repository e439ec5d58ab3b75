"""Experts on disk: z as safetensors, where they belong as JSON; written whole, read strictly.

An expert scales the singular values of one model, so it carries a fingerprint of them: beside another model's
decompositions it is refused. Knows files and values; nothing of training or routers.
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

from shoal.adapters.decomposition import Decomposition, Decompositions
from shoal.adapters.svf import ExpertVector, check_fits, check_single
from shoal.adapters.svf_cache import decompose_model
from shoal.errors import ShoalError, UsageError
from shoal.file_formats import read_json, read_tensors
from shoal.files import read_directory, write_directory

WEIGHTS_FILE = "expert.safetensors"
CONFIG_FILE = "expert.json"
EXPERT_FILES = (WEIGHTS_FILE, CONFIG_FILE)
FORMAT = 1
TOLERANCE = 1e-3  # relative; the same weights give the same values to 1e-5 on other machines and in bfloat16


@dataclass(frozen=True, eq=False)
class StoredExpert:
    """An expert with its origin.

    Attributes:
        expert: a single one.
        base_model: hub id or path of the model that it scales.
        skill: the name by which the router chooses it.
        provenance: how it was trained, as JSON values.
        weights: module name -> fingerprint of the singular values that it was trained on (see
            `singular_fingerprint`); empty until it was saved.
    """

    expert: ExpertVector
    base_model: str
    skill: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Sequence[float]] = field(default_factory=dict)


def save_expert(directory: Path, stored: StoredExpert, basis: Decompositions) -> None:
    """Write an expert with the fingerprint of its singular values, whole or not at all.

    Raises:
        UsageError: it is a batch of experts, it does not fit, it holds NaN or infinity, or the directory
            holds other files.
        ShoalError: the directory cannot be written.
    """
    check_single(basis, stored.expert)
    _check_finite(stored.expert)
    description = {
        "format": FORMAT,
        "base_model": stored.base_model,
        "skill": stored.skill,
        "fingerprint": {name: singular_fingerprint(basis[name]) for name in stored.expert.z},
        "provenance": dict(stored.provenance),
    }
    z = {name: z.detach().float().cpu().contiguous() for name, z in stored.expert.z.items()}

    def write(folder: Path) -> None:
        save_file(z, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(description, indent=1) + "\n", "utf-8")

    write_directory(directory, write)


def read_expert(directory: Path) -> StoredExpert:
    """Read an expert, whichever model it belongs to.

    Raises:
        UsageError: no such directory.
        ShoalError: a file is missing, truncated, of another format, or holds numbers that are not finite.
    """
    return read_directory(directory, _read)


def load_expert(directory: Path, basis: Decompositions) -> StoredExpert:
    """Read an expert and see that it belongs to these singular values.

    Raises:
        UsageError: as `read_expert` and `check_belongs`.
        ShoalError: as `read_expert`.
    """
    stored = read_expert(directory)
    check_belongs(stored, basis)
    return stored


def basis_of(stored: StoredExpert, model: nn.Module) -> dict[str, Decomposition]:
    """Decompositions of the weights that one expert scales; errors as `decompose_for`, `check_belongs`."""
    basis = decompose_for([stored], model)
    check_belongs(stored, basis)
    return basis


def decompose_for(experts: Sequence[StoredExpert], model: nn.Module) -> dict[str, Decomposition]:
    """Decompositions of every weight of a model that some experts scale, as long as the longest z.

    Raises:
        UsageError: the model lacks one of the weights.
    """
    names = dict.fromkeys(name for stored in experts for name in stored.expert.z)
    longest = max(z.numel() for stored in experts for z in stored.expert.z.values())
    return decompose_model(model, list(names), components=longest)


def check_belongs(stored: StoredExpert, basis: Decompositions) -> None:
    """See that an expert was trained on these singular values.

    Raises:
        UsageError: it is for other weights or another expert_vector_dim.
    """
    check_fits(basis, stored.expert)
    for name, theirs in stored.weights.items():
        ours = singular_fingerprint(basis[name])
        if not _alike(theirs, ours):
            raise UsageError(
                f"the expert for {stored.skill} was trained on other weights: the singular values of {name} "
                f"sum to {ours[1]:.4g}, its own to {theirs[1]:.4g}; use its base model {stored.base_model}"
            )


def is_for(stored: StoredExpert, model: nn.Module) -> bool:
    """True where an expert was trained on a model's weights; only the first that it scales is compared."""
    name, z = next(iter(stored.expert.z.items()))
    try:
        basis = decompose_model(model, [name], components=z.numel())
    except UsageError:  # no such weight
        return False
    return _alike(stored.weights[name], singular_fingerprint(basis[name]))


def singular_fingerprint(decomposition: Decomposition) -> list[float]:
    """The largest singular value, their sum and their root of squares."""
    s = decomposition.s.double()
    return [float(s[0]), float(s.sum()), float(s.norm())]


def _read(folder: Path) -> StoredExpert:
    description = read_json(folder / CONFIG_FILE, format=FORMAT)
    try:
        expert = ExpertVector({name: z.float() for name, z in read_tensors(folder / WEIGHTS_FILE).items()})
        _check_finite(expert)
        prints = {name: [float(x) for x in row] for name, row in description["fingerprint"].items()}
        if any(len(row) != 3 for row in prints.values()):
            raise ValueError("a fingerprint has 3 numbers")
        provenance = dict(description["provenance"])
        stored = StoredExpert(
            expert, str(description["base_model"]), str(description["skill"]), provenance, prints
        )
    except (UsageError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ShoalError(f"{folder} holds no expert ({error}); copy or train it again") from None
    if prints.keys() != expert.z.keys() or any(z.dim() != 1 for z in expert.z.values()):
        raise ShoalError(f"{folder}: {WEIGHTS_FILE} and {CONFIG_FILE} do not belong together; copy it again")
    return stored


def _check_finite(expert: ExpertVector) -> None:
    odd = next((name for name, z in expert.z.items() if not bool(z.isfinite().all())), None)
    if odd is not None:
        raise UsageError(f"the expert's z of {odd} holds NaN or infinity; train or copy it again")


def _alike(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=TOLERANCE) for a, b in zip(one, other, strict=True))
