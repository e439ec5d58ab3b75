"""Tensors of a model's safetensors files, read and written one at a time, however large the model is.

Knows names, shapes and bytes; nothing of what a model computes.

Source: https://huggingface.co/docs/safetensors, "Format"; the index of several files is that of transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shoal.errors import ShoalError, UsageError, shorten
from shoal.file_formats import TensorSize, read_json, read_tensor_sizes

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_REPAIR = "download or convert the model again"


class TensorFiles:
    """A model's tensors on the disk.

    Attributes:
        folder: where they are.
        files: file name -> names of its tensors, in order.
        sizes: tensor name -> dtype, as safetensors calls it, and shape.
    """

    def __init__(self, folder: Path) -> None:
        """Read the headers of all files.

        Raises:
            UsageError: no directory, or no safetensors file in it.
            ShoalError: a file is missing or cut short, lacks a tensor that the index names, lies outside the
                directory, or has a dtype that is not among `DTYPES`.
        """
        if not folder.is_dir():
            raise UsageError(f"{folder} is no directory of a model; check the path")
        self.folder = folder
        self.files: dict[str, list[str]] = {}
        self.sizes: dict[str, TensorSize] = {}
        named = _named_files(folder)
        for file, expected in named.items():
            path = folder / file
            if not path.is_file():
                raise ShoalError(f"{path} is missing, which the index names; {_REPAIR}")
            sizes = read_tensor_sizes(path)
            _check_length(path)
            lacking = next((name for name in expected if name not in sizes), None)
            if lacking is not None:
                raise ShoalError(f"{path} has no {lacking}, which the index says it has; {_REPAIR}")
            self.files[file] = [name for name in sizes if not expected or name in expected]
            self.sizes |= {name: sizes[name] for name in self.files[file]}
        for name, size in self.sizes.items():
            if size.dtype not in DTYPES:
                raise ShoalError(
                    f"{name} in {folder} is of dtype {size.dtype}, not one of {', '.join(DTYPES)}; convert it"
                )
        self._file = {name: file for file, names in self.files.items() for name in names}

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU.

        Raises:
            ShoalError: the file cannot be read.
        """
        path = self.folder / self._file[name]
        try:
            with safe_open(path, "pt") as tensors:
                return tensors.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ShoalError(f"{path} cannot be read ({error}); {_REPAIR}") from None


def write_tensors(path: Path, sizes: Mapping[str, TensorSize], tensors: Iterable[Tensor]) -> None:
    """Write a safetensors file whose tensors come one by one.

    Args:
        path: of the file.
        sizes: name -> dtype and shape, in the order of the tensors.
        tensors: of these sizes; each is written before the next is asked for.

    Raises:
        ShoalError: a tensor is of another size.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size in sizes.items():
        begin, end = end, end + nbytes(size)
        header[name] = {"dtype": size.dtype, "shape": list(size.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for size, tensor in zip(sizes.values(), tensors, strict=True):
            if (_NAMES[tensor.dtype], tuple(tensor.shape)) != size:
                raise ShoalError(f"a tensor of {list(tensor.shape)} was to be {size}; report this defect")
            file.write(raw(tensor))


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, not copied where it lies in one piece."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def nbytes(size: TensorSize) -> int:
    """Bytes of a tensor of a size."""
    return DTYPES[size.dtype].itemsize * torch.Size(size.shape).numel()


def sized(tensor_size: TensorSize, dtype: torch.dtype) -> TensorSize:
    """The size of the same tensor in another dtype; one without fractions keeps its own."""
    floating = DTYPES[tensor_size.dtype].is_floating_point
    return tensor_size._replace(dtype=_NAMES[dtype]) if floating else tensor_size


def _named_files(folder: Path) -> dict[str, set[str]]:
    """File name -> tensors that the index expects there; an empty set where there is no index."""
    if (folder / FILE).is_file():
        return {FILE: set()}
    if not (folder / INDEX).is_file():
        raise UsageError(f"{folder} has neither {FILE} nor {INDEX}; convert its weights to safetensors")
    weights = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise ShoalError(f"{folder / INDEX} names no files of weights; {_REPAIR}")
    found: dict[str, set[str]] = {}
    for name, file in weights.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise UsageError(
                f"{folder / INDEX} names the file {shorten(file)}; only safetensors files of the same "
                "directory are read, correct it"
            )
        found.setdefault(file, set()).add(name)
    return found


def _check_length(path: Path) -> None:
    try:
        with safe_open(path, "pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise ShoalError(f"{path} is cut short or no safetensors file ({error}); {_REPAIR}") from None
