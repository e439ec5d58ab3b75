"""Which requests the engine takes, and which of those that wait get a place next.

Checks every number of a request before anything is allocated for it. Knows no state of the engine but what it
is told.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from shoal.backbone import Backbone
from shoal.errors import UsageError
from shoal.lora import LoRA, compose
from shoal.row_adapters import Adaptation, ModelBasis, check_adaptation
from shoal.serving.adapter_cache import AdapterCache
from shoal.serving.answers import Job
from shoal.serving.records import MAX_STOP_LENGTH, MAX_STOPS, MAX_TOP, Limits, Request


class Admission:
    """The engine's door."""

    def __init__(
        self, backbone: Backbone, limits: Limits, adapters: AdapterCache | None, basis: ModelBasis
    ) -> None:
        """Nothing is checked yet."""
        self._backbone, self._limits, self._adapters, self._basis = backbone, limits, adapters, basis
        self._positions = getattr(backbone.model.config, "max_position_embeddings", None)
        embeddings: Any = backbone.model.get_input_embeddings()
        self._vocabulary = int(embeddings.weight.shape[0])

    def check(self, request: Request) -> None:
        """See that a request can be answered; loads the adapters that it names.

        Raises:
            UsageError: a number of it is outside the limits, or its adapter does not fit the model.
            Exception: what the adapter cache raises for a name.
        """
        self._check_numbers(request)
        adaptation = self.adaptation(request)
        check_adaptation(self._backbone.model, adaptation, self._basis)

    def adaptation(self, request: Request) -> Adaptation:
        """What a request's rows are adapted by.

        Raises:
            UsageError: as `check`.
            Exception: what the adapter cache raises for a name.
        """
        asked = request.adapter
        if isinstance(asked, str):
            asked = self._named(asked)
        elif isinstance(asked, Mapping):
            if not 1 <= len(asked) <= self._limits.max_rank:
                raise UsageError(
                    f"a mix of {len(asked)} adapters is outside 1..{self._limits.max_rank}; name fewer"
                )
            if not all(map(math.isfinite, asked.values())):
                raise UsageError(
                    f"the weights {list(asked.values())[:8]} must be finite numbers; correct them"
                )
            parts = [self._named(name) for name in asked]
            self._check_rank(sum(part.rank for part in parts))
            asked = compose(parts, list(asked.values()))
        if isinstance(asked, LoRA):
            self._check_rank(asked.rank)
        return asked

    def reserved(self, jobs: Sequence[Job]) -> int:
        """Places for keys and values that jobs take together."""
        return sum(job.request.n for job in jobs) * max((job.width for job in jobs), default=0)

    def next_group(self, waiting: deque[Job], running: Sequence[Job]) -> list[Job]:
        """Take from the queue, in order, those who get a place now: their prompts are read together.

        A prompt that is longer than one step reads is read alone, over several steps.
        """
        group: list[Job] = []
        while waiting:
            job, others = waiting[0], [*running, *group]
            rows = sum(other.request.n for other in others) + job.request.n
            longest = max(len(other.request.prompt) for other in [*group, job])
            if rows > self._limits.max_batch or self.reserved([*others, job]) > self._limits.kv_tokens:
                break
            if group and (len(group) + 1) * longest > self._limits.prefill_tokens:
                break
            group.append(waiting.popleft())
        return group

    def _named(self, name: str) -> LoRA:
        if self._adapters is None:
            raise UsageError(f"adapter {name!r} cannot be found: the engine has no adapters; ask for none")
        return self._adapters.get(name)

    def _check_rank(self, rank: int) -> None:
        if rank > self._limits.max_rank:
            raise UsageError(
                f"rank {rank} is above the limit of {self._limits.max_rank}; use smaller adapters"
            )

    def _check_numbers(self, request: Request) -> None:
        limits, length = self._limits, len(request.prompt)
        most = min(limits.max_n, limits.max_batch)
        if not 1 <= request.n <= most:
            raise UsageError(f"n {request.n} is outside 1..{most}; ask for fewer answers")
        if length < 1 or request.max_tokens < 1:
            raise UsageError(
                f"a prompt of {length} tokens and max_tokens {request.max_tokens} must be 1 at least"
            )
        width = length + request.max_tokens
        if self._positions is not None and width > self._positions:
            raise UsageError(
                f"a prompt of {length} tokens and an answer of up to {request.max_tokens} exceed the "
                f"{self._positions} positions of {self._backbone.shape.base_model}; shorten one of them"
            )
        if request.n * width > limits.kv_tokens:
            raise UsageError(
                f"{request.n} answers of up to {width} tokens with the prompt exceed the engine's "
                f"{limits.kv_tokens} places for keys and values; shorten them, or raise kv_tokens"
            )
        odd = next((token for token in request.prompt if not 0 <= token < self._vocabulary), None)
        if odd is not None:
            raise UsageError(
                f"token {odd} is outside the vocabulary of {self._vocabulary}; encode the prompt"
            )
        if len(request.stop) > MAX_STOPS or not all(
            1 <= len(stop) <= MAX_STOP_LENGTH for stop in request.stop
        ):
            raise UsageError(
                f"{len(request.stop)} stop strings of {[len(stop) for stop in request.stop][:8]} characters: "
                f"at most {MAX_STOPS} are taken, of 1 to {MAX_STOP_LENGTH} characters"
            )
        if request.logprobs is not None and not 0 <= request.logprobs <= MAX_TOP:
            raise UsageError(f"logprobs {request.logprobs} is outside 0..{MAX_TOP}; choose a number in it")
