"""Single tensors of a base model, read from its safetensors files without loading the model."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from shoal.errors import ShoalError
from shoal.file_formats import read_json
from shoal.models.sources import find_model


def is_base_tensor(model: str, name: str, values: Tensor, tied: Collection[str] = ()) -> bool:
    """True where a model has this tensor with these values, in the narrower of both dtypes.

    Of `tied` ones, which are one weight under several names, a model may hold any. A model that is not in a
    directory here is not looked at. Errors as `find_model`.
    """
    folder = Path(find_model(model).location)
    if not folder.is_dir():
        return False
    names = [name, *tied] if name in tied else [name]
    # Files may lack the prefix of the model inside, and GPT-NeoX's call the head by an older name.
    names += [name.partition(".")[2] for name in names]
    names += ["embed_out.weight"] if "lm_head.weight" in names else []
    own = next((tensor for tensor in (_tensor(folder, name) for name in names) if tensor is not None), None)
    if own is None or own.shape != values.shape:
        return False
    narrow = min(own.dtype, values.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(own.to(narrow), values.to(narrow))


def _tensor(folder: Path, name: str) -> Tensor | None:
    index = folder / "model.safetensors.index.json"
    file = "model.safetensors"
    if index.is_file():
        shards = read_json(index).get("weight_map")
        file = Path(str(shards.get(name, ""))).name if isinstance(shards, dict) else ""
    path = folder / file
    if not file or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as tensors:
            return tensors.get_tensor(name) if name in tensors.keys() else None  # noqa: SIM118 - no mapping
    except Exception as error:  # of safetensors, whose class of error is not exported
        raise ShoalError(f"{path} cannot be read; download or convert the model again") from error
