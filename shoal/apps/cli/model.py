"""The base model of a command: which one, where it computes, and what is said of adapters of another."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from shoal.apps.cli.settings import Only
from shoal.config import TextToLoRAConfig
from shoal.errors import UsageError

if TYPE_CHECKING:
    import torch

    from shoal.models.backbone import Backbone, BackboneShape

log = logging.getLogger(__name__)

BASE_HELP = "base model: alias, directory or hub id; none means the default (see `shoal models`)"
HYPERNETWORK_HELP = "directory of a hypernetwork; none means the shipped one for the base model"
_SIZES = ("adapter_rank", "adapter_alpha", "num_layers_to_adapt", "target_modules")
AdapterSizes = Annotated[TextToLoRAConfig, Only(*_SIZES)]
# Of a generated adapter: a shipped network has sizes of its own, and one that is asked for others is another.
GeneratedSizes = Annotated[TextToLoRAConfig, Only(*_SIZES, unset="as the hypernetwork has")]


class Place(BaseModel):
    """Base model, device and dtype of a command."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str | None = Field(None, description=BASE_HELP)
    device: str | None = Field(None, description="cuda, mps or cpu; none means the best there is")
    dtype: str | None = Field(
        None, description="float32, bfloat16 or float16; none means what the device is fast in"
    )


def check_directories(**given: Path | None) -> None:
    """See that what flags name are directories; None is a flag that was not given.

    Raises:
        UsageError: one is not.
    """
    for flag, path in given.items():
        if path is not None and not path.is_dir():
            raise UsageError(f"--{flag} {path} is no directory; check the path")


@dataclass(frozen=True)
class Loading:
    """Device and dtype of a model; no dtype means what the device is fast in."""

    device: torch.device
    dtype: torch.dtype | None


def usable_place(place: Place) -> Loading:
    """See that the device and dtype can be had, before anything is read.

    Raises:
        UsageError: no such device or dtype.
    """
    import torch

    from shoal.models.backbone import DTYPES, usable_device

    if place.dtype is not None and place.dtype not in DTYPES:
        raise UsageError(f"--dtype {place.dtype}: choose from {', '.join(DTYPES)}")
    try:
        device = torch.device(place.device) if place.device else None
    except RuntimeError:
        raise UsageError(f"--device {place.device}: choose from cuda, mps, cpu") from None
    return Loading(usable_device(device), DTYPES[place.dtype] if place.dtype else None)


def shape_of(place: Place) -> BackboneShape:
    """The shape of the base model of a command, with its device and dtype checked; errors as `load`."""
    from shoal.models.backbone import DEFAULT_MODEL, load_shape
    from shoal.models.sources import check_downloaded

    usable_place(place)
    base = place.base or DEFAULT_MODEL
    check_downloaded(base)
    return load_shape(base)


def load(place: Place, base: str | None = None) -> Backbone:
    """The base model of a command.

    Raises:
        UsageError: no such model, device or dtype.
        ShoalError: the model is damaged.
    """
    from shoal.models.backbone import DEFAULT_MODEL, load_backbone

    chosen = usable_place(place)
    return load_backbone(base or place.base or DEFAULT_MODEL, device=chosen.device, dtype=chosen.dtype)


def warn_of_another_base(named: str | None, base: str | None, directory: Path | str) -> None:
    """Say where an adapter is put on another base model than its files name; it may fit all the same."""
    from shoal.models.backbone import load_shape

    if named is not None and base is not None and named != load_shape(base).base_model:
        log.warning("%s is for %s, and is put on %s", directory, named, base)
