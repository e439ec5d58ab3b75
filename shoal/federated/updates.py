"""What an update of a client may hold: everything is read as from a stranger, and refused with the reason.

Knows tensors and names; nothing of networks.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.errors import UsageError, shorten
from shoal.federated.aggregation import Tensors, distance

WEIGHT_CAP = 2.0  # times the median number of examples


class RefusedUpdateError(UsageError):
    """An update that the round does without."""


@dataclass(frozen=True, eq=False)
class Update:
    """What one client sends after its part of a round.

    Attributes:
        client: its name, as the server knows it.
        round: that it answers.
        fingerprint: of what it trains on: base model, decompositions, scaling.
        tensors: as those that it was sent.
        examples: solved examples that it trained on, as it says.
    """

    client: str
    round: int
    fingerprint: str
    tensors: Mapping[str, Tensor]
    examples: int


@dataclass(frozen=True, eq=False)
class Expected:
    """What the updates of one round have to be.

    Attributes:
        round: number of the round.
        fingerprint: as in `Update`.
        start: tensors that the clients were sent.
        trained: names of those that come back.
        clients: that were asked.
        max_norm: longest step from `start`, as a Euclidean length.
    """

    round: int
    fingerprint: str
    start: Tensors
    trained: Collection[str]
    clients: Collection[str]
    max_norm: float

    def check(self, update: Update, seen: Collection[str]) -> None:
        """See that an update belongs to this round and is sound.

        Args:
            update: from anybody.
            seen: clients whose updates were accepted already.

        Raises:
            RefusedUpdateError: unknown client, another round, one update more, another base model, names or
                shapes that differ, another dtype, numbers that are not finite, or a step above the bound.
        """
        self._check_sender(update, seen)
        self._check_form(update)
        if not all(bool(t.isfinite().all()) for t in update.tensors.values()):
            raise RefusedUpdateError(
                f"the update of {update.client} holds NaN or infinity; lower its learning rate"
            )
        length = float(distance(update.tensors, self.start))
        if not length <= self.max_norm:
            raise RefusedUpdateError(
                f"the step of {update.client} is {length:.4g} long, {self.max_norm:.4g} is the limit; "
                "take fewer local steps, or raise max_norm"
            )

    def _check_sender(self, update: Update, seen: Collection[str]) -> None:
        if update.client not in self.clients:
            raise RefusedUpdateError(f"{shorten(update.client)} is no client of this round; register its key")
        if update.round != self.round:
            raise RefusedUpdateError(
                f"{update.client} answers round {update.round}, this is round {self.round}; join again"
            )
        if update.client in seen:
            raise RefusedUpdateError(f"{update.client} sent 2 updates in round {self.round}, 1 is the limit")
        if update.fingerprint != self.fingerprint:
            raise RefusedUpdateError(
                f"{update.client} trains on {shorten(update.fingerprint)}, the server on "
                f"{self.fingerprint[:12]}; use the same base model, modules, rank and decompositions"
            )
        if update.examples < 1:
            raise RefusedUpdateError(
                f"{update.client} trained on {update.examples} examples, at least 1 is needed"
            )

    def _check_form(self, update: Update) -> None:
        odd = sorted(update.tensors.keys() ^ set(self.trained))
        if odd:
            raise RefusedUpdateError(
                f"{len(odd)} tensors of {update.client} are not those of the round, the first is "
                f"{shorten(odd[0])}; choose the same modules"
            )
        for name, tensor in update.tensors.items():
            wanted = self.start[name].shape
            if tensor.shape != wanted or tensor.dtype != torch.float32:
                raise RefusedUpdateError(
                    f"{name} of {update.client} is {tuple(tensor.shape)} in {tensor.dtype}, not "
                    f"{tuple(wanted)} in torch.float32; use the same rank"
                )


def client_weights(examples: Sequence[int], *, equal: bool = True) -> list[float]:
    """Weights of clients, which sum to 1: equal, or by examples, up to `WEIGHT_CAP` times the median.

    Numbers of examples are what clients say; the cap bounds what a lie is worth.
    """
    most = WEIGHT_CAP * statistics.median(examples)
    counts = [1.0 if equal else min(float(n), most) for n in examples]
    return [n / math.fsum(counts) for n in counts]
