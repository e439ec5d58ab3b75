"""A different adapter for every row of a batch whose rows come and go: any kind, or none.

Each kind serves its own rows (`RowBatch`), and leaves the others as they are. Knows modules and values,
nothing of requests, files or tokens.

Source of one batched product for many adapters: Chen et al., "Punica", arXiv 2310.18547.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from shoal.adapters.base import Adapter, RowBatch
from shoal.adapters.changes import begin
from shoal.adapters.decomposition import Decompositions
from shoal.adapters.kinds import KINDS, check_adapter, kind_of


class RowAdapters:
    """The adapters of rows, in the rows' order.

    Attributes:
        rows: the adapter of every row, or None.
    """

    def __init__(self, model: nn.Module, basis: Decompositions, rows: Sequence[Adapter | None] = ()) -> None:
        """One adapter for each row.

        Args:
            model: whose modules are adapted while `attached`.
            basis: decompositions that experts scale.
            rows: the first rows.

        Raises:
            UsageError: as `check_adapter`.
        """
        for row in rows:
            check_adapter(model, row, basis)
        self._model = model
        self._basis = basis
        self.rows: list[Adapter | None] = []
        self._batches: dict[type, RowBatch[Any]] = {}
        self.extend(rows)

    def extend(self, rows: Sequence[Adapter | None]) -> None:
        """Append rows, which have been checked."""
        begin = len(self.rows)
        self.rows += rows
        for row in rows:
            if row is not None and type(row) not in self._batches:
                self._batches[type(row)] = kind_of(row).rows(self._model, self._basis)
        self._update(range(begin, len(self.rows)))

    def drop(self, row: int) -> None:
        """Remove a row; the last one takes its place."""
        last = self.rows.pop()
        if row < len(self.rows):
            self.rows[row] = last
            self._update([row])
        else:
            self._update([])

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Let row i of a batch of as many rows as there are here have adapter i."""
        present = {type(row) for row in self.rows}
        with ExitStack() as undo:
            for value in KINDS:  # of one order, whatever the rows'
                if value in present:
                    for module, hook in self._batches[value].hooks():
                        undo.callback(begin(module, hook))
            yield

    def _update(self, changed: Sequence[int]) -> None:
        for value, batch in self._batches.items():
            batch.update([row if type(row) is value else None for row in self.rows], changed)
