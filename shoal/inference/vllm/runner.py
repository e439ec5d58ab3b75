"""vLLM in the place of our own engine: the same requests in, the same streams out.

Prompts are encoded here, as the base model's template words them, so that an answer does not depend on which
engine gives it but for rounding. A composition or a described adapter is written as a PEFT directory first,
since vLLM reads adapters from files alone. Other kinds of adapters, such as experts (Transformer²), are
refused: vLLM knows LoRAs alone.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from shoal.adapters.lora import LoRA
from shoal.adapters.merging import compose
from shoal.errors import ShoalError, UnavailableError, UsageError, reason
from shoal.inference.engine.arrivals import CLOSED
from shoal.inference.engine.detokenizer import TokenTexts
from shoal.inference.engine.records import (
    Delta,
    EngineClosed,
    EngineFull,
    EngineState,
    Event,
    FinishedRecord,
    Limits,
    Observer,
    Outcome,
    Request,
    RequestedAdapter,
    TokenScore,
)
from shoal.inference.engine.stream import Stream
from shoal.inference.engine.validation import check_numbers
from shoal.inference.vllm.adapters import VllmAdapters
from shoal.inference.vllm.client import UnknownModel, VllmClient
from shoal.inference.vllm.request_body import is_greedy, request_body
from shoal.models.backbone import Backbone

log = logging.getLogger(__name__)

Result = TypeVar("Result")
NO_EXPERTS = "experts and routers read the model's own weights, which vLLM keeps; name or describe an adapter"
_TOKEN = "token_id:"


@dataclass
class _Asked:
    """A request on its way."""

    request: Request
    stream: Stream
    arrived: float
    accepted: float | None = None
    first_token: float | None = None
    over: threading.Event = field(default_factory=threading.Event)  # nobody reads any more
    counts: dict[int, int] = field(default_factory=dict)


class VllmRunner:
    """Asks one server, a thread for each request that is open."""

    def __init__(
        self,
        client: VllmClient,
        backbone: Backbone,
        adapters: VllmAdapters,
        *,
        limits: Limits,
        read: Callable[[str], LoRA],
        keep: Callable[[LoRA], str],
        observe: Observer,
    ) -> None:
        """Find the base model in vLLM.

        Args:
            client: of the server.
            backbone: tokenizer and shape of the base model; its weights are not used.
            adapters: those of the server.
            limits: what is taken on; `max_batch` and `max_waiting` bound the requests that are open.
            read: gives the adapter of a content.
            keep: writes an adapter that has no content yet and gives its content.
            observe: called with the record of every request that ends.

        Raises:
            UnavailableError: vLLM cannot be reached.
            UsageError: it serves another model.
        """
        self._client = client
        self._backbone = backbone
        self._adapters = adapters
        self.limits = limits
        self._read = read
        self._keep = keep
        self._observe = observe
        self._texts = TokenTexts(backbone.tokenizer)
        self._base = _base_of(client, backbone.shape.base_model)
        most = limits.max_batch + limits.max_waiting
        self._threads = ThreadPoolExecutor(most, "shoal-vllm")
        self._lock = threading.Lock()  # over the next two
        self._open: dict[int, _Asked] = {}
        self._closing = False
        self._tickets = itertools.count()

    def check_numbers(self, request: Request) -> None:
        """See that the numbers of a request are within the limits; `UsageError` if not."""
        check_numbers(request, self._backbone, self.limits)

    def submit(self, request: Request, *, numbers_checked: bool = False) -> Stream:
        """Ask, from any thread; adapters are loaded on this one.

        Args:
            request: the question.
            numbers_checked: `check_numbers` has passed the numbers of this request.

        Raises:
            UsageError: the request is outside the limits, or asks for experts.
            EngineFull: as many requests are open as may be.
            UnavailableError: vLLM cannot be reached, or did not load the adapter.
        """
        if not numbers_checked:
            self.check_numbers(request)
        with self._lock:
            self._refuse()
        content, uses = self._content(request.adapter), ExitStack()
        with ExitStack() as undone:  # of the adapter, if anything fails before a thread has it
            undone.enter_context(uses)
            model = uses.enter_context(self._adapters.using(content)) if content else self._base
            with self._lock:
                self._refuse()
                ticket = next(self._tickets)
                stream = Stream(lambda: self._cancel(ticket), self.limits.unread_events)
                asked = self._open[ticket] = _Asked(request, stream, time.monotonic())
                self._threads.submit(self._answer, ticket, asked, model, content, uses)
            undone.pop_all()
        return stream

    def prompt_scores(self, request: Request, wanted: Callable[[], bool]) -> tuple[TokenScore, ...]:
        """Refuse to score a prompt.

        Raises:
            UsageError: always.
        """
        raise UsageError("echo with logprobs is not asked of vLLM; leave one of them out")

    def run(self, function: Callable[[], Result]) -> Result:
        """Refuse a function that needs the model for itself.

        Raises:
            UsageError: always.
        """
        raise UsageError(NO_EXPERTS)

    def state(self) -> EngineState:
        """Counts of the open requests; vLLM's own `/metrics` divide them into running and waiting."""
        with self._lock:
            waiting = sum(asked.first_token is None for asked in self._open.values())
            running = len(self._open) - waiting
        return EngineState(waiting, running, 0, 0, self._adapters.statistics())

    def ready(self) -> None:
        """See that vLLM is there and still has the base model.

        Raises:
            EngineClosed: this was closed.
            UnavailableError: vLLM cannot be reached, or serves another model.
        """
        with self._lock:
            if self._closing:
                raise EngineClosed(CLOSED)
        try:
            _base_of(self._client, self._backbone.shape.base_model)
        except UsageError as error:  # no mistake of the one who asks whether we are ready
            raise UnavailableError(str(error)) from None

    def close(self) -> None:
        """End every stream with `EngineClosed`; a second time does nothing."""
        with self._lock:
            self._closing = True
            left = dict(self._open)
        for ticket, asked in left.items():
            asked.over.set()
            asked.stream.put(Event(ticket, None, EngineClosed(CLOSED), True))
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _refuse(self) -> None:
        if self._closing:
            raise EngineClosed(CLOSED)
        if len(self._open) >= self.limits.max_batch + self.limits.max_waiting:
            raise EngineFull(f"{len(self._open)} requests are open in vLLM, as many as may; try again later")

    def _cancel(self, ticket: int) -> None:
        with self._lock:
            asked = self._open.get(ticket)
        if asked is not None:
            asked.over.set()

    def _content(self, adapter: RequestedAdapter) -> str | None:
        """The content of a request's adapter, written if it has none yet."""
        if adapter is None or isinstance(adapter, str):
            return adapter
        if isinstance(adapter, Mapping):
            adapter = compose([self._read(sha256) for sha256 in adapter], list(adapter.values()))
        if not isinstance(adapter, LoRA):
            raise UsageError(
                f"vLLM takes LoRA adapters alone, not a {type(adapter).__name__}; name or describe an adapter"
            )
        if adapter.rank > self.limits.max_rank:
            raise UsageError(f"rank {adapter.rank} is above the limit of {self.limits.max_rank}; mix fewer")
        return self._keep(adapter)

    def _answer(self, ticket: int, asked: _Asked, model: str, content: str | None, uses: ExitStack) -> None:
        """In a thread: one request to its end."""
        outcome: Outcome = "failed"
        with uses:
            try:
                try:
                    outcome = self._ask(ticket, asked, model)
                except UnknownModel:
                    if content is None or asked.first_token is not None:
                        raise
                    self._adapters.forgotten(content)
                    with self._adapters.using(content) as model:
                        outcome = self._ask(ticket, asked, model)
            except Exception as error:
                if not isinstance(error, ShoalError):
                    log.exception("an answer of vLLM could not be read")
                own = error if isinstance(error, ShoalError) else ShoalError(reason(error))
                asked.stream.put(Event(ticket, None, own, True))
            finally:
                with self._lock:
                    self._open.pop(ticket, None)
                self._observe(_finished(asked, outcome, time.monotonic()))

    def _ask(self, ticket: int, asked: _Asked, model: str) -> Outcome:
        answers = range(asked.request.n)
        copies = answers if is_greedy(asked.request) else ()
        open_answers, outcome = set(answers), "stop"
        with self._client.completing(
            request_body(asked.request, model, sorted(self._backbone.end_tokens))
        ) as events:
            asked.accepted = time.monotonic()
            for event in events:
                if asked.over.is_set():
                    return "cancelled"
                for choice in event.get("choices", []):
                    delta = self._delta(asked, choice)
                    outcome = delta.finish_reason or outcome
                    for index in copies or (delta.index,):
                        if delta.finish_reason:
                            open_answers.discard(index)
                        piece = replace(delta, index=index)
                        asked.stream.put(Event(ticket, piece, None, not open_answers))
        if open_answers:
            raise UnavailableError("vLLM ended before every answer had; ask again")
        return "length" if outcome == "length" else "stop"

    def _delta(self, asked: _Asked, choice: Mapping[str, Any]) -> Delta:
        index, finish = int(choice["index"]), choice.get("finish_reason")
        if finish not in (None, "stop", "length"):
            raise UnavailableError(f"vLLM ended an answer by {finish!r}; ask again")
        ids = choice.get("token_ids") or []
        if ids and asked.first_token is None:
            asked.first_token = time.monotonic()
        asked.counts[index] = asked.counts.get(index, 0) + len(ids)
        scores = self._scores(choice.get("logprobs")) if asked.request.logprobs is not None else ()
        return Delta(index, str(choice["text"]), scores, finish, asked.counts[index])

    def _scores(self, logprobs: Mapping[str, Any] | None) -> tuple[TokenScore, ...]:
        if not logprobs:
            return ()
        tops = logprobs.get("top_logprobs") or [None] * len(logprobs["tokens"])
        scores = []
        for token, score, top in zip(logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True):
            others = tuple(self._score(name, value) for name, value in (top or {}).items())
            scores.append(self._score(token, score, others))
        return tuple(scores)

    def _score(self, token: str, logprob: float, top: tuple[TokenScore, ...] = ()) -> TokenScore:
        number = int(token.removeprefix(_TOKEN))
        return TokenScore(number, self._texts.text(number), self._texts.bytes(number), logprob, top)


def _base_of(client: VllmClient, base: str) -> str:
    """The name of the base model in vLLM."""
    models = [model for model in client.models() if not model.get("parent")]
    for model in models:
        if base in (model["id"], model.get("root")):
            return str(model["id"])
    served = ", ".join(str(model["id"]) for model in models) or "nothing"
    raise UsageError(
        f"vLLM at {client.url} serves {served}, not {base}; add --served-model-name {base} to it"
    )


def _finished(asked: _Asked, outcome: Outcome, now: float) -> FinishedRecord:
    """The record of a request; until vLLM accepted it counts as the queue."""
    first = None if asked.first_token is None else asked.first_token - asked.arrived
    waited = (now if asked.accepted is None else asked.accepted) - asked.arrived
    completed = sum(asked.counts.values())
    return FinishedRecord(outcome, waited, first, now - asked.arrived, len(asked.request.prompt), completed)
