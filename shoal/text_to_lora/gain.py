"""The gain of refining on examples that it did not learn from, and how sure it is.

Knows losses before and after; nothing of how they came about.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Of Student's t at 97.5% for 1 to 7 degrees of freedom; beyond, 1.96 + 2.8 / freedom is right to 0.03.
QUANTILES = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36)


@dataclass(frozen=True)
class Gain:
    """Losses of examples that were left out of training, nats per token.

    Attributes:
        examples: examples that were left out, each in its turn or together.
        loss_before: their mean loss under the adapter that training began with.
        loss_after: their mean loss under adapters that were not trained on them.
        spread: half of the 95% interval of the mean difference, paired over examples; None for one example.
        sure: the difference is larger than its spread.
    """

    examples: int
    loss_before: float
    loss_after: float
    spread: float | None
    sure: bool


def gain_of(before: Sequence[float], after: Sequence[float]) -> Gain:
    """The gain of some examples, at least one, by their losses before and after."""
    gains = [b - a for b, a in zip(before, after, strict=True)]
    spread = None
    if (freedom := len(gains) - 1) > 0:
        quantile = QUANTILES[freedom - 1] if freedom <= len(QUANTILES) else 1.96 + 2.8 / freedom
        spread = quantile * statistics.stdev(gains) / math.sqrt(len(gains))
    sure = spread is not None and statistics.fmean(gains) > spread
    return Gain(len(gains), statistics.fmean(before), statistics.fmean(after), spread, sure)


def gain_note(gain: Gain) -> str:
    """What can be claimed, as a sentence."""
    count = "1 example" if gain.examples == 1 else f"{gain.examples} examples"
    moved = f"{gain.loss_before:.2f} -> {gain.loss_after:.2f} nats per token on {count} left out"
    if gain.spread is None:
        return f"{moved}, too few to tell a gain from chance."
    within = "" if gain.sure else ", so no gain is claimed"
    return f"{moved}, give or take {gain.spread:.2f}{within}."
