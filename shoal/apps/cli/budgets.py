"""Budgets of time as people write them: 90s, 20m or 1.5h."""

from __future__ import annotations

import re

from shoal.errors import UsageError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def seconds_of(budget: str) -> float:
    """Seconds of a budget such as 90s, 20m or 1.5h.

    Raises:
        UsageError: it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", budget.strip())
    if match is None or float(match[1]) == 0:
        raise UsageError(f"--budget {budget}: write seconds, minutes or hours, such as 90s, 20m or 1.5h")
    return float(match[1]) * UNITS[match[2]]
