"""Continuous batching over one model: a step adds a token per answer and reads some of the next prompts.

Requests take turns by flow (`fairness`): their prompts are read in pieces (`reading`), then their answers
run in the batch (`batch`), or wait there for their turn. Answers do not depend on what else runs. What fails
takes with it only those whose step it was. Driven by `step`, without threads of its own; `submit` and
`cancel` may be called from any thread, all else from one.

Sources: scheduling by iterations, Yu et al., "Orca", OSDI 2022, section 3.1; prompts in pieces between
others' tokens, Agrawal et al., "Sarathi-Serve", OSDI 2024, section 4.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from shoal.adapters.decomposition import Decompositions, ModelBasis
from shoal.errors import ShoalError, reason
from shoal.inference.engine.adapter_cache import AdapterCache, CacheStatistics
from shoal.inference.engine.arrivals import CLOSED, Arrivals
from shoal.inference.engine.batch import Batch, Paused
from shoal.inference.engine.detokenizer import TextStream, TokenTexts
from shoal.inference.engine.fairness import GENERATED, FairShare
from shoal.inference.engine.label_choice import LabelChooser, LabelScoring
from shoal.inference.engine.reading import Pace, PromptGroup, Reading
from shoal.inference.engine.records import (
    Delta,
    EngineClosed,
    EngineState,
    Event,
    Limits,
    Observer,
    Outcome,
    Request,
    StepRecord,
    TokenScore,
)
from shoal.inference.engine.scheduler import Admission
from shoal.inference.engine.sequences import Answer, Job, draw, with_text
from shoal.inference.grammar import Grammar
from shoal.inference.scoring import prompt_scores
from shoal.models.backbone import Backbone

log = logging.getLogger(__name__)


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
        self._labels = LabelChooser(backbone, self._basis)
        self._arrivals = Arrivals(self.limits.max_waiting)
        self._share = FairShare()
        self._pace = Pace(self.limits.prefill_tokens)
        self._reading: list[Reading] = []
        self._batch = Batch(backbone, self._basis, self.limits)
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
        return self.queue(request, self.compile(request))

    def check_numbers(self, request: Request) -> None:
        """The first step of `submit`, which needs no adapter: see that the numbers are within the limits."""
        self._arrivals.check(request)
        self._admission.check_numbers(request)

    def check_adapter(self, request: Request) -> None:
        """The second step of `submit`, which may take time: load the adapter and see that it fits."""
        self._arrivals.check(request)
        self._admission.check_adapter(request)

    def compile(self, request: Request) -> Grammar | None:
        """The third step of `submit`, which may take time: compile the request's format."""
        return self._admission.grammar(request)

    def queue(self, request: Request, grammar: Grammar | None = None) -> int:
        """The last step of `submit`, for a request that was checked but for its labels."""
        arrived = self._clock()
        return self._arrivals.add(lambda ticket: self._admission.job(ticket, request, arrived, grammar))

    def prompt_scores(self, request: Request) -> Iterator[list[TokenScore]]:
        """Scores of a checked request's prompt, in pieces: of all its tokens; nothing predicts the first.

        The model runs in every piece but the first, on the thread that asks for it; see `EngineRunner.run`.
        """
        first, top = request.prompt[0], request.logprobs or 0
        yield [TokenScore(first, self._texts.text(first), self._texts.bytes(first), None)]
        adapter = self._admission.adapter(request, again=True)
        scored = prompt_scores(self._backbone, request.prompt, top, adapter, basis=self._basis)
        for piece in scored:
            yield [with_text(scores, self._texts) for scores in piece]

    def cancel(self, ticket: int) -> None:
        """End a request, from any thread: its rows are free before the model runs again; no event follows."""
        self._arrivals.cancel(ticket)

    @property
    def busy(self) -> bool:
        """True where a step would do anything."""
        return bool(self._arrivals or self._placed_jobs())

    def state(self) -> EngineState:
        """Counts of the work at hand; from any thread, where they may be a step old."""
        return EngineState(
            len(self._arrivals.waiting),
            len(self._batch.answers),
            sum(len(part.jobs) for part in list(self._reading)),
            self._batch.room,
            self._adapters.statistics() if self._adapters else CacheStatistics(),
            sum(len(paused.answers) for paused in list(self._batch.paused)),
        )

    def step(self) -> list[Event]:
        """Do one round: drop what was cancelled, give every answer a token, read some of the next prompts."""
        started, self._gaps = self._clock(), []
        self._drop_cancelled()
        events = self._place()
        if running := len(self._batch.answers):
            events += self._decode()
        events += self._admit()
        begun, read = self._clock(), 0
        while self._reading and (tokens := self._pace.left(read, self._clock() - begun)):
            read += self._read(self._next_reading(), tokens, events)
        events += self._place()
        if self._observe and (running or read):
            seconds = self._clock() - started
            self._observe(StepRecord(seconds, running, len(self._arrivals.waiting), read, tuple(self._gaps)))
        return events

    def close(self) -> list[Event]:
        """Fail every request with `EngineClosed`, and take no more."""
        self._arrivals.close()
        return self.fail_all(EngineClosed(CLOSED))

    def fail_all(self, error: ShoalError) -> list[Event]:
        """Fail every request that is here, and go on with those that come."""
        jobs = [*self._arrivals.take_all(), *self._placed_jobs()]
        self._reading = []
        self._batch.clear(paused=True)
        return self._fail(jobs, error)

    def _placed_jobs(self) -> list[Job]:
        """All jobs whose prompts are being read or whose answers have begun, each once."""
        reading = [job for part in list(self._reading) for job in part.jobs]
        return list(dict.fromkeys([*reading, *self._batch.waiting, *self._batch.jobs]))

    def _drop_cancelled(self) -> None:
        tickets, gone = self._arrivals.take_cancelled()
        if tickets:
            for job in [*gone, *(job for job in self._placed_jobs() if job.ticket in tickets)]:
                self._end(job, "cancelled")
            self._forget_over()

    def _forget_over(self) -> None:
        """Let go of what belongs to jobs that are over."""
        self._reading = [part for part in self._reading if not all(job.over for job in part.jobs)]
        self._batch.drop_ended()

    def _decode(self) -> list[Event]:
        """One token for every answer that runs."""
        answers = list(self._batch.answers)
        try:
            events = self._take(answers, self._batch.step())
        except Exception as error:
            log.exception("a step of %d answers failed", len(answers))
            self._batch.clear()
            own = ShoalError(f"the step of this answer failed: {reason(error)}; ask again")
            events = self._fail([answer.job for answer in answers], own)
        self._forget_over()
        return events

    def _place(self) -> list[Event]:
        """Let answers join the batch in turn."""
        jobs = [*self._batch.waiting, *self._batch.jobs]  # one that is changing places is in neither
        try:
            self._batch.place(self._share, sum(part.room for part in self._reading))
        except Exception as error:
            log.exception("placing answers failed")
            self._batch.clear(paused=True)
            own = ShoalError(f"the answer could not go on: {reason(error)}; ask again")
            return self._fail(jobs, own)
        return []

    def _admit(self) -> list[Event]:
        """Begin with the prompts of those who wait, in turn, as far as there is room."""
        events: list[Event] = []
        waiting = self._arrivals.waiting
        while True:
            reading = [job for part in self._reading for job in part.jobs]
            busy = {job.flow for job in [*reading, *self._batch.waiting]}
            held = sum(part.room for part in self._reading) + self._batch.paused_room
            with self._arrivals.lock:  # nobody may come between, of a flow that has no turn yet
                self._share.see({job.flow for job in [*waiting, *self._placed_jobs()]})
                group = self._admission.next_group(waiting, self._share, busy, held, self._pace.tokens)
            if not group:
                break
            for job in group:
                job.placed = self._clock()
                try:
                    job.adapter = self._admission.adapter(job.request, again=True)
                except Exception as error:  # the adapter is gone or broken since it was checked
                    own = error if isinstance(error, ShoalError) else ShoalError(reason(error))
                    events += self._fail([job], own)
            events += self._begin([job for job in group if not job.over])
        return events

    def _begin(self, jobs: list[Job]) -> list[Event]:
        try:
            if jobs and jobs[0].flow.labels:
                self._reading.append(self._labels.begin(jobs[0]))
            elif jobs:
                self._reading.append(PromptGroup(self._backbone, jobs, self._basis))
        except Exception as error:
            return self._fail_reading(jobs, error)
        return []

    def _next_reading(self) -> Reading:
        return min(self._reading, key=lambda part: min(map(self._share.turn, part.jobs)))

    def _read(self, part: Reading, tokens: int, events: list[Event]) -> int:
        """Do one pass over prompts, of some tokens; the tokens that it took, and at least 1."""
        started = self._clock()
        try:
            taken = part.advance(tokens)
            self._pace.note(taken, self._clock() - started)
            for job in part.jobs:
                self._share.charge(job, taken // len(part.jobs))
            if isinstance(part, LabelScoring) and part.answer is not None:
                events += self._answer(part.jobs[0], part.answer)
                self._reading.remove(part)
            elif isinstance(part, PromptGroup) and part.logits is not None:
                events += self._begin_answers(part, part.logits)
                self._reading.remove(part)
        except Exception as error:
            self._reading.remove(part)
            events += self._fail_reading(part.jobs, error)
            return tokens
        return max(1, taken)

    def _begin_answers(self, group: PromptGroup, logits: Tensor) -> list[Event]:
        """Draw the first tokens after prompts that are read; the answers wait for their places."""
        open_jobs = {row: job for row, job in enumerate(group.jobs) if not job.over}
        begun = {row: [self._begun(job, i) for i in range(job.request.n)] for row, job in open_jobs.items()}
        picks = [row for row, answers in begun.items() for _ in answers]
        events = self._take([answer for answers in begun.values() for answer in answers], logits[picks])
        for row, job in open_jobs.items():
            if running := [answer for answer in begun[row] if not answer.ended]:
                self._batch.paused.append(Paused(job, running, group.rows, [row] * len(running)))
        return events

    def _answer(self, job: Job, delta: Delta) -> list[Event]:
        """Answer a request with a label."""
        indices = range(job.request.n)
        job.first_token = self._clock()
        job.tokens = delta.completion_tokens * len(indices)
        self._end(job, "stop")
        return [Event(job.ticket, replace(delta, index=i), None, i == indices[-1]) for i in indices]

    def _begun(self, job: Job, index: int) -> Answer:
        return Answer(job, index, TextStream(self._backbone.tokenizer, job.request.stop))

    def _fail_reading(self, jobs: Sequence[Job], error: Exception) -> list[Event]:
        if isinstance(error, ShoalError):
            return self._fail(jobs, error)
        log.error("reading %d prompts failed", len(jobs), exc_info=error)
        return self._fail(jobs, ShoalError(f"reading this prompt failed: {reason(error)}; ask again"))

    def _take(self, answers: Sequence[Answer], logits: Tensor) -> list[Event]:
        """Draw a token for every answer and append it."""
        events, now = [], self._clock()
        for answer, (token, scores, error) in zip(answers, draw(answers, logits), strict=True):
            if answer.job.over:
                continue
            if token is None or error is not None:
                events += self._fail([answer.job], error or ShoalError("no token was drawn; ask again"))
                continue
            if answer.latest_at:
                self._gaps.append(now - answer.latest_at)
            answer.latest_at = now
            if answer.job.first_token is None:
                answer.job.first_token = now
            self._share.charge(answer.job, GENERATED)
            delta = answer.take(token, self._backbone.end_tokens, scores, self._texts)
            if answer.finished:
                answer.job.open -= 1
                if not answer.job.open:
                    assert delta is not None and delta.finish_reason is not None
                    self._end(answer.job, delta.finish_reason)
            if delta is not None:
                events.append(Event(answer.job.ticket, delta, None, answer.job.over))
        return events

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
