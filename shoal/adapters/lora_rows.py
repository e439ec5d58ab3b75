"""LoRAs of single rows: a batch in which every row has its own.

LoRAs of any rank and any modules share buffers that are padded with zeros, so a row that has none, or lacks a
module, adds exactly nothing. Modules that read the same input share one product with all their factors A. Of
experts, rows with one LoRA are computed together.

Sources: Hu et al., "LoRA", arXiv 2106.09685, section 4.1; one batched product for many adapters: Chen et al.,
"Punica", arXiv 2310.18547.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoal.adapters.base import Hook
from shoal.adapters.changes import ForwardChange
from shoal.adapters.end_rows import EndRows
from shoal.adapters.lora import LoRA
from shoal.adapters.parameters import parameter_changes
from shoal.models.parameters import adaptable_parameters


class LoraRows:
    """Rows with LoRAs of their own; see `RowBatch`."""

    def __init__(self, model: nn.Module) -> None:
        """No rows yet."""
        self._model = model
        self._ends = EndRows(model)
        self._buffers = _LoraBuffers(model)
        self._count = 0
        self._parameters = {name for name, _, _ in adaptable_parameters(model)}
        self._changes: list[tuple[nn.Module, ForwardChange]] = []

    def update(self, rows: Sequence[LoRA | None], changed: Sequence[int]) -> None:
        """Write the factors of the rows that changed; all of them, where the buffers do not hold the rows."""
        self._count = len(rows)
        self._ends.update(rows)
        self._changes = list(parameter_changes(self._model, rows)) if self._parameters else []
        without = self._ends.names | self._parameters
        if not self._buffers.holds(rows, without):
            self._buffers = _LoraBuffers(self._model, rows, without)
            return
        for row in changed:
            self._buffers.put(row, rows[row])

    def hooks(self) -> Iterator[tuple[nn.Module, Hook | ForwardChange]]:
        """See `RowBatch`."""
        yield from self._buffers.hooks(self._count)
        yield from self._ends.hooks()
        yield from self._changes


class _LoraBuffers:
    """Factors of all rows, in groups of modules that may read one input.

    Attributes:
        rank: of every row's factors, padded.
        capacity: rows that there is room for.
        names: of the modules.
    """

    def __init__(
        self, model: nn.Module, rows: Sequence[LoRA | None] = (), without: Collection[str] = ()
    ) -> None:
        """Make room for rows, and write them, but for some modules."""
        loras = [row for row in rows if row is not None]
        self.rank = max((lora.rank for lora in loras), default=0)
        self.capacity = 1 << (len(rows) - 1).bit_length() if loras else 0
        self._groups: list[_Group] = []
        sizes = {
            name: (f.a.shape[-1], f.b.shape[0])
            for lora in loras
            for name, f in lora.factors.items()
            if name not in without
        }
        self.names = sizes.keys()
        together: dict[tuple[str, int], list[str]] = {}
        for name, (width, _) in sizes.items():
            together.setdefault((name.rpartition(".")[0], width), []).append(name)
        weight = next(model.parameters())
        for (_, width), names in together.items():
            a = weight.new_zeros(self.capacity, len(names) * self.rank, width)
            b = [weight.new_zeros(self.capacity, self.rank, sizes[name][1]) for name in names]
            self._groups.append(_Group(names, [model.get_submodule(name) for name in names], a, b, self.rank))
        for row in range(len(rows) if loras else 0):
            self.put(row, rows[row])

    def holds(self, rows: Sequence[LoRA | None], without: Collection[str] = ()) -> bool:
        """True where rows fit these buffers, but for some modules, and under half of the rank is padding."""
        loras = [row for row in rows if row is not None]
        rank = max((lora.rank for lora in loras), default=0)
        return not loras or (
            len(rows) <= self.capacity
            and rank <= self.rank < 2 * rank
            and all(lora.factors.keys() - without <= self.names for lora in loras)
        )

    def put(self, row: int, lora: LoRA | None) -> None:
        """Write the factors of one row, or zeros."""
        for group in self._groups if row < self.capacity else ():
            group.put(row, lora)

    def hooks(self, rows: int) -> Iterator[tuple[nn.Module, Hook]]:
        """(module, forward hook) pairs for the first rows."""
        for group in self._groups:
            yield from group.hooks(rows)


class _Group:
    """Modules that may read one input, with their factors.

    A (rows, modules * rank, in) is one tensor, so that one product serves all modules; each has its own
    B (rows, rank, out), scaling included.
    """

    def __init__(
        self, names: list[str], modules: list[nn.Module], a: Tensor, b: list[Tensor], rank: int
    ) -> None:
        self._names = names
        self._modules = modules
        self._a = a
        self._b = b
        self._rank = rank

    def put(self, row: int, lora: LoRA | None) -> None:
        for place, name in enumerate(self._names):
            a = self._a[row, place * self._rank : (place + 1) * self._rank]
            b = self._b[place][row]
            factors = lora.factors.get(name) if lora else None
            if lora is None or factors is None:
                a.zero_()
                b.zero_()
                continue
            a[: lora.rank].copy_(factors.a)
            a[lora.rank :].zero_()
            b[: lora.rank].copy_((factors.b.float() * lora.scaling).T)
            b[lora.rank :].zero_()

    def hooks(self, rows: int) -> Iterator[tuple[nn.Module, Hook]]:
        a = self._a[:rows].transpose(1, 2)
        latest: list[Tensor] = []  # the last input, and its product with all factors A

        def low(x: Tensor) -> Tensor:
            if not latest or latest[0] is not x:
                latest[:] = [x, torch.bmm(x.reshape(rows, -1, x.shape[-1]), a)]
            return latest[1]

        for place, module in enumerate(self._modules):
            part = slice(place * self._rank, (place + 1) * self._rank)
            yield module, _adding(low, self._b[place][:rows], part)


def _adding(low: Callable[[Tensor], Tensor], b: Float[Tensor, "rows rank out"], part: slice) -> Hook:
    """The forward hook that adds one module's part of the low product, times B."""

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        flat = output.reshape(b.shape[0], -1, b.shape[2])  # some families flatten (batch, sequence) first
        return torch.baddbmm(flat, low(inputs[0])[..., part], b).view_as(output)

    return add
