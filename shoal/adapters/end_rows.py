"""LoRAs of the ends of a model in a batch in which every row has its own.

An end is as wide as the vocabulary, so rows share no padded buffers here: all rows of one adapter share its
two products. Knows modules and values, nothing of requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shoal.adapters.base import Hook
from shoal.adapters.hooks import delta_hook
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.models.ends import end_modules


class EndRows:
    """The ends' part of rows with LoRAs of their own."""

    def __init__(self, model: nn.Module) -> None:
        """No rows yet."""
        self._modules = {end.name: model.get_submodule(end.name) for end in end_modules(model)}
        self._hooks: list[tuple[nn.Module, Hook]] = []

    @property
    def names(self) -> set[str]:
        """Of the modules."""
        return set(self._modules)

    def update(self, rows: Sequence[LoRA | None]) -> None:
        """Take the rows as they are now."""
        places: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(id(row), []).append(place)
        self._hooks = []
        for name, module in self._modules.items():
            parts = []
            for own in places.values():
                lora = rows[own[0]]
                if lora is not None and name in lora.factors:
                    parts.append((torch.tensor(own), lora.factors[name], lora.scaling))
            if parts:
                self._hooks.append((module, _adding(module, parts)))

    def hooks(self) -> Iterator[tuple[nn.Module, Hook]]:
        """(module, forward hook) pairs for the rows of the last update."""
        yield from self._hooks


def _adding(module: nn.Module, parts: Sequence[tuple[Tensor, LoraFactors, float]]) -> Hook:
    """The forward hook that adds to some rows of an end's output what their adapters add."""
    weight: Any = module.weight
    ready = [
        (own.to(weight.device), delta_hook(module, factors.to(weight.device), scaling))
        for own, factors, scaling in parts
    ]

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        output = output.clone()
        for own, hook in ready:
            output[own] = hook(module, (inputs[0][own],), output[own])
        return output

    return add
