"""Experts of single rows: a batch in which every row scales the shared singular components by its own z.

Source: Sun, Cetin, Tang, "Transformer-Squared: Self-adaptive LLMs", arXiv 2501.06252, section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoal.adapters.base import Hook
from shoal.adapters.decomposition import Decomposition, Decompositions
from shoal.adapters.svf import ExpertVector


class ModelBasis(Mapping[str, Decomposition]):
    """Decompositions in a model's dtype and on its device, each converted when it is first needed."""

    def __init__(self, model: nn.Module, basis: Decompositions | None) -> None:
        """`basis` may be None where no experts are used."""
        weight = next(model.parameters())
        self._device = weight.device
        self._dtype = weight.dtype
        self._basis: Decompositions = basis or {}
        self._converted: dict[str, Decomposition] = {}

    def __getitem__(self, name: str) -> Decomposition:
        if name not in self._converted:
            self._converted[name] = self._basis[name].to(self._device, self._dtype)
        return self._converted[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._basis)

    def __len__(self) -> int:
        return len(self._basis)


class ExpertRows:
    """Rows with experts of their own; see `RowBatch`. Others have z = 1, which adds exactly nothing."""

    def __init__(self, model: nn.Module, basis: Decompositions) -> None:
        """No rows yet."""
        self._model = model
        self._basis = basis
        self._changes: dict[str, Float[Tensor, "rows k"]] = {}

    def update(self, rows: Sequence[ExpertVector | None], changed: Sequence[int]) -> None:
        """For every weight that an expert of a row scales, stack `s (z - 1)` of all rows."""
        names = {name for row in rows if row is not None for name in row.z}
        self._changes = {}
        for name in sorted(names):
            s, dtype = self._basis[name].s, self._basis[name].u.dtype
            own = [s * (row.z[name].to(s) - 1) if row and name in row.z else 0 * s for row in rows]
            self._changes[name] = torch.stack(own).to(dtype)

    def hooks(self) -> Iterator[tuple[nn.Module, Hook]]:
        """See `RowBatch`."""
        for name, change in self._changes.items():
            yield self._model.get_submodule(name), _row_hook(self._basis[name], change)


def _row_hook(decomposition: Decomposition, change: Float[Tensor, "rows k"]) -> Hook:
    """The forward hook that adds `U (change * (V^T x))`, with one change for each row."""
    u, _, vt = decomposition

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0].reshape(len(change), -1, inputs[0].shape[-1])
        delta = torch.matmul(torch.matmul(x, vt.T) * change[:, None], u.T)
        return output + delta.view_as(output)

    return add
