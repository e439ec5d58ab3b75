"""Turns of flows: whose prompts are read next, and whose answers give up their rows for others'.

A flow is an owner's requests of one kind: brief ones, long ones, and of both those that are answered with a
label. Tokens that are read and generated for a flow are its service, and the flow with the least is next. One
that comes anew starts a turn ahead of those that were served for one, so that it need not wait for them.
Nobody starves: a request without room that `PATIENCE` others overtook is first, and all wait until it fits.

Source: virtual token counters, Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, section
4. There answers keep their places to the end; here they give them up to a flow that is a turn behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from shoal.inference.engine.sequences import Flow, Job

TURN = 256  # tokens of service: a newcomer's start, and the lead from which rows are given up
PATIENCE = 16  # requests of other flows that may overtake one without room
GENERATED = 2  # service of a generated token; one of a prompt counts 1


class FairShare:
    """Service of every flow that has work here."""

    def __init__(self) -> None:
        """Nobody is here."""
        self._since: dict[Flow, int] = {}  # the level at which a flow came
        self._service: Counter[Flow] = Counter()  # since then

    def see(self, flows: Collection[Flow]) -> None:
        """Begin with the flows that are new, and forget those that are gone."""
        here = [flow for flow in flows if flow in self._since]
        level = min((self._since[f] + max(0, self._service[f] - TURN) for f in here), default=0)
        self._since = {flow: self._since.get(flow, level) for flow in flows}
        self._service = Counter({flow: self._service[flow] for flow in flows})

    def charge(self, job: Job, tokens: int) -> None:
        """Count service of a job's flow."""
        self._service[job.flow] += tokens

    def served(self, job: Job) -> int:
        """Service of a job's flow, comparable with others'."""
        return self._since[job.flow] + self._service[job.flow]

    def turn(self, job: Job) -> tuple[int, int]:
        """The key by which jobs come one after the other."""
        return self.served(job), job.ticket

    def note_overtaking(self, placed: Sequence[Job], without_room: Sequence[Job]) -> None:
        """Note which jobs found no room while others, which came later, did."""
        for job in placed:
            job.overtaken = 0
        for job in without_room:
            job.overtaken += sum(p.ticket > job.ticket and p.flow != job.flow for p in placed)

    def overdue(self, job: Job) -> bool:
        """True where others wait until the job has room."""
        return job.overtaken >= PATIENCE

    def gives_way(self, holder: Job, other: Job) -> bool:
        """True where a job gives up its rows for another."""
        return self.served(holder) - self.served(other) >= TURN

    def by_turns(self, jobs: Sequence[Job]) -> list[Job]:
        """Jobs of all flows in turn, the first of each before the second of any; the least served first."""
        nth: Counter[Flow] = Counter()
        keys = {}
        for job in jobs:
            keys[job.ticket] = (nth[job.flow], self.served(job), job.ticket)
            nth[job.flow] += 1
        return sorted(jobs, key=lambda job: keys[job.ticket])
