"""Counts of requests and tokens that several services keep together, in the database that they share.

A sliding window of a minute: the count of this clock minute, and of the one before it the part that is not
yet a minute old, as if it had come evenly. Clocks of the machines must agree to a second or so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite

from shoal.registry.database import Database
from shoal.registry.schema import RATES

_R = RATES.c
MINUTE = 60


class SharedRates:
    """The counts of a database."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def hit(self, what: str, owner: str, cost: int, limit: int) -> int | None:
        """Count something, unless that would go above the limit.

        Args:
            what: `requests` or `tokens`.
            owner: whose.
            cost: how many.
            limit: a minute.

        Returns:
            None where it was counted, else whole seconds after which to ask again.

        Raises:
            UnavailableError: the database cannot be reached.
        """
        now = self._clock()
        minute, into = int(now // MINUTE), now % MINUTE
        try:
            with self._database.counting() as connection:
                dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
                first = dialect.insert(RATES).values(what=what, owner=owner, minute=minute, count=cost)
                added = first.on_conflict_do_update(
                    index_elements=["what", "owner", "minute"], set_={"count": _R.count + cost}
                )
                count = connection.execute(added.returning(_R.count)).scalar_one()
                mine = (_R.what == what, _R.owner == owner)
                before = select(_R.count).where(*mine, _R.minute == minute - 1)
                previous = connection.execute(before).scalar() or 0
                if previous * (1 - into / MINUTE) + count > limit:
                    raise _AboveLimit  # nothing is counted
                if count == cost:  # the first of its minute
                    connection.execute(delete(RATES).where(*mine, _R.minute < minute - 1))
        except _AboveLimit:
            return max(1, math.ceil(MINUTE - into))
        return None


class _AboveLimit(Exception):
    """Rolls the count back."""
