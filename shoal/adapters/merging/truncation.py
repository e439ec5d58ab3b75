"""Merged modules cut to a rank one by one, so that no dense delta outlives its module."""

from __future__ import annotations

import math

import torch

from shoal.adapters.lora import LoRA, LoraFactors
from shoal.adapters.merging.arithmetic import truncate_factors


class Truncation:
    """Merged modules cut to a rank as they come, and what was lost.

    Attributes:
        kept: module name -> its factors.
        errors: module name -> share of its Frobenius norm that was dropped.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._dropped = self._whole = 0.0
        self.kept: dict[str, LoraFactors] = {}
        self.errors: dict[str, float] = {}

    def take(self, name: str, factors: LoraFactors) -> None:
        """Cut one module."""
        kept, dropped, whole = truncate_factors(factors, self._rank)
        self.kept[name] = kept
        self.errors[name] = math.sqrt(dropped / whole) if whole else 0.0
        self._dropped += dropped
        self._whole += whole

    @property
    def error(self) -> float:
        """Share of the Frobenius norm of all modules together that was dropped."""
        return math.sqrt(self._dropped / self._whole) if self._whole else 0.0

    def lora(self) -> LoRA:
        """The adapter, of scaling 1."""
        rank = max(f.a.shape[0] for f in self.kept.values())
        padded = {name: f.padded(rank) for name, f in self.kept.items()}
        experts: dict[str, list[LoraFactors]] = {}
        for name in [name for name in padded if name.endswith("]")]:
            experts.setdefault(name[: name.rindex("[")], []).append(padded.pop(name))
        for name, each in experts.items():  # in their order
            padded[name] = LoraFactors(torch.stack([f.a for f in each]), torch.stack([f.b for f in each]))
        return LoRA(padded, alpha=float(rank))
