"""Reading JSON and safetensors, and hashing files: bounded, and any failure is one line.

Knows nothing of adapters or checkpoints, nor how files are written (`shoal.files`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError

from shoal.errors import ShoalError, reason
from shoal.file_errors import failures_named

if TYPE_CHECKING:
    from torch import Tensor

MAX_JSON_BYTES = 256 * 2**20
MAX_HEADER_BYTES = 8 * 2**20


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, in hex.

    Raises:
        ShoalError: it cannot be read.
    """
    digest = hashlib.sha256()
    with failures_named(Path(path), "read"), open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: str | os.PathLike[str], *, format: int | None = None) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: of the file.
        format: number that its `format` must be, if given.

    Raises:
        ShoalError: the file is missing, larger than 256 MB, not JSON, JSON other than an object, or of
            another format.
    """
    path = Path(path)
    with failures_named(path, "read"):
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise ShoalError(f"{path} has {size} bytes, the limit is {MAX_JSON_BYTES}; it is another file")
        content = path.read_bytes()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ShoalError(f"{path} is not valid JSON ({reason(error)}); write or download it again") from None
    if not isinstance(value, dict):
        raise ShoalError(f"{path} holds a JSON {type(value).__name__}, not an object; it is another file")
    if format is not None and value.get("format") != format:
        raise ShoalError(
            f"{path} is of format {value.get('format')!r}, this version reads {format}; use the version that "
            "wrote it, or train it again"
        )
    return value


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, on the CPU.

    Raises:
        ShoalError: the file is missing, truncated, not a safetensors file, or has a header above 8 MB.
    """
    from safetensors.torch import load_file  # which loads torch, and much here needs none

    path = Path(path)
    with failures_named(path, "read"):
        with path.open("rb") as file:
            _check_header(path, file.read(8), path.stat().st_size)
        with _whole_safetensors(path):
            return load_file(path)


def read_tensor_sizes(
    path: str | os.PathLike[str], *, max_header_bytes: int = MAX_HEADER_BYTES
) -> dict[str, TensorSize]:
    """Dtype and shape of every tensor of a safetensors file, from its header alone.

    Raises:
        ShoalError: the file is missing, truncated or not a safetensors file, or its header is too large.
    """
    path = Path(path)
    with failures_named(path, "read"), path.open("rb") as file:
        _check_header(path, first := file.read(8), path.stat().st_size, max_header_bytes)
        header = file.read(int.from_bytes(first, "little"))
    with _whole_safetensors(path):
        try:
            tensors = {name: t for name, t in json.loads(header).items() if name != "__metadata__"}
            sizes = {name: TensorSize(t["dtype"], tuple(t["shape"])) for name, t in tensors.items()}
            if not all(type(n) is int and 0 <= n < 2**40 for size in sizes.values() for n in size.shape):
                raise ValueError("its shapes are no numbers")
            return sizes
        except (TypeError, AttributeError, RecursionError) as error:
            raise ValueError(reason(error)) from None


class TensorSize(NamedTuple):
    """The dtype as safetensors calls it, and the shape, of a tensor."""

    dtype: str
    shape: tuple[int, ...]


def read_tensors_hashed(path: str | os.PathLike[str]) -> HashedTensors:
    """Every tensor of a safetensors file with the file's SHA-256, from one reading of it; errors as above."""
    from safetensors.torch import load

    path = Path(path)
    with failures_named(path, "read"):
        content = path.read_bytes()
    _check_header(path, content[:8], len(content))
    with _whole_safetensors(path):
        return HashedTensors(load(content), hashlib.sha256(content).hexdigest())


class HashedTensors(NamedTuple):
    """The tensors of a file, on the CPU, and the SHA-256 of the file, in hex."""

    tensors: dict[str, Tensor]
    sha256: str


def _check_header(path: Path, first: bytes, size: int, most: int = MAX_HEADER_BYTES) -> None:
    header = int.from_bytes(first, "little")
    limit = min(size, most)
    if header > limit:
        raise ShoalError(
            f"{path} ({size} bytes) states a header of {header} bytes, the limit for it is {limit}; "
            "it is not a whole safetensors file, write or download it again"
        )


@contextmanager
def _whole_safetensors(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, ValueError, KeyError) as error:
        raise ShoalError(
            f"{path} is not a whole safetensors file ({error}); write or download it again"
        ) from None
