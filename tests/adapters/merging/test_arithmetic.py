"""The weighted sum of named adapters; the arithmetic behind it is tested with the adapters themselves."""

from __future__ import annotations

import pytest
import torch

from shoal.adapters.lora import LoRA, LoraFactors
from shoal.adapters.merging import weighted_sum
from shoal.errors import UsageError


def lora(seed: int) -> LoRA:
    generator = torch.Generator().manual_seed(seed)
    return LoRA({"q": LoraFactors(*(torch.randn(s, generator=generator) for s in ((2, 6), (5, 2))))}, 4.0)


def test_without_weights_each_has_an_equal_share() -> None:
    merged = weighted_sum([lora(0), lora(1)], ["one", "two"])
    expected = (lora(0).delta_weight("q") + lora(1).delta_weight("q")) / 2
    torch.testing.assert_close(merged.lora.delta_weight("q"), expected)
    assert merged.weights == (0.5, 0.5) and merged.lora.rank == 4
    assert merged.card.notes == ("The weighted sum: 0.5 of one, 0.5 of two.",)


def test_a_rank_above_the_sum_of_ranks_changes_nothing() -> None:
    assert weighted_sum([lora(0)], ["one"], [1.0], rank=8).lora.rank == 2
    assert weighted_sum([lora(0), lora(0)], ["one", "one"], rank=2).lora.rank == 2


def test_weights_are_one_for_each() -> None:
    with pytest.raises(UsageError, match="1 weights for 2 adapters"):
        weighted_sum([lora(0), lora(1)], ["one", "two"], [1.0])
    with pytest.raises(UsageError, match="at least 1"):
        weighted_sum([], [])
