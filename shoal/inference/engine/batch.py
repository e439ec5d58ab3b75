"""The answers that are generated together, and those that wait for a place among them with all they have.

An answer that gives up its place keeps its keys and values, and goes on from them, bit for bit.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.adapters.decomposition import Decompositions
from shoal.inference.decoding import Rows
from shoal.inference.engine.fairness import FairShare
from shoal.inference.engine.records import Limits
from shoal.inference.engine.sequences import Answer, Job
from shoal.models.backbone import Backbone


@dataclass(frozen=True, eq=False)
class Paused:
    """Answers of a job outside the batch.

    Attributes:
        job: whose they are.
        answers: in order.
        rows: that hold their keys and values.
        picks: the row of each answer, which several may share.
    """

    job: Job
    answers: Sequence[Answer]
    rows: Rows
    picks: Sequence[int]

    @property
    def room(self) -> int:
        """Places for keys and values that they take."""
        return len(set(self.picks)) * self.rows.cache.width


class Batch:
    """The answers that run.

    Attributes:
        answers: in the order of the rows.
        paused: answers that wait for a place.
    """

    def __init__(self, backbone: Backbone, basis: Decompositions, limits: Limits) -> None:
        """None run yet."""
        self._backbone = backbone
        self._basis = basis
        self._limits = limits
        self.clear(paused=True)

    @property
    def jobs(self) -> list[Job]:
        """Whose answers run, each once."""
        return list(dict.fromkeys(answer.job for answer in list(self.answers)))

    @property
    def room(self) -> int:
        """Places for keys and values that are reserved: every row may come to be as long as the longest."""
        return len(self.answers) * max((answer.job.width for answer in list(self.answers)), default=0)

    @property
    def waiting(self) -> list[Job]:
        """Whose answers wait for a place."""
        return [paused.job for paused in list(self.paused)]

    @property
    def paused_room(self) -> int:
        """Places for keys and values that waiting answers take."""
        return sum(paused.room for paused in self.paused)

    def clear(self, *, paused: bool = False) -> None:
        """Let go of all rows and their buffers, and also of what is paused."""
        self._rows = Rows(self._backbone, basis=self._basis)
        self.answers: list[Answer] = []
        if paused:
            self.paused: list[Paused] = []

    def place(self, share: FairShare, reading: int) -> None:
        """Let answers join in turn, also in the place of those that were served more.

        Args:
            share: by which jobs take turns.
            reading: places for keys and values that prompts take, which are being read.
        """
        placed: list[Job] = []
        without_room: list[Job] = []
        for paused in sorted(self.paused, key=lambda p: (not share.overdue(p.job), *share.turn(p.job))):
            leaving = self._leaving_for(paused, share, self._limits.kv_tokens - reading - self.paused_room)
            if leaving is None:
                if share.overdue(paused.job):
                    break
                without_room.append(paused.job)
                continue
            self.paused += [self._taken_out(job) for job in leaving]
            self._rows.join(paused.rows, paused.picks)
            self.answers += paused.answers
            self.paused.remove(paused)
            placed.append(paused.job)
        share.note_overtaking(placed, without_room)

    def step(self) -> Float[Tensor, "answers vocabulary"]:
        """Let the model read every answer's latest token; logits of the next."""
        return self._rows.step(torch.tensor([answer.latest for answer in self.answers]))

    def drop_ended(self) -> None:
        """Remove the answers that have ended, running or paused."""
        self.paused = [paused for paused in self.paused if not paused.job.over]
        self._drop([row for row, answer in enumerate(self.answers) if answer.ended])

    def _fits(self, paused: Paused, without: Collection[Job] = ()) -> bool:
        """See that answers have room beside those that run, but for some jobs."""
        jobs = [answer.job for answer in self.answers if answer.job not in without]
        rows = len(jobs) + len(paused.answers)
        width = max(job.width for job in [*jobs, paused.job])
        return rows <= self._limits.max_batch and rows * width <= self._limits.kv_tokens

    def _leaving_for(self, paused: Paused, share: FairShare, room: int) -> list[Job] | None:
        """Jobs that give up their rows so that others fit, those served most; None where they do not suffice.

        Args:
            paused: the others.
            share: says who gives up rows.
            room: places for keys and values of those who leave.
        """
        leaving: list[Job] = []
        for job in sorted(self.jobs, key=share.turn, reverse=True):
            if self._fits(paused, leaving):
                break
            room -= self._room_of(job)
            if room < 0 or not share.gives_way(job, paused.job):
                return None
            leaving.append(job)
        return leaving if self._fits(paused, leaving) else None

    def _room_of(self, job: Job) -> int:
        """Places for keys and values that a job's running answers have filled."""
        cache = self._rows.cache
        starts = [
            start for start, answer in zip(cache.starts, self.answers, strict=True) if answer.job is job
        ]
        return len(starts) * (cache.end - min(starts))

    def _taken_out(self, job: Job) -> Paused:
        """A job's answers, which run no longer, with their keys and values."""
        taken = [row for row, answer in enumerate(self.answers) if answer.job is job]
        rows = Rows(self._backbone, basis=self._basis)
        rows.join(self._rows, taken)
        paused = Paused(job, [self.answers[row] for row in taken], rows, range(len(taken)))
        self._drop(taken)
        return paused

    def _drop(self, rows: Sequence[int]) -> None:
        for row in reversed(rows):
            self._rows.drop(row)
            self.answers[row] = self.answers[-1]
            self.answers.pop()
        if rows and not self.answers:
            self.clear()  # gives the buffers back
