"""The contract of adapters: their values (`Adapter`), and the work that each kind of them does (`Kind`).

An adapter is a frozen value. How a kind attaches to a model, serves single rows of a batch and lies on disk
are the functions of its `Kind`, one row of the table in `shoal.adapters.kinds`. Knows no kind itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from shoal.adapters.decomposition import Decompositions

if TYPE_CHECKING:  # the kinds' modules import this one
    from shoal.adapters.card import AdapterCard
    from shoal.adapters.changes import ForwardChange
    from shoal.models.shapes import BackboneShape

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]


class Adapter(Protocol):
    """A change of what a model computes, as an immutable value."""

    @property
    def rank(self) -> int:
        """Rank that it takes in the buffers of a batch; 0 where its kind has none."""

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""

    def fingerprint(self) -> str:
        """SHA-256 of its content, in hex: the same for equal adapters, on any device."""


A = TypeVar("A", bound=Adapter)
In = TypeVar("In", bound=Adapter, contravariant=True)


class Attachment:
    """A change of what a model computes, until `detach`; also a context manager."""

    def __init__(self, undo: ExitStack) -> None:
        """`undo` ends what was begun."""
        self._undo = undo

    def detach(self) -> None:
        """Let the model compute what it did before, bit for bit; a second time does nothing."""
        self._undo.close()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


class RowBatch(Protocol[In]):
    """The adapters of one kind in a batch whose rows come and go; rows of other kinds it leaves alone."""

    def update(self, rows: Sequence[In | None], changed: Sequence[int]) -> None:
        """Take the rows as they are now.

        Args:
            rows: the adapter of every row of the batch; None where a row has none of this kind.
            changed: indices of rows that are new or differ from the last update.
        """

    def hooks(self) -> Iterator[tuple[nn.Module, Hook | ForwardChange]]:
        """(module, hook or change) pairs that together adapt a batch of the rows of the last update."""


def no_basis(model: nn.Module) -> Decompositions:
    """The decompositions that a kind needs which scales none."""
    return {}


@dataclass(frozen=True, eq=False)
class LoadedAdapter(Generic[A]):
    """An adapter as read from disk, before its model is.

    Attributes:
        adapter: the value.
        base_model: hub id or path of the model that it adapts; None where its files name none.
        card: its provenance; None where its files have none.
        basis_of: gives the decompositions of a model that attaching it needs, and raises UsageError where
            they are not those that it was trained on. Use `shoal.adapters.kinds.basis_for`.
    """

    adapter: A
    base_model: str | None
    card: AdapterCard | None = None
    basis_of: Callable[[nn.Module], Decompositions] = no_basis


@dataclass(frozen=True)
class Kind(Generic[A]):
    """The work that one kind of adapter does, as functions of its values.

    Attributes:
        name: in messages.
        config_file: the file that tells a directory of this kind from the others.
        check: (model, adapter, basis); raises UsageError unless the adapter fits one row of the model.
        attach: (model, adapter, basis) -> Attachment; adapts every row of every batch.
        rows: (model, basis) -> RowBatch without rows.
        save: (directory, adapter, shape, basis, card); writes it, whole or not at all.
        load: directory -> LoadedAdapter; reads it, whichever model it belongs to.
        compose: (adapters, weights) -> the adapter whose change is the weighted sum of theirs; None where the
            sum is not served.

    In all of them `basis` holds the decompositions of the model's weights that its experts scale.
    """

    name: str
    config_file: str
    check: Callable[[nn.Module, A, Decompositions], object]
    attach: Callable[[nn.Module, A, Decompositions], Attachment]
    rows: Callable[[nn.Module, Decompositions], RowBatch[A]]
    save: Callable[[Path, A, BackboneShape, Decompositions, AdapterCard], None]
    load: Callable[[Path], LoadedAdapter[A]]
    compose: Callable[[Sequence[A], Sequence[float]], A] | None = None


def nbytes_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of some tensors."""
    return sum(t.numel() * t.element_size() for t in tensors.values())


def fingerprint_of(tensors: Mapping[str, Tensor], *facts: object) -> str:
    """SHA-256 in hex of named tensors (names, dtypes, shapes, numbers) in any order, and of facts."""
    digest = hashlib.sha256(repr(facts).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
