"""Names that jobs hold: from its submission to its end, a job's name is its own.

A job holds by its row alone, so nothing is left to be released where its process is killed. Knows the rows
of jobs, and nothing of how they run.
"""

from __future__ import annotations

import time

from sqlalchemy import ColumnElement, Connection, and_, select

from shoal.errors import ConflictError
from shoal.registry.schema import JOBS

QUEUED, RUNNING = "queued", "running"
LOST_SECONDS = 60.0  # without a sign of life, after which a job's process is gone
_J = JOBS.c


def is_active() -> ColumnElement[bool]:
    """Rows of jobs that wait or run."""
    return and_(_J.state.in_((QUEUED, RUNNING)), _J.updated > time.time() - LOST_SECONDS)


def lock_of(name: str) -> str:
    """The lock under which a name is looked for and taken, by adapters and jobs; see `Database.writing`."""
    return f"name {name}"  # no owner is called so


def check_unheld(connection: Connection, name: str, owner: str, job: str | None = None) -> None:
    """See that no job makes an adapter of this name, or `job` alone, which was not cancelled meanwhile.

    Raises:
        ConflictError: another does, which is not named where it is another owner's; or `job` has ended.
    """
    if job is not None:
        state = connection.execute(select(_J.state).where(_J.id == job)).scalar()
        if state not in (QUEUED, RUNNING):
            raise ConflictError(f"job {job} is {state or 'gone'}; its adapter {name!r} is not kept")
    rows = select(_J.id, _J.owner).where(_J.adapter == name, _J.id != (job or ""), is_active())
    held = connection.execute(rows.limit(1)).first()
    if held is None:
        return
    if held.owner != owner:
        raise ConflictError(f"the adapter name {name!r} is taken; choose another")
    raise ConflictError(
        f"job {held.id} makes the adapter {name!r}; wait for it, cancel it, or choose another name"
    )
