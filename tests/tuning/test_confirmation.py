"""Confirmation: gains by chance alone are not recommended, and what it says is not what chance lent."""

from __future__ import annotations

import random
from statistics import fmean

import pytest

from shoal.tuning.confirmation import Confirmed, compared, recommended, student

STUDIES, TRIALS, SEEDS = 200, 24, 3


def simulated(chance: random.Random, noise: float, gain: float = 0.0) -> list[Confirmed]:
    """The two best of trials by a noisy loss, beside the defaults on fresh seeds; the true gain is `gain`."""
    searched = sorted((1 - gain + chance.gauss(0, noise), number) for number in range(TRIALS))[:2]
    luck = [chance.gauss(0, noise) for _ in range(SEEDS)]  # of a division, which all share
    base = [1 + own + chance.gauss(0, noise) for own in luck]
    found = []
    for value, number in searched:
        losses = [1 - gain + own + chance.gauss(0, noise) for own in luck]
        found.append(compared(number, {"trial": number}, value, losses, base))
    return sorted(found, key=lambda c: c.loss)


def test_settings_that_differ_by_noise_alone_are_not_recommended() -> None:
    chance = random.Random(0)
    studies = [simulated(chance, noise=0.1) for _ in range(STUDIES)]
    alarms = sum(recommended(study) is not None for study in studies)
    print(f"false alarms: {alarms} of {STUDIES}")
    assert alarms <= 0.05 * STUDIES


def test_the_confirmed_gain_is_unbiased_and_the_best_value_is_not() -> None:
    chance = random.Random(1)
    studies = [simulated(chance, noise=0.02, gain=0.1) for _ in range(STUDIES)]
    confirmed = fmean(c.gain.mean for study in studies for c in study)
    promised = fmean(1 - c.selection_loss for study in studies for c in study)
    print(f"true gain 0.1, confirmed {confirmed:.4f}, promised by the best value {promised:.4f}")
    assert confirmed == pytest.approx(0.1, abs=0.005)
    assert promised > 0.13
    assert fmean(c.optimism for study in studies for c in study) > 0.03


def test_a_clear_gain_is_recommended() -> None:
    chance = random.Random(2)
    studies = [simulated(chance, noise=0.02, gain=0.3) for _ in range(STUDIES)]
    assert sum(recommended(study) is not None for study in studies) > 0.95 * STUDIES


def test_the_interval_is_students() -> None:
    interval = student([1.0, 2.0, 3.0])
    assert interval.mean == 2.0 and interval.n == 3
    assert interval.low == pytest.approx(-1.5826, abs=1e-3) and interval.high == pytest.approx(
        5.5826, abs=1e-3
    )
