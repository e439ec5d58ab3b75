"""Requests that wait for their turn, and cancelled ones: what other threads than the engine's touch."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable

from shoal.inference.engine.records import EngineClosed, EngineFull, Request
from shoal.inference.engine.sequences import Job

CLOSED = "the engine was shut down; ask again when it is back"


class Arrivals:
    """The way into the engine, for any number of threads.

    Attributes:
        lock: over all others.
        waiting: requests in the order of arrival.
    """

    def __init__(self, max_waiting: int) -> None:
        """Nobody waits."""
        self.lock = threading.Lock()
        self.waiting: deque[Job] = deque()
        self._max_waiting = max_waiting
        self._cancelled: set[int] = set()
        self._closed = False
        self._tickets = itertools.count()

    def __bool__(self) -> bool:
        with self.lock:
            return bool(self.waiting or self._cancelled)

    def check(self, request: Request) -> None:
        """See that a request may wait: an owner has at most as many places as are left for all.

        Raises:
            EngineClosed: the engine was closed.
            EngineFull: as many wait as may.
        """
        if self._closed:
            raise EngineClosed(CLOSED)
        waiting = list(self.waiting)
        left, own = self._max_waiting - len(waiting), sum(j.request.owner == request.owner for j in waiting)
        if not left or own > left:
            raise EngineFull(
                f"{len(waiting)} requests wait, of at most {self._max_waiting}, and {own} of them are yours; "
                "try again later"
            )

    def add(self, job_of: Callable[[int], Job]) -> int:
        """Let the job wait that a function makes of its ticket; the ticket. Errors as `check`."""
        job = job_of(next(self._tickets))
        with self.lock:
            self.check(job.request)
            self.waiting.append(job)
            return job.ticket

    def cancel(self, ticket: int) -> None:
        """Remember that nobody wants the answers any more."""
        with self.lock:
            self._cancelled.add(ticket)

    def take_cancelled(self) -> tuple[set[int], list[Job]]:
        """Tickets that were cancelled, and those of the jobs that waited, which do so no longer."""
        with self.lock:
            tickets, self._cancelled = self._cancelled, set()
            gone = [job for job in self.waiting if job.ticket in tickets]
            if gone:
                self.waiting = deque(job for job in self.waiting if job.ticket not in tickets)
        return tickets, gone

    def take_all(self) -> list[Job]:
        """Everyone who waits; nobody does so any longer."""
        with self.lock:
            jobs = list(self.waiting)
            self.waiting.clear()
        return jobs

    def close(self) -> None:
        """Take no more."""
        with self.lock:
            self._closed = True
