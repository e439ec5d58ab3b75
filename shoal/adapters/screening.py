"""Bounds of a foreign adapter directory, seen in its JSON and in the header of its weights alone.

Everything that is read later costs time and memory in proportion to what is bounded here: bytes, names,
nesting, ranks, and what the factors take once they all have the widest rank. Knows no base model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shoal.adapters.files import CONFIG_FILE, FACTS_FILE, WEIGHTS_FILE
from shoal.adapters.peft_parameters import StatedParameters
from shoal.errors import UsageError, check_unicode, shorten
from shoal.file_formats import read_json, read_tensor_sizes

MAX_JSON_BYTES = 2**20  # of a configuration, and of a card
MAX_HEADER_BYTES = 2**20  # of small weights; those of large ones may be an eighth of them
MAX_DEPTH = 16  # of lists and objects in each other
MAX_LENGTH = 2048  # of a list or object in a card, whose every value is checked
MAX_PATTERN = 4096  # keys of `rank_pattern` and of `alpha_pattern`
MAX_NAME = 512  # characters of a module's or a tensor's
MIN_ALPHA = 1e-9
ITEM_BYTES = {"F64": 8, "F32": 4}  # 2 for any other


def screen(directory: Path, *, max_rank: int, max_bytes: int) -> None:
    """See that an adapter directory is small enough to be read.

    Args:
        directory: of the adapter; what is missing is not looked at.
        max_rank: largest rank.
        max_bytes: of the weights, and of the factors when all have the widest rank.

    Raises:
        UsageError: something is above its limit, or a text in the JSON is not Unicode.
        ShoalError: a file cannot be read.
    """
    for name in (CONFIG_FILE, FACTS_FILE):
        _check_size(directory / name, MAX_JSON_BYTES)
    _check_size(directory / WEIGHTS_FILE, max_bytes)
    config: Mapping[str, Any] = {}
    for name in (CONFIG_FILE, FACTS_FILE):
        if (directory / name).is_file():
            content = read_json(directory / name)
            _check_values(content, name, MAX_LENGTH if name == FACTS_FILE else MAX_JSON_BYTES)
            if name == CONFIG_FILE:
                config = content
                _check_config(config, max_rank)
    if (directory / WEIGHTS_FILE).is_file():
        _check_weights(directory / WEIGHTS_FILE, config, max_rank, max_bytes)


def _check_size(path: Path, limit: int) -> None:
    if path.is_file() and (size := path.stat().st_size) > limit:
        raise UsageError(f"{path.name} has {size} bytes, the limit is {limit}; make the adapter smaller")


def _check_values(content: Any, name: str, most: int) -> None:
    """Bound how deep values lie and how many together, and see that every text can be written as UTF-8."""
    waiting = [(content, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise UsageError(f"{name} is nested deeper than {MAX_DEPTH}; it is another file")
        if isinstance(value, (list, dict)) and len(value) > most:
            raise UsageError(
                f"{name} holds {len(value)} values together, the limit is {most}; leave some out"
            )
        if isinstance(value, str):
            check_unicode(value, name)
        elif isinstance(value, dict):
            waiting += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list):
            waiting += [(part, depth + 1) for part in value]


def _check_config(config: Mapping[str, Any], max_rank: int) -> None:
    ranks, alphas = [config.get("r")], [config.get("lora_alpha")]
    for name, values in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
        pattern = config.get(name)
        if isinstance(pattern, dict):
            if len(pattern) > MAX_PATTERN:
                raise UsageError(f"{name} has {len(pattern)} keys, the limit is {MAX_PATTERN}; give fewer")
            _check_names(pattern)
            values += pattern.values()
    for rank in ranks:
        _check_rank(rank, max_rank)
    low = next((a for a in alphas if isinstance(a, float) and 0 < a < MIN_ALPHA), None)
    if low is not None:
        raise UsageError(f"an alpha is {low}, the least is {MIN_ALPHA}; fold the scale into B")


def _check_names(names: Iterable[str]) -> None:
    """Bound names of modules: whatever compares their ends looks at every part of them."""
    if long := next((name for name in names if len(name) > MAX_NAME), None):
        raise UsageError(
            f"the name {shorten(long)} has {len(long)} characters, the limit is {MAX_NAME}; it is no module's"
        )


def _check_rank(rank: object, max_rank: int) -> None:
    if isinstance(rank, int) and rank > max_rank:
        shown = str(rank) if rank < 10**18 else "above 10^18"
        raise UsageError(f"the adapter has rank {shown}, the limit is {max_rank}; truncate it")


def _check_weights(path: Path, config: Mapping[str, Any], max_rank: int, max_bytes: int) -> None:
    size = path.stat().st_size
    sizes = read_tensor_sizes(path, max_header_bytes=max(MAX_HEADER_BYTES, size // 8))
    _check_names(sizes)
    item = max((ITEM_BYTES.get(tensor.dtype, 2) for tensor in sizes.values()), default=2)
    factors = list(_factors(sizes, config))
    widest = max((rank for rank, _ in factors), default=0)
    _check_rank(widest, max_rank)
    if (padded := widest * item * sum(other for _, other in factors)) > max_bytes and padded > size:
        raise UsageError(
            f"the adapter's factors take {padded} bytes at its widest rank {widest}, the limit is "
            f"{max_bytes}; truncate it"
        )


def _factors(sizes: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """(rank, numbers for each of the rank) of every tensor that is a factor by its name."""
    stated = config.get("target_parameters")
    of_experts = StatedParameters(config, CONFIG_FILE).tensor_ranks(sizes) if stated else {}
    for name, tensor in sizes.items():
        if len(tensor.shape) >= 2 and (a := "lora_A" in name) != ("lora_B" in name):
            rank = of_experts.get(name, tensor.shape[0 if a else -1])
            yield rank, math.prod(tensor.shape) // max(rank, 1)
