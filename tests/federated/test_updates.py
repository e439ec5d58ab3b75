"""Updates as from strangers: what is refused, and why."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from shoal.federated.updates import Expected, RefusedUpdateError, Update, client_weights

START = {"q": torch.ones(4), "v": torch.ones(6)}
EXPECTED = Expected(
    round=3,
    fingerprint="same",
    start=START,
    trained=tuple(START),
    clients=("ann", "bob"),
    max_norm=2.0,
)
GOOD = Update("ann", 3, "same", {"q": torch.full((4,), 1.1), "v": torch.ones(6)}, 10)


def test_a_sound_update_is_accepted() -> None:
    EXPECTED.check(GOOD, seen=["bob"])


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"client": "eve"}, "'eve' is no client of this round; register its key"),
        ({"round": 2}, "ann answers round 2, this is round 3"),
        ({"fingerprint": "other"}, "ann trains on 'other', the server on same"),
        ({"examples": 0}, "ann trained on 0 examples, at least 1"),
        ({"tensors": {"q": torch.ones(4)}}, "1 tensors of ann are not those of the round, the first is 'v'"),
        ({"tensors": {**START, "w": torch.ones(1)}}, "the first is 'w'"),
        ({"tensors": {**START, "q": torch.ones(5)}}, r"q of ann is \(5,\) in torch.float32, not \(4,\)"),
        ({"tensors": {**START, "q": torch.ones(4, dtype=torch.float64)}}, "in torch.float64, not"),
        ({"tensors": {**START, "q": torch.full((4,), math.nan)}}, "holds NaN or infinity"),
        ({"tensors": {**START, "q": torch.full((4,), math.inf)}}, "holds NaN or infinity"),
        ({"tensors": {**START, "q": torch.full((4,), 9.0)}}, "is 16 long, 2 is the limit"),
    ],
)
def test_an_unsound_update_is_refused_with_the_reason(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(RefusedUpdateError, match=reason):
        EXPECTED.check(dataclasses.replace(GOOD, **changed), seen=[])


def test_the_same_update_twice_is_refused() -> None:
    with pytest.raises(RefusedUpdateError, match="ann sent 2 updates in round 3, 1 is the limit"):
        EXPECTED.check(GOOD, seen=["ann"])


def test_clients_weigh_the_same_by_default() -> None:
    assert client_weights([1, 1000]) == [0.5, 0.5]


def test_a_liar_about_examples_gains_at_most_twice_the_median() -> None:
    assert client_weights([10, 10, 10**9], equal=False) == pytest.approx([0.25, 0.25, 0.5])
