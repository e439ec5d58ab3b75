"""Rounds of a federation: the quorum, liars, the order of clients, and a server that was killed."""

from pathlib import Path

import pytest
import torch

from shoal.errors import ShoalError
from shoal.federated.aggregation import METHODS
from shoal.federated.rounds import (
    STATE_FILE,
    FederationState,
    QuorumError,
    finish_round,
    load_state,
    save_state,
)
from shoal.federated.updates import Update

CLIENTS = ("ann", "bob", "cid", "dan", "eva")
EXPERT = FederationState({"w": torch.ones(6)}, "model")
LORA = FederationState({"q.a": torch.randn(2, 5), "q.b": torch.zeros(7, 2)}, "model")
AT = {"clients": CLIENTS, "quorum": 3, "max_norm": 100.0}


def trained(state: FederationState, seed: int = 0) -> list[Update]:
    """What the clients would send: the tensors that they were sent, moved a little."""
    updates = []
    for i, client in enumerate(CLIENTS):
        generator = torch.Generator().manual_seed(100 * len(state.rounds) + 10 * seed + i)
        moved = {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in state.tensors.items()}
        updates.append(Update(client, len(state.rounds) + 1, state.fingerprint, moved, 8))
    return updates


def same(one: FederationState, other: FederationState) -> bool:
    return one.rounds == other.rounds and all(
        torch.equal(t, other.tensors[n]) for n, t in one.tensors.items()
    )


@pytest.mark.parametrize(("state", "method"), [(LORA, "exact"), (EXPERT, "z"), (EXPERT, "median")])
def test_the_order_of_clients_changes_no_bit(state: FederationState, method: str) -> None:
    updates = trained(state)
    forward = finish_round(state, updates, METHODS[method], **AT)
    assert same(forward, finish_round(state, updates[::-1], METHODS[method], **AT))


@pytest.mark.parametrize(("start", "method"), [(LORA, "exact"), (EXPERT, "z")])
def test_a_resumed_server_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, start: FederationState, method: str
) -> None:
    through = resumed = start
    for _ in range(3):
        through = finish_round(through, trained(through), METHODS[method], **AT)
        resumed = finish_round(resumed, trained(resumed), METHODS[method], **AT)
        save_state(tmp_path / "state", resumed)
        resumed = load_state(tmp_path / "state")
    assert same(through, resumed)


def test_a_liar_is_left_out_with_the_reason() -> None:
    updates = trained(EXPERT)
    updates[1] = Update("bob", 1, "model", {"w": torch.full((6,), 1e6)}, 8)
    record = finish_round(EXPERT, updates, METHODS["z"], **AT).rounds[0]
    assert record.clients == ("ann", "cid", "dan", "eva")
    assert "100 is the limit" in record.refused["bob"]


def test_fewer_clients_than_the_quorum_end_the_round() -> None:
    with pytest.raises(QuorumError, match="round 1 has 2 sound updates at its deadline, 3 are needed"):
        finish_round(EXPERT, trained(EXPERT)[:2], METHODS["z"], **AT)


def test_no_update_at_all_is_no_round() -> None:
    with pytest.raises(QuorumError, match="has 0 sound updates"):
        finish_round(EXPERT, [], METHODS["z"], **AT)


def test_a_late_update_of_the_round_before_is_refused() -> None:
    late = trained(EXPERT)[0]
    state = finish_round(EXPERT, trained(EXPERT)[1:], METHODS["z"], **AT)
    record = finish_round(state, [late, *trained(state)[1:]], METHODS["z"], **AT).rounds[1]
    assert "ann answers round 1, this is round 2" in record.refused["ann"]


def test_a_frozen_a_is_neither_read_nor_changed() -> None:
    updates = [
        Update(u.client, u.round, u.fingerprint, {"q.b": u.tensors["q.b"]}, u.examples) for u in trained(LORA)
    ]
    after = finish_round(LORA, updates, METHODS["ffa"], **AT)
    assert torch.equal(after.tensors["q.a"], LORA.tensors["q.a"])
    assert not torch.equal(after.tensors["q.b"], LORA.tensors["q.b"])


def test_one_poisoned_client_of_five_moves_the_mean_and_not_the_median() -> None:
    updates = trained(EXPERT)
    updates[0] = Update("ann", 1, "model", {"w": torch.full((6,), -30.0)}, 8)
    assert float((finish_round(EXPERT, updates, METHODS["z"], **AT).tensors["w"] - 1).abs().min()) > 5
    assert float((finish_round(EXPERT, updates, METHODS["median"], **AT).tensors["w"] - 1).abs().max()) < 0.3


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path / "state", EXPERT)
    (tmp_path / "state" / STATE_FILE).write_text('{"format": 1}')
    with pytest.raises(ShoalError, match="holds no federation"):
        load_state(tmp_path / "state")
