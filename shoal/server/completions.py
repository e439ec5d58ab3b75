"""Chats and completions: OpenAI's requests to the engine's requests, and its streams to OpenAI's responses.

The two endpoints differ in how a prompt is encoded and how a choice looks; the rest is shared.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from shoal.adapters.card import LabelSet
from shoal.config import ServiceConfig
from shoal.errors import UsageError
from shoal.inference.engine.records import Delta, Request, TokenScore
from shoal.inference.engine.runner import Runner
from shoal.inference.engine.stream import Stream
from shoal.inference.sampling import GREEDY_BELOW, Sampling
from shoal.models.backbone import Backbone
from shoal.registry.records import AdapterRecord
from shoal.server.accepted_request import AcceptedRequest
from shoal.server.adapter_selection import AdapterSelector
from shoal.server.errors import failure_of
from shoal.server.libraries import NamedLibrary
from shoal.server.rate_limits import RateLimits
from shoal.server.responses import (
    DONE,
    Choice,
    Echo,
    echo_piece,
    event,
    first_piece,
    piece,
    text_logprobs,
    usage,
)
from shoal.server.schemas import ChatRequest, CompletionRequest
from shoal.server.tools import call_choice, call_piece
from shoal.text_to_lora.label_similarity import LabelSimilarity


class Completions:
    """Accepts chats and completions, and writes their responses."""

    def __init__(
        self,
        backbone: Backbone,
        runner: Runner,
        selector: AdapterSelector,
        limits: RateLimits,
        similarity: LabelSimilarity,
        config: ServiceConfig,
    ) -> None:
        """Join the parts that requests pass."""
        self._backbone = backbone
        self._runner = runner
        self._selector = selector
        self._limits = limits
        self._similarity = similarity
        self._config = config
        self._scoring = threading.Lock()  # held for one prompt at a time, so that they need the memory of one

    def accept(
        self, body: ChatRequest | CompletionRequest, owner: str, left: threading.Event | None = None
    ) -> AcceptedRequest:
        """Check a request, select its adapter and queue it; blocks as long as that takes.

        Args:
            body: of the request.
            owner: whose it is.
            left: set once nobody waits for it any more, so that no more of its prompts is scored.

        Raises:
            Failure: an unknown model, or tokens above the owner's limit.
            UsageError: something is outside the limits.
            UnavailableError: try later.
        """
        record = self._selector.record(body.model, owner)  # an unknown name costs no work
        max_tokens = self._max_tokens(body)
        self._check_choices(body, routed=isinstance(record, NamedLibrary) or body.adapter == "auto")
        prompts = self._prompts(body)
        requests = [_engine_request(body, prompt, max_tokens, owner) for prompt in prompts]
        for request in requests:  # before an adapter is generated, or a prompt read, to select one
            self._runner.check_numbers(request)
        prompt_tokens = sum(map(len, prompts))
        label_tokens = max(map(self._label_tokens, _label_sets(record)), default=0) if _closed(body) else 0
        self._limits.tokens(owner, prompt_tokens + len(prompts) * max(body.n * max_tokens, label_tokens))
        selected = self._selector.select(record, body.adapter, prompts[0], owner)
        if selected.greedy and body.temperature is None:
            requests = [replace(r, sampling=replace(r.sampling, temperature=0.0)) for r in requests]
        labels = selected.label_set if _closed(body) else None
        wanted = body.output_format(selected.suggested_format)
        chosen = [replace(request, adapter=selected.adapter, format=wanted) for request in requests]
        if labels is not None and isinstance(body, ChatRequest):  # which has one prompt
            (evidence,) = self._similarity.evidence(labels, [body.messages[-1].text]).tolist()
            chosen = [replace(chosen[0], labels=labels, evidence=tuple(evidence))]
        if isinstance(body, ChatRequest) or not body.echo:
            return AcceptedRequest(body, self._submit(chosen), selected, prompt_tokens)
        left = left or threading.Event()
        echoes = self._echoes(body, chosen, left)
        streams = self._submit(chosen) if max_tokens and not left.is_set() else []
        return AcceptedRequest(body, streams, selected, prompt_tokens, echoes)

    async def whole(self, accepted: AcceptedRequest) -> dict[str, Any]:
        """The whole response; leaving it early frees its places.

        Raises:
            ShoalError: the engine failed.
        """
        n = accepted.body.n
        echoes: Sequence[Echo | None] = accepted.echoes or [None] * accepted.prompts
        choices = [Choice(number * n + i, echo) for number, echo in enumerate(echoes) for i in range(n)]
        try:
            async for number, delta in _merged(accepted.streams):
                choices[number * n + delta.index].add(delta)
        finally:
            accepted.cancel()
        bodies = [choice.body(accepted.chat) for choice in choices]
        bodies = list(map(call_choice, bodies)) if accepted.calls else bodies
        used = usage(accepted.prompt_tokens, sum(choice.tokens for choice in choices))
        return accepted.envelope(bodies, streamed=False, labels=choices[0].labels) | {"usage": used}

    async def events(self, accepted: AcceptedRequest) -> AsyncIterator[str]:
        """Server-sent events; a failure on the way is the last but one, since the status is sent by then."""
        n = accepted.body.n
        choices = [Choice(index) for index in range(n * accepted.prompts)]
        unused = {"usage": None} if accepted.counts_usage else {}
        try:
            if accepted.chat:
                for index in range(n):
                    begin = first_piece(index, None if accepted.calls else "")
                    yield event(accepted.envelope([begin], streamed=True) | unused)
            for index, echo in enumerate(echo for echo in accepted.echoes for _ in range(n)):
                choice = echo_piece(index, echo, last=not accepted.streams)
                yield event(accepted.envelope([choice], streamed=True) | unused)
            async for number, delta in _merged(accepted.streams):
                index = number * n + delta.index
                choices[index].add(delta)
                if not accepted.calls:
                    choice = piece(accepted.chat, index, delta)
                elif delta.finish_reason:
                    choice = call_piece(choices[index].body(chat=True))
                else:
                    continue  # half a call is none
                body = accepted.envelope([choice], streamed=True, labels=delta.probabilities)
                yield event(body | unused)
            if accepted.counts_usage:
                used = {"usage": usage(accepted.prompt_tokens, sum(choice.tokens for choice in choices))}
                yield event(accepted.envelope([], streamed=True) | used)
        except Exception as error:
            yield event(failure_of(error, self._config.retry_seconds).body())
        finally:
            accepted.cancel()
        yield DONE

    def _max_tokens(self, body: ChatRequest | CompletionRequest) -> int:
        stated = body.max_tokens
        if isinstance(body, ChatRequest):
            stated = body.max_completion_tokens or stated
        if stated == 0 and not (isinstance(body, CompletionRequest) and body.echo):
            raise UsageError("max_tokens 0 asks for nothing without echo; raise it")
        limit = min(self._config.default_tokens, self._config.max_tokens) if stated is None else stated
        if limit > self._config.max_tokens:
            raise UsageError(f"max_tokens {limit} is above the limit of {self._config.max_tokens}; lower it")
        return limit

    def _label_tokens(self, label_set: LabelSet) -> int:
        return sum(map(len, self._backbone.encode_completions(label_set.labels)))

    def _check_choices(self, body: ChatRequest | CompletionRequest, *, routed: bool) -> None:
        prompts = 1 if isinstance(body, ChatRequest) else len(body.prompts)
        if prompts * body.n > self._config.max_choices:
            raise UsageError(
                f"{prompts} prompts with n {body.n} are {prompts * body.n} answers, the limit is "
                f"{self._config.max_choices}; ask for fewer"
            )
        if prompts > 1 and routed:
            raise UsageError(f"a router chooses for one prompt, these are {prompts}; send a request for each")

    def _prompts(self, body: ChatRequest | CompletionRequest) -> list[list[int]]:
        if isinstance(body, ChatRequest):
            return self._backbone.encode_chats([[turn.worded for turn in body.messages]], body.offered)
        encoded = [self._backbone.encode_text(p) if isinstance(p, str) else list(p) for p in body.prompts]
        vocabulary = int(self._backbone.model.config.vocab_size)
        if any(token >= vocabulary for ids in encoded for token in ids):
            raise UsageError(f"a token id is above {vocabulary - 1}, the last of the vocabulary")
        return encoded

    def _echoes(
        self, body: CompletionRequest, requests: Sequence[Request], left: threading.Event
    ) -> list[Echo]:
        """The prompts as they are repeated, with the scores of their tokens where these are asked for."""
        decode = self._backbone.tokenizer.decode
        echoes = []
        for prompt, request in zip(body.prompts, requests, strict=True):
            text = prompt if isinstance(prompt, str) else str(decode(list(request.prompt)))
            logprobs = text_logprobs(self._scores(request, left)) if request.logprobs is not None else None
            echoes.append(Echo(text, logprobs))
        return echoes

    def _scores(self, request: Request, left: threading.Event) -> Sequence[TokenScore]:
        with self._scoring:
            return self._runner.prompt_scores(request, lambda: not left.is_set())

    def _submit(self, requests: Sequence[Request]) -> list[Stream]:
        streams: list[Stream] = []
        try:
            for request in requests:
                streams.append(self._runner.submit(request, numbers_checked=True))
        except BaseException:
            for stream in streams:
                stream.cancel()
            raise
        return streams


def _label_sets(named: AdapterRecord | NamedLibrary | None) -> list[LabelSet]:
    """The label sets of the adapters that may answer."""
    if isinstance(named, NamedLibrary):
        found = [skill.facts.label_set for skill in named.library.skills.values()]
    else:
        found = [] if named is None else [named.card.label_set]
    return [label_set for label_set in found if label_set is not None]


def _closed(body: ChatRequest | CompletionRequest) -> bool:
    """A chat without sampling, token scores, stop strings or a format of its own, which a label answers."""
    return (
        isinstance(body, ChatRequest)
        and not body.logprobs
        and not body.stops
        and not body.asks_for_suggested
        and body.output_format() is None
        and (body.temperature or 0) < GREEDY_BELOW
    )


def _engine_request(
    body: ChatRequest | CompletionRequest, prompt: Sequence[int], max_tokens: int, owner: str
) -> Request:
    """The engine's request for one prompt, whose adapter is yet to be selected."""
    if isinstance(body, ChatRequest):
        if body.top_logprobs is not None and not body.logprobs:
            raise UsageError("top_logprobs needs logprobs true")
        if body.tools and body.stops:
            raise UsageError("`stop` could cut a call of a tool; leave `stop` or `tools` out")
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
    else:
        logprobs = body.logprobs
    defaults = Sampling()
    sampling = Sampling(
        temperature=defaults.temperature if body.temperature is None else body.temperature,
        top_p=defaults.top_p if body.top_p is None else body.top_p or sys.float_info.min,
        top_k=body.top_k or 0,
        seed=body.seed,
    )
    return Request(
        prompt,
        None,
        max_tokens,
        body.n,
        sampling,
        body.stops,
        logprobs,
        format=None if body.asks_for_suggested else body.output_format(),
        owner=owner,
        answered=max_tokens > 0,
    )


async def _merged(streams: Sequence[Stream]) -> AsyncIterator[tuple[int, Delta]]:
    """(number of the stream, piece), as they come."""
    if len(streams) == 1:
        async for delta in streams[0]:
            yield 0, delta
        return
    waiting = {asyncio.ensure_future(anext(stream)): number for number, stream in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                number = waiting.pop(task)
                with contextlib.suppress(StopAsyncIteration):
                    delta = task.result()
                    yield number, delta
                    waiting[asyncio.ensure_future(anext(streams[number]))] = number
    finally:
        for task in waiting:
            task.cancel()
