"""Admission to the engine: requests are checked as they come, and those that wait are read in turn.

Every number of a request is checked before anything is allocated for it. Knows no state of the engine but its
arguments.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import replace

from shoal.adapters.base import Adapter
from shoal.adapters.decomposition import Decompositions
from shoal.adapters.kinds import check_adapter, compose_adapters
from shoal.errors import UsageError
from shoal.inference.engine.adapter_cache import AdapterCache
from shoal.inference.engine.fairness import FairShare
from shoal.inference.engine.records import Limits, Request
from shoal.inference.engine.sequences import Flow, Job
from shoal.inference.engine.validation import check_numbers
from shoal.inference.grammar import Grammar, GrammarCompiler
from shoal.inference.labels import encode_labels
from shoal.models.backbone import Backbone

LABEL_ROWS = 2  # that a request with labels waits for where the limits allow: of its prompt, and of one label


class Admission:
    """Checks requests for one engine, and chooses those that are read next."""

    def __init__(
        self, backbone: Backbone, limits: Limits, adapters: AdapterCache | None, basis: Decompositions
    ) -> None:
        """Nothing is checked yet."""
        self._backbone = backbone
        self._limits = limits
        self._adapters = adapters
        self._basis = basis
        self._grammars = GrammarCompiler(backbone)

    def check_numbers(self, request: Request) -> None:
        """Raise `UsageError` for a number of a request that is outside the limits; looks at no adapter."""
        check_numbers(request, self._backbone, self._limits)

    def check_adapter(self, request: Request) -> None:
        """Load the adapters that a request names, and see that they fit the model.

        Raises:
            UsageError: they do not fit.
            Exception: what the adapter cache raises for a name.
        """
        check_adapter(self._backbone.model, self.adapter(request), self._basis)

    def adapter(self, request: Request, *, again: bool = False) -> Adapter | None:
        """The adapter of a request's rows; `again` where it was checked before.

        Raises:
            UsageError: as `check_adapter`.
            Exception: what the adapter cache raises for a name.
        """
        asked = request.adapter
        if isinstance(asked, str):
            asked = self._named(asked, again)
        elif isinstance(asked, Mapping):
            if not 1 <= len(asked) <= self._limits.max_rank:
                raise UsageError(
                    f"a mix of {len(asked)} adapters is outside 1..{self._limits.max_rank}; name fewer"
                )
            if not all(map(math.isfinite, asked.values())):
                raise UsageError(
                    f"the weights {list(asked.values())[:8]} must be finite numbers; correct them"
                )
            parts = [self._named(name, again) for name in asked]
            self._check_rank(sum(part.rank for part in parts))
            asked = compose_adapters(parts, list(asked.values()))
        if asked is not None:
            self._check_rank(asked.rank)
        return asked

    def grammar(self, request: Request) -> Grammar | None:
        """The compiled format of a request, if it has one; errors as `GrammarCompiler.compile`."""
        return None if request.format is None else self._grammars.compile(request.format, request.owner)

    def job(self, ticket: int, request: Request, arrived: float, grammar: Grammar | None) -> Job:
        """A request with the room that it takes: rows of its answers, or of its prompt and some labels.

        Raises:
            UsageError: a label cannot be spelled, or does not fit behind the prompt.
        """
        length = len(request.prompt)
        width, rows = length + request.max_tokens, request.n
        if request.labels is not None:
            width = length + max(map(len, encode_labels(self._backbone, request.labels.labels)))
            check_numbers(replace(request, max_tokens=width - length), self._backbone, self._limits)
            rows = min(
                1 + len(request.labels.labels), self._limits.max_batch, self._limits.kv_tokens // width
            )
        brief = request.n * width <= self._limits.prefill_tokens
        flow = Flow(request.owner, brief, request.labels is not None)
        return Job(ticket, request, arrived, rows, width, flow, grammar)

    def next_group(
        self, waiting: deque[Job], share: FairShare, busy: Collection[Flow], held: int, tokens: int
    ) -> list[Job]:
        """Take from the queue those whose prompts are read together next; one with labels is alone.

        Args:
            waiting: in the order of arrival.
            share: by which flows take turns.
            busy: flows of which a prompt is being read or an answer waits for a place: others of them wait.
            held: places for keys and values that are taken.
            tokens: that a step reads; a longer prompt is read alone, over several steps.
        """
        free = self._limits.kv_tokens - held
        room = free // 2 if held else free  # what comes later and is smaller finds room too
        group: list[Job] = []
        without_room: list[Job] = []  # no long one overtakes them
        in_turn = share.by_turns([job for job in waiting if job.flow not in busy])
        for job in sorted(in_turn, key=lambda job: not share.overdue(job)):
            overdue = share.overdue(job)
            labels = job.flow.labels
            need = min(job.rows, LABEL_ROWS) * job.width if labels else len(job.request.prompt)
            if (labels and group) or (without_room and not job.flow.brief):
                continue
            if not labels:
                need = (len(group) + 1) * max(len(other.request.prompt) for other in [*group, job])
                if group and need > tokens:
                    break
            if need > (free if overdue else room):
                if overdue:
                    break
                without_room.append(job)
                continue
            group.append(job)
            if labels:
                job.rows = min(job.rows, room // job.width)
                break
        share.note_overtaking(group, without_room)
        for job in group:
            waiting.remove(job)
        return group

    def _named(self, name: str, again: bool) -> Adapter:
        if self._adapters is None:
            raise UsageError(f"adapter {name!r} cannot be found: the engine has no adapters; ask for none")
        return self._adapters.get(name, again=again)

    def _check_rank(self, rank: int) -> None:
        if rank > self._limits.max_rank:
            raise UsageError(
                f"rank {rank} is above the limit of {self._limits.max_rank}; use smaller adapters"
            )
