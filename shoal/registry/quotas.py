"""Whose a name is, and how much an owner may keep, as a transaction sees it."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, func, select, true

from shoal.errors import ConflictError
from shoal.registry.holds import check_unheld
from shoal.registry.schema import ADAPTERS, NAMES

NAMES_PER_ADAPTER = 10  # that an owner may have used, for each adapter of the quota
_A = ADAPTERS.c


class Quota(NamedTuple):
    """What one owner may keep: versions of adapters, and bytes of their files."""

    adapters: int
    bytes: int


def holder(connection: Connection, name: str) -> str | None:
    """Whose a name is."""
    return connection.execute(select(NAMES.c.owner).where(NAMES.c.name == name)).scalar()


def check_free(
    connection: Connection,
    name: str,
    owner: str,
    quota: Quota | None,
    added: int = 0,
    job: str | None = None,
) -> None:
    """See that an owner, or one of its jobs, may have a name, and one adapter more, of so many bytes.

    Raises:
        ConflictError: the name is or was another's, or another job holds it, or the quota is used up.
    """
    known = holder(connection, name)
    if known not in (None, owner):  # whether anything is there now is its owner's matter
        raise ConflictError(f"the adapter name {name!r} is taken; choose another")
    check_unheld(connection, name, owner, job)
    if quota is None:
        return
    if (used := count_of(connection, owner)) >= quota.adapters:
        raise ConflictError(f"{owner} has {used} adapters, the limit is {quota.adapters}; delete some")
    taken = select(func.coalesce(func.sum(_A.bytes), 0)).where(_A.owner == owner)
    if (used := int(connection.execute(taken).scalar_one())) + added > quota.bytes:
        raise ConflictError(
            f"{owner}'s adapters have {used} bytes, with this one more than {quota.bytes}; delete some"
        )
    if known is None and (used := _names(connection, owner)) >= NAMES_PER_ADAPTER * quota.adapters:
        raise ConflictError(f"{owner} has used {used} names, no more are given; use one of them again")


def _names(connection: Connection, owner: str) -> int:
    mine = select(func.count()).select_from(NAMES).where(NAMES.c.owner == owner)
    return connection.execute(mine).scalar_one()


def count_of(connection: Connection, owner: str | None) -> int:
    """Versions of adapters that an owner has; of all for None."""
    of_whom = true() if owner is None else _A.owner == owner
    return connection.execute(select(func.count()).select_from(ADAPTERS).where(of_whom)).scalar_one()
