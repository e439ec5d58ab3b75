"""A gain is claimed where it is larger than its spread over the examples that were left out."""

from __future__ import annotations

import math

import pytest

from shoal.text_to_lora.gain import gain_note, gain_of


def test_the_spread_is_half_of_students_interval() -> None:
    gain = gain_of([3.0, 2.0, 4.0, 3.0], [1.0, 1.0, 1.0, 1.0])  # gains 2, 1, 3, 2
    assert gain.spread == pytest.approx(3.18 * math.sqrt(2 / 3) / 2)
    assert gain.sure and (gain.examples, gain.loss_before, gain.loss_after) == (4, 3.0, 1.0)
    many = gain_of([1.0, 2.0] * 16, [0.5] * 32)
    assert many.spread == pytest.approx(2.04 * 0.508 / math.sqrt(32), rel=0.01)


@pytest.mark.parametrize("after", [[0.0, 5.0, 2.0, 3.0], [3.5, 2.5, 4.5, 3.5]])
def test_what_the_spread_covers_and_a_loss_are_no_gain(after: list[float]) -> None:
    gain = gain_of([3.0, 2.0, 4.0, 3.0], after)
    assert not gain.sure and gain_note(gain).endswith("so no gain is claimed.")


def test_one_example_tells_nothing() -> None:
    gain = gain_of([3.0], [1.0])
    assert gain.spread is None and not gain.sure
    assert gain_note(gain) == (
        "3.00 -> 1.00 nats per token on 1 example left out, too few to tell a gain from chance."
    )
