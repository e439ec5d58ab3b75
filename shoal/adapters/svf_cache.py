"""The decompositions of a model's weights, each computed once and kept in the cache by the weight's hash.

Knows modules and files; nothing of experts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from safetensors.torch import save
from torch import Tensor, nn

from shoal.adapters.decomposition import Decomposition, decompose
from shoal.adapters.svf_hooks import dense_weight, is_plain
from shoal.errors import ShoalError, UsageError
from shoal.file_formats import read_tensors
from shoal.files import write_file
from shoal.models.sources import cache_root

PARTS = ("u", "s", "vt")


def decompose_model(
    model: nn.Module,
    names: Sequence[str],
    *,
    components: int | None = None,
    cache: Path | None = None,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> dict[str, Decomposition]:
    """Decompose some linear maps of a model.

    Args:
        model: with its weights; quantised ones are read through their module.
        names: of its modules.
        components: how many singular values to keep, the largest; None means all.
        cache: folder of earlier decompositions, by default `svf` in the cache of Shoal.
        progress: wraps the names, to draw a bar.

    Returns:
        Module name -> decomposition, on the weight's device; U and V^T in its dtype (float32 where it is
        quantised), s in float32.

    Raises:
        UsageError: no names, a name that is no linear map, or weights that are on the meta device, NaN or
            infinite.
        ShoalError: the cache cannot be written, or a file in it is damaged.
    """
    if not names:
        raise UsageError("the model has 0 weights to decompose, at least 1 is needed; choose other modules")
    folder = cache or cache_root() / "svf"
    found = {}
    for name in progress(names):
        try:
            module = _module(model, name)
            weight = dense_weight(module)
            own = _cached(folder, weight)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None
        dtype = module.weight.dtype if is_plain(module.weight) else weight.dtype
        found[name] = own.truncated(components).to(weight.device, dtype)
    return found


def _cached(folder: Path, weight: Tensor) -> Decomposition:
    """The whole decomposition of a weight, in float32, from the folder or left there."""
    content = weight.contiguous().cpu()
    digest = hashlib.sha256(repr(tuple(content.shape)).encode() + content.numpy().tobytes()).hexdigest()
    path = folder / f"{digest}.safetensors"
    if not path.is_file():
        own = decompose(content)
        write_file(path, save(dict(zip(PARTS, own, strict=True))))
        return own
    stored = read_tensors(path)
    kept = min(content.shape)
    wanted = {"u": (content.shape[0], kept), "s": (kept,), "vt": (kept, content.shape[1])}
    if {name: tuple(tensor.shape) for name, tensor in stored.items()} != wanted:
        raise ShoalError(f"{path} is no decomposition of a {tuple(content.shape)} weight; delete the file")
    return Decomposition(*(stored[name] for name in PARTS))


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise UsageError("the model has no such module; see BackboneShape.select") from None
