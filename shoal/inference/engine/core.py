"""Continuous batching over one model: a step reads some of the next prompts and adds a token per answer.

Requests are taken in order, when a row and room for their keys and values are free. A request's answers do
not depend on what else runs. What fails takes with it only those whose step it was. Driven by `step`, without
threads of its own; `submit` and `cancel` may be called from any thread, all else from one. One class and one
module of 380 lines, since every step reads and changes the same few lists of jobs and rows, under one lock.

Source of scheduling by iterations: Yu et al., "Orca", OSDI 2022, section 3.1.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from shoal.adapters.decomposition import Decompositions, ModelBasis
from shoal.errors import ShoalError, reason
from shoal.inference.decoding import Rows
from shoal.inference.engine.adapter_cache import AdapterCache, CacheStatistics
from shoal.inference.engine.detokenizer import TextStream, TokenTexts
from shoal.inference.engine.label_choice import LabelChooser
from shoal.inference.engine.records import (
    NOT_FINITE,
    EngineClosed,
    EngineFull,
    EngineState,
    Event,
    Limits,
    Observer,
    Outcome,
    Request,
    StepRecord,
)
from shoal.inference.engine.scheduler import Admission
from shoal.inference.engine.sequences import Answer, Job
from shoal.inference.sampling import choose_tokens, token_scores
from shoal.models.backbone import Backbone

log = logging.getLogger(__name__)

CLOSED = "the engine was shut down; ask again when it is back"


class Engine:
    """Answers to many requests at once."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        limits: Limits | None = None,
        adapters: AdapterCache | None = None,
        basis: Decompositions | None = None,
        observe: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing runs yet.

        Args:
            backbone: the model; between steps others may use it.
            limits: what is taken on.
            adapters: where adapters that requests name are found.
            basis: decompositions that experts scale.
            observe: called with the record of every step and of every request that ends.
            clock: gives seconds.

        Raises:
            UsageError: the tokenizer cannot decode token by token.
        """
        self._backbone = backbone
        self.limits = limits or Limits()
        self._adapters = adapters
        self._observe = observe
        self._clock = clock
        self._texts = TokenTexts(backbone.tokenizer)
        self._basis = ModelBasis(backbone.model, basis)
        self._admission = Admission(backbone, self.limits, adapters, self._basis)
        self._labels = LabelChooser(backbone, self._basis, self.limits.prefill_tokens)
        eos = backbone.tokenizer.eos_token_id
        self._ends = frozenset({backbone.end_of_turn} | ({int(eos)} if eos is not None else set()))
        self._lock = threading.Lock()  # over what other threads touch: the next three
        self._waiting: deque[Job] = deque()
        self._cancelled: set[int] = set()
        self._closed = False
        self._tickets = itertools.count()
        self._reading: list[Job] = []  # one per row of `_prompts`
        self._prompts: Rows | None = None
        self._rows = self._no_rows()
        self._answers: list[Answer] = []  # in the order of the rows
        self._gaps: list[float] = []

    def submit(self, request: Request) -> int:
        """Check a request and queue it, from any thread; loads the adapters that it names.

        Returns:
            Its ticket, which its events carry.

        Raises:
            UsageError: it is outside the limits of the engine or the model.
            EngineFull: as many requests wait as may.
            EngineClosed: the engine was closed.
            Exception: what the adapter cache raises for an adapter's name.
        """
        self.check_numbers(request)
        self.check_adapter(request)
        return self.queue(request)

    def check_numbers(self, request: Request) -> None:
        """The first step of `submit`, which needs no adapter: see that the numbers are within the limits."""
        self._refuse()
        self._admission.check_numbers(request)

    def check_adapter(self, request: Request) -> None:
        """The second step of `submit`, which may take time: load the adapter and see that it fits."""
        self._refuse()
        self._admission.check_adapter(request)

    def queue(self, request: Request) -> int:
        """The last step of `submit`, for a request that was checked but for its labels."""
        job = self._admission.job(next(self._tickets), request, self._clock())
        with self._lock:
            self._refuse()
            self._waiting.append(job)
            return job.ticket

    def cancel(self, ticket: int) -> None:
        """End a request, from any thread: its rows are free before the model runs again; no event follows."""
        with self._lock:
            self._cancelled.add(ticket)

    @property
    def busy(self) -> bool:
        """True where a step would do anything."""
        with self._lock:
            here = self._waiting or self._reading or self._answers or self._labels.job
            return bool(here or self._cancelled)

    def state(self) -> EngineState:
        """Counts of the work at hand; from any thread, where they may be a step old."""
        return EngineState(
            len(self._waiting),
            len(self._answers),
            len(self._reading),
            self._admission.reserved([*self._reading, *self._running_jobs()]),
            self._adapters.statistics() if self._adapters else CacheStatistics(),
        )

    def step(self) -> list[Event]:
        """Do one round: drop what was cancelled, give every answer a token, read some of the next prompts."""
        started, self._gaps = self._clock(), []
        self._drop_cancelled()
        running, events = len(self._answers), []
        if self._answers:
            events += self._decode()
        events += self._admit()
        if choosing := self._labels.job:
            events += self._choose(choosing)
        read = 0
        if self._prompts is not None:
            columns = min(self._prompts.unread, max(1, self.limits.prefill_tokens // len(self._reading)))
            read = columns * len(self._reading)
            events += self._read(self._prompts, columns)
        if self._observe and (running or choosing or read):
            seconds = self._clock() - started
            self._observe(StepRecord(seconds, running, len(self._waiting), read, tuple(self._gaps)))
        return events

    def close(self) -> list[Event]:
        """Fail every request with `EngineClosed`, and take no more."""
        with self._lock:
            self._closed = True
        return self.fail_all(EngineClosed(CLOSED))

    def fail_all(self, error: ShoalError) -> list[Event]:
        """Fail every request that is here, and go on with those that come."""
        with self._lock:
            jobs = list(self._waiting)
            self._waiting.clear()
        jobs += [*self._reading, *self._running_jobs()]
        self._end_reading()
        self._labels.end()
        self._clear_rows()
        return self._fail(jobs, error)

    def _refuse(self) -> None:
        if self._closed:
            raise EngineClosed(CLOSED)
        if len(self._waiting) >= self.limits.max_waiting:
            raise EngineFull(
                f"{len(self._waiting)} requests wait, of at most {self.limits.max_waiting}; try again later"
            )

    def _running_jobs(self) -> list[Job]:
        jobs = dict.fromkeys(answer.job for answer in list(self._answers))
        return [*jobs, choosing] if (choosing := self._labels.job) else [*jobs]

    def _no_rows(self) -> Rows:
        return Rows(self._backbone, basis=self._basis)

    def _clear_rows(self) -> None:
        self._rows = self._no_rows()
        self._answers = []

    def _end_reading(self) -> None:
        self._reading = []
        self._prompts = None

    def _drop_cancelled(self) -> None:
        with self._lock:
            tickets, self._cancelled = self._cancelled, set()
            if not tickets:
                return
            gone = [job for job in self._waiting if job.ticket in tickets]
            self._waiting = deque(job for job in self._waiting if job.ticket not in tickets)
        gone += [job for job in self._reading if job.ticket in tickets]
        gone += [job for job in self._running_jobs() if job.ticket in tickets]
        for job in gone:
            self._end(job, "cancelled")
        if self._labels.job in gone:
            self._labels.end()
        if all(job.over for job in self._reading):
            self._end_reading()
        self._drop_finished()

    def _decode(self) -> list[Event]:
        """One token for every answer that runs."""
        try:
            logits = self._rows.step(torch.tensor([answer.latest for answer in self._answers]))
            events = self._take(self._answers, logits)
        except Exception as error:
            log.exception("a step of %d answers failed", len(self._answers))
            jobs = [answer.job for answer in self._answers]
            self._clear_rows()
            return self._fail(jobs, ShoalError(f"the step of this answer failed: {reason(error)}; ask again"))
        self._drop_finished()
        return events

    def _admit(self) -> list[Event]:
        """Give places to those who wait, in order; while prompts are read, others wait."""
        events: list[Event] = []
        while self._prompts is None and self._waiting:
            with self._lock:
                placed = self._admission.next_group(self._waiting, self._running_jobs())
            if not placed:
                break
            for job in placed:
                job.placed = self._clock()
                try:
                    job.adapter = self._admission.adapter(job.request, again=True)
                except Exception as error:  # the adapter is gone or broken since it was checked
                    own = error if isinstance(error, ShoalError) else ShoalError(reason(error))
                    events += self._fail([job], own)
            ready = [job for job in placed if not job.over]
            if ready and ready[0].request.labels is not None:  # alone, and others go on beside it
                self._labels.begin(ready[0])
                continue
            self._reading = ready
            if self._reading:
                events += self._begin()
        return events

    def _choose(self, job: Job) -> list[Event]:
        """Do one forward pass of a request that is answered with one of its labels."""
        try:
            delta = self._labels.advance()
        except Exception as error:
            log.exception("scoring the labels of a prompt failed")
            self._labels.end()
            own = error if isinstance(error, ShoalError) else ShoalError(reason(error))
            return self._fail([job], own)
        if delta is None:
            return []
        self._labels.end()
        indices = range(job.request.n)
        job.first_token = self._clock()
        job.tokens = delta.completion_tokens * len(indices)
        self._end(job, "stop")
        return [Event(job.ticket, replace(delta, index=i), None, i == indices[-1]) for i in indices]

    def _begin(self) -> list[Event]:
        try:
            self._prompts = Rows(
                self._backbone,
                [job.request.prompt for job in self._reading],
                [job.adapter for job in self._reading],
                basis=self._basis,
            )
        except Exception as error:
            return self._fail_reading(error)
        return []

    def _read(self, prompts: Rows, columns: int) -> list[Event]:
        """Read the next columns of prompts; after the last ones their answers begin."""
        jobs = self._reading
        try:
            logits = prompts.read(columns)
            if prompts.unread:
                return []
            places = [(row, i) for row, job in enumerate(jobs) if not job.over for i in range(job.request.n)]
            picks = [row for row, _ in places]
            begun = [self._begun(jobs[row], index) for row, index in places]
            events = self._take(begun, logits[picks])
            running = [place for place, answer in enumerate(begun) if not _ended(answer)]
            self._rows.join(prompts, [picks[place] for place in running])
            self._answers += [begun[place] for place in running]
        except Exception as error:
            return self._fail_reading(error)
        self._end_reading()
        return events

    def _begun(self, job: Job, index: int) -> Answer:
        return Answer(job, index, TextStream(self._backbone.tokenizer, job.request.stop))

    def _fail_reading(self, error: Exception) -> list[Event]:
        log.error("reading %d prompts failed", len(self._reading), exc_info=error)
        jobs = self._reading
        self._end_reading()
        if len(self._rows) != len(self._answers):  # it failed while rows joined those that run
            jobs = [*jobs, *(answer.job for answer in self._answers)]
            self._clear_rows()
        return self._fail(jobs, ShoalError(f"reading this prompt failed: {reason(error)}; ask again"))

    def _take(self, answers: Sequence[Answer], logits: Tensor) -> list[Event]:
        """Draw a token for every answer and append it."""
        rules = [answer.job.request.sampling for answer in answers]
        numbers = [answer.number() if answer.job.request.sampling.temperature else 0.0 for answer in answers]
        tokens = choose_tokens(logits, rules, numbers)
        tops = [answer.job.request.logprobs for answer in answers]
        scored = [row for row, top in enumerate(tops) if top is not None and tokens[row] is not None]
        found = token_scores(logits[scored], [tokens[r] or 0 for r in scored], [tops[r] or 0 for r in scored])
        scores = dict(zip(scored, found, strict=True))
        events, now = [], self._clock()
        for row, (answer, token) in enumerate(zip(answers, tokens, strict=True)):
            if answer.job.over:
                continue
            if token is None:
                events += self._fail([answer.job], ShoalError(NOT_FINITE))
                continue
            if answer.latest_at:
                self._gaps.append(now - answer.latest_at)
            answer.latest_at = now
            if answer.job.first_token is None:
                answer.job.first_token = now
            delta = answer.take(token, self._ends, scores.get(row), self._texts)
            if answer.finished:
                answer.job.open -= 1
                if not answer.job.open:
                    assert delta is not None and delta.finish_reason is not None
                    self._end(answer.job, delta.finish_reason)
            if delta is not None:
                events.append(Event(answer.job.ticket, delta, None, answer.job.over))
        return events

    def _drop_finished(self) -> None:
        before = len(self._answers)
        for row in reversed(range(before)):
            if _ended(self._answers[row]):
                self._rows.drop(row)
                self._answers[row] = self._answers[-1]
                self._answers.pop()
        if before and not self._answers:
            self._rows = self._no_rows()  # gives the buffers back

    def _fail(self, jobs: Sequence[Job], error: ShoalError) -> list[Event]:
        failed = [job for job in dict.fromkeys(jobs) if not job.over]
        for job in failed:
            self._end(job, "failed")
        return [Event(job.ticket, None, error, True) for job in failed]

    def _end(self, job: Job, outcome: Outcome) -> None:
        if not job.over:
            job.over = True
            if self._observe:
                self._observe(job.record(outcome, self._clock()))


def _ended(answer: Answer) -> bool:
    return answer.finished or answer.job.over
