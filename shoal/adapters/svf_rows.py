"""Experts of single rows: a batch in which every row scales the shared singular components by its own z.

Source: Sun, Cetin, Tang, "Transformer-Squared: Self-adaptive LLMs", arXiv 2501.06252, section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from shoal.adapters.base import Hook
from shoal.adapters.decomposition import Decompositions
from shoal.adapters.svf import ExpertVector
from shoal.adapters.svf_hooks import delta_hook


class ExpertRows:
    """Rows with experts of their own; see `RowBatch`. Others have z = 1, which adds exactly nothing."""

    def __init__(self, model: nn.Module, basis: Decompositions) -> None:
        """No rows yet."""
        self._model = model
        self._basis = basis
        self._count = 0
        self._capacity = 0  # rows that there is room for
        self._names: set[str] = set()  # modules that the rows scale
        self._changes: dict[str, Float[Tensor, "capacity k"]] = {}  # module name -> `s (z - 1)` of every row

    def update(self, rows: Sequence[ExpertVector | None], changed: Sequence[int]) -> None:
        """Write `s (z - 1)` of the rows that changed; of all, where the buffers do not hold the rows."""
        self._count = len(rows)
        self._names = {name for row in rows if row is not None for name in row.z}
        if self._names and not (len(rows) <= self._capacity and self._names <= self._changes.keys()):
            self._make_room(len(rows), self._names)
            changed = range(len(rows))
        for row in changed:
            if row < self._capacity:
                self._put(row, rows[row])

    def hooks(self) -> Iterator[tuple[nn.Module, Hook]]:
        """See `RowBatch`."""
        for name in sorted(self._names):
            change = self._changes[name]
            yield self._model.get_submodule(name), delta_hook(self._basis[name], change[: self._count])

    def _make_room(self, rows: int, names: Iterable[str]) -> None:
        self._capacity = 1 << (rows - 1).bit_length()
        self._changes = {
            name: (d := self._basis[name]).u.new_zeros(self._capacity, d.s.numel()) for name in sorted(names)
        }

    def _put(self, row: int, expert: ExpertVector | None) -> None:
        for name, change in self._changes.items():
            z = expert.z.get(name) if expert is not None else None
            if z is None:
                change[row] = 0
            else:
                s = self._basis[name].s
                change[row] = s * (z.to(s) - 1)
