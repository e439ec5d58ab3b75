"""The server's side of a federation, round by round: updates are checked, made into one, and kept on disk.

A round is kept whole or not at all, so a killed server goes on at its round with the same bits. Knows
nothing of how updates travel.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors.torch import save_file

from shoal.errors import ShoalError
from shoal.federated.aggregation import Contributions, Method, Tensors
from shoal.federated.updates import Expected, RefusedUpdateError, Update, client_weights
from shoal.file_formats import read_json, read_tensors
from shoal.files import read_directory, write_directory

TENSORS_FILE = "state.safetensors"
STATE_FILE = "state.json"
FORMAT = 1


class QuorumError(ShoalError):
    """A round with too few sound updates; what was there before it stays."""


@dataclass(frozen=True)
class RoundRecord:
    """What happened in one round.

    Attributes:
        clients: whose updates were taken, in the order of their names.
        refused: client -> why its update was not.
        truncation_error: share of the norm of the delta weights that cutting to the rank dropped.
    """

    clients: tuple[str, ...]
    refused: Mapping[str, str]
    truncation_error: float


@dataclass(frozen=True, eq=False)
class FederationState:
    """A federation between two rounds.

    Attributes:
        tensors: those that clients start from.
        fingerprint: of what everybody trains on, as in `Update`.
        rounds: those that are over.
    """

    tensors: Tensors
    fingerprint: str
    rounds: tuple[RoundRecord, ...] = field(default=())


def finish_round(
    state: FederationState,
    updates: Iterable[Update],
    method: Method,
    *,
    clients: Collection[str],
    quorum: int,
    max_norm: float,
    equal_weights: bool = True,
) -> FederationState:
    """The state after a round; the order in which updates came does not change a bit of it.

    Args:
        state: before it.
        updates: that came before the deadline, from anybody.
        method: makes them into one; A of a LoRA stays as it is where the method freezes it.
        clients: that were asked.
        quorum: sound updates that the round needs.
        max_norm: longest step of a client, as a Euclidean length.
        equal_weights: clients count the same; else by their examples, within a cap.

    Raises:
        QuorumError: fewer sound updates; the reasons of the refused are in it.
    """
    frozen = {name for name in state.tensors if method.freezes_a and name.endswith(".a")}
    start = {name: t for name, t in state.tensors.items() if name not in frozen}
    expected = Expected(
        round=len(state.rounds) + 1,
        fingerprint=state.fingerprint,
        start=start,
        trained=tuple(start),
        clients=clients,
        max_norm=max_norm,
    )
    taken: dict[str, Update] = {}
    refused: dict[str, str] = {}
    for update in updates:
        try:
            expected.check(update, taken)
            taken[update.client] = update
        except RefusedUpdateError as error:
            refused[update.client] = str(error)
    if len(taken) < quorum:
        reasons = "".join(f"; {reason}" for reason in refused.values())
        raise QuorumError(
            f"round {expected.round} has {len(taken)} sound updates at its deadline, {quorum} are needed; "
            f"wait longer or lower the quorum{reasons}"
        )
    names = tuple(sorted(taken))
    weights = client_weights([taken[name].examples for name in names], equal=equal_weights)
    made = method.run(Contributions(start, [taken[name].tensors for name in names], weights))
    record = RoundRecord(names, refused, made.truncation_error)
    tensors = {name: made.tensors.get(name, t) for name, t in state.tensors.items()}
    return FederationState(tensors, state.fingerprint, (*state.rounds, record))


def save_state(directory: Path, state: FederationState) -> None:
    """Write a state, whole or not at all.

    Raises:
        UsageError: the directory holds other files.
        ShoalError: it cannot be written.
    """
    description = {
        "format": FORMAT,
        "fingerprint": state.fingerprint,
        "rounds": [asdict(record) for record in state.rounds],
    }

    def write(folder: Path) -> None:
        save_file({name: t.contiguous() for name, t in state.tensors.items()}, folder / TENSORS_FILE)
        (folder / STATE_FILE).write_text(json.dumps(description, indent=1) + "\n", "utf-8")

    write_directory(directory, write)


def load_state(directory: Path) -> FederationState:
    """Read a state back, bit for bit.

    Raises:
        UsageError: no such directory.
        ShoalError: a file is missing, truncated, or of another format.
    """
    return read_directory(directory, _read)


def _read(folder: Path) -> FederationState:
    description = read_json(folder / STATE_FILE, format=FORMAT)
    try:
        rounds = tuple(
            RoundRecord(tuple(row["clients"]), dict(row["refused"]), float(row["truncation_error"]))
            for row in description["rounds"]
        )
        return FederationState(read_tensors(folder / TENSORS_FILE), str(description["fingerprint"]), rounds)
    except (KeyError, TypeError, ValueError) as error:
        raise ShoalError(f"{folder} holds no federation ({error}); copy it again") from None
