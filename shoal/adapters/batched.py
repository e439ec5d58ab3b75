"""A different adapter for every row of a batch whose rows come and go: any LoRA, an expert, or none.

LoRAs of any rank and any modules share buffers that are padded with zeros, so a row that has none, or lacks a
module, adds exactly nothing. Modules that read the same input share one product with all their factors A.
Experts scale the shared singular components, each row with its own z; z = 1 adds exactly nothing.

Knows modules and values, nothing of requests, files or tokens.

Sources: Hu et al., "LoRA", arXiv 2106.09685, section 4.1; Sun, Cetin, Tang, "Transformer-Squared", arXiv
2501.06252, section 3.1. One batched product for many adapters: Chen et al., "Punica", arXiv 2310.18547.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from shoal.adapters.lora import LoRA
from shoal.adapters.svf import Decomposition, Decompositions, ExpertVector, check_fits
from shoal.errors import UsageError
from shoal.models.modules import sized_module

Adaptation = LoRA | ExpertVector | None


def check_adaptation(model: nn.Module, adaptation: Adaptation, basis: Mapping[str, Decomposition]) -> None:
    """See that a model can be adapted so.

    Raises:
        UsageError: a module is missing or of another shape, the expert's weights are not decomposed or its z
            has another length, or it is a batch of experts.
    """
    if isinstance(adaptation, LoRA):
        for name, f in adaptation.factors.items():
            sized_module(model, name, (f.a.shape[-1], f.b.shape[0]))
    elif adaptation is not None:
        check_fits(basis, adaptation)
        if adaptation.batch is not None:
            raise UsageError(f"a batch of {adaptation.batch} experts is not one row's; choose a row of it")


class ModelBasis(Mapping[str, Decomposition]):
    """Decompositions in a model's dtype and on its device, each converted when it is first needed."""

    def __init__(self, model: nn.Module, basis: Decompositions | None) -> None:
        """`basis` may be None where no experts are used."""
        weight = next(model.parameters())
        self._device, self._dtype = weight.device, weight.dtype
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


class RowAdapters:
    """The adapters of rows, in the rows' order.

    Attributes:
        rows: what every row has.
    """

    def __init__(self, model: nn.Module, basis: ModelBasis, rows: Sequence[Adaptation] = ()) -> None:
        """One adaptation for each row.

        Args:
            model: whose modules are adapted while `attached`.
            basis: decompositions that experts scale.
            rows: the first rows.

        Raises:
            UsageError: as `check_adaptation`.
        """
        for row in rows:
            check_adaptation(model, row, basis)
        self._model, self._basis = model, basis
        self.rows: list[Adaptation] = []
        self._loras = _LoraBuffers(model)
        self._changes: dict[str, Tensor] = {}
        self.extend(rows)

    def extend(self, rows: Sequence[Adaptation]) -> None:
        """Append rows, which have been checked."""
        begin = len(self.rows)
        self.rows += rows
        if not self._loras.holds(self.rows):
            self._loras = _LoraBuffers(self._model, self.rows)
        else:
            for row, adaptation in enumerate(rows, start=begin):
                self._loras.put(row, adaptation)
        self._restack()

    def drop(self, row: int) -> None:
        """Remove a row; the last one takes its place."""
        last = self.rows.pop()
        if row < len(self.rows):
            self.rows[row] = last
            self._loras.put(row, last)
        self._restack()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Let row i of a batch of as many rows as there are here have adapter i."""
        rows = len(self.rows)
        with ExitStack() as undo:
            if any(isinstance(row, LoRA) for row in self.rows):
                for module, hook in self._loras.hooks(rows):
                    undo.callback(module.register_forward_hook(hook).remove)
            for name, change in self._changes.items():
                module = self._model.get_submodule(name)
                undo.callback(module.register_forward_hook(_expert_hook(self._basis[name], change)).remove)
            yield

    def _restack(self) -> None:
        """For every weight that an expert of a row scales, `s (z - 1)` of all rows."""
        names = {name for row in self.rows if isinstance(row, ExpertVector) for name in row.z}
        self._changes = {}
        for name in sorted(names):
            s, dtype = self._basis[name].s, self._basis[name].u.dtype
            own = [
                s * (row.z[name].to(s) - 1) if isinstance(row, ExpertVector) and name in row.z else 0 * s
                for row in self.rows
            ]
            self._changes[name] = torch.stack(own).to(dtype)


class _LoraBuffers:
    """Factors of all rows: A (rows, modules * rank, in) for modules of one input, B (rows, rank, out)."""

    def __init__(self, model: nn.Module, rows: Sequence[Adaptation] = ()) -> None:
        loras = [row for row in rows if isinstance(row, LoRA)]
        self.rank = max((lora.rank for lora in loras), default=0)
        self.capacity = 1 << (len(rows) - 1).bit_length() if loras else 0
        self.groups: list[_Group] = []
        sizes = {name: (f.a.shape[-1], f.b.shape[0]) for lora in loras for name, f in lora.factors.items()}
        together: dict[tuple[str, int], list[str]] = {}
        for name, (width, _) in sizes.items():
            together.setdefault((name.rpartition(".")[0], width), []).append(name)
        weight = next(model.parameters())
        for (_, width), names in together.items():
            a = weight.new_zeros(self.capacity, len(names) * self.rank, width)
            b = [weight.new_zeros(self.capacity, self.rank, sizes[name][1]) for name in names]
            self.groups.append(_Group(names, [model.get_submodule(name) for name in names], a, b, self.rank))
        self.names = sizes.keys()
        if loras:
            for row, adaptation in enumerate(rows):
                self.put(row, adaptation)

    def holds(self, rows: Sequence[Adaptation]) -> bool:
        """Whether rows fit these buffers, of which less than half would be padding of rank."""
        loras = [row for row in rows if isinstance(row, LoRA)]
        rank = max((lora.rank for lora in loras), default=0)
        return not loras or (
            len(rows) <= self.capacity
            and rank <= self.rank < 2 * rank
            and all(lora.factors.keys() <= self.names for lora in loras)
        )

    def put(self, row: int, adaptation: Adaptation) -> None:
        """Write one row's factors, or zeros."""
        for group in self.groups if row < self.capacity else ():
            group.put(row, adaptation if isinstance(adaptation, LoRA) else None)

    def hooks(self, rows: int):  # type: ignore[no-untyped-def]
        """(module, forward hook) pairs for the first rows."""
        for group in self.groups:
            yield from group.hooks(rows)


class _Group:
    """Modules that may read one input, and their factors."""

    def __init__(
        self, names: list[str], modules: list[nn.Module], a: Tensor, b: list[Tensor], rank: int
    ) -> None:
        self.names, self.modules, self.a, self.b, self.rank = names, modules, a, b, rank

    def put(self, row: int, lora: LoRA | None) -> None:
        for place, name in enumerate(self.names):
            a = self.a[row, place * self.rank : (place + 1) * self.rank]
            b = self.b[place][row]
            factors = lora.factors.get(name) if lora else None
            if lora is None or factors is None:
                a.zero_()
                b.zero_()
                continue
            a[: lora.rank].copy_(factors.a)
            a[lora.rank :].zero_()
            b[: lora.rank].copy_((factors.b.float() * lora.scaling).T)
            b[lora.rank :].zero_()

    def hooks(self, rows: int):  # type: ignore[no-untyped-def]
        a = self.a[:rows].transpose(1, 2)
        latest: list[Tensor] = []  # the last input, and its product with all factors A

        def low(x: Tensor) -> Tensor:
            if not latest or latest[0] is not x:
                latest[:] = [x, torch.bmm(x.reshape(rows, -1, x.shape[-1]), a)]
            return latest[1]

        for place, module in enumerate(self.modules):
            b, part = self.b[place][:rows], slice(place * self.rank, (place + 1) * self.rank)

            def add(
                module: nn.Module,
                inputs: tuple[Tensor, ...],
                output: Tensor,
                b: Tensor = b,
                part: slice = part,
            ) -> Tensor:
                flat = output.reshape(rows, -1, b.shape[2])  # some families flatten (batch, sequence) first
                return torch.baddbmm(flat, low(inputs[0])[..., part], b).view_as(output)

            yield module, add


def _expert_hook(decomposition: Decomposition, change: Tensor):  # type: ignore[no-untyped-def]
    """The forward hook that adds `U (change * (V^T x))`, with one change a row."""
    u, _, vt = decomposition

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0].reshape(len(change), -1, inputs[0].shape[-1])
        delta = torch.matmul(torch.matmul(x, vt.T) * change[:, None], u.T)
        return output + delta.view_as(output)

    return add
