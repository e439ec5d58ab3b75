"""Chats and completions: OpenAI's requests to the engine's, and pieces of answers to OpenAI's answers.

The two endpoints differ in how a prompt is encoded and how a choice looks; the rest is shared.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shoal.config import ServiceConfig
from shoal.errors import UsageError
from shoal.inference.engine.records import Delta, Request, TokenScore
from shoal.inference.engine.runner import Runner
from shoal.inference.engine.stream import Stream
from shoal.inference.engine.validation import check_numbers
from shoal.inference.sampling import Sampling
from shoal.models.backbone import Backbone
from shoal.server.adapter_selection import Choices, Chosen
from shoal.server.errors import failure_of
from shoal.server.rate_limits import RateLimits
from shoal.server.schemas import ChatRequest, CompletionRequest

DONE = "data: [DONE]\n\n"


@dataclass
class Taken:
    """A request that the engine has taken on.

    Attributes:
        asked: what was asked.
        streams: one per prompt.
        chosen: the adapter.
        id: of the answer.
        created: seconds since 1970.
    """

    asked: ChatRequest | CompletionRequest
    streams: list[Stream]
    chosen: Chosen
    prompt_tokens: int
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def chat(self) -> bool:
        """Whether it is a chat."""
        return isinstance(self.asked, ChatRequest)

    def cancel(self) -> None:
        """Free its places."""
        for stream in self.streams:
            stream.cancel()


class Answers:
    """Takes requests on and words their answers."""

    def __init__(
        self,
        backbone: Backbone,
        runner: Runner,
        choices: Choices,
        limits: RateLimits,
        config: ServiceConfig,
    ) -> None:
        self._backbone, self._runner, self._choices = backbone, runner, choices
        self._limits, self._config = limits, config

    def take(self, asked: ChatRequest | CompletionRequest, owner: str) -> Taken:
        """Check a request, find its adapter and queue it; blocks as long as that takes.

        Raises:
            Failure: an unknown model, or tokens above the owner's limit.
            UsageError: something is outside the limits.
            UnavailableError: try later.
        """
        if asked.model not in self._choices.base_names:
            self._choices.named(asked.model, owner)  # before any work
        config, limit = self._config, self._limit(asked)
        texts = 1 if isinstance(asked, ChatRequest) else _number_of_prompts(asked)
        if texts * asked.n > config.max_choices:
            raise UsageError(
                f"{texts} prompts with n {asked.n} are {texts * asked.n} answers, the limit is "
                f"{config.max_choices}; ask for fewer"
            )
        if texts > 1 and asked.adapter == "auto":
            raise UsageError(f"`auto` chooses for one prompt, these are {texts}; send a request for each")
        prompts = self._prompts(asked)
        requests = [_request(asked, prompt, limit) for prompt in prompts]
        for request in requests:  # before an adapter is made, or a prompt read, to choose one
            check_numbers(request, self._backbone, self._runner.limits)
        self._limits.tokens(owner, sum(map(len, prompts)) + len(prompts) * asked.n * limit)
        chosen = self._choices.chosen(asked.model, asked.adapter, prompts[0], owner)
        streams: list[Stream] = []
        try:
            for request in requests:
                streams.append(self._runner.submit(replace(request, adapter=chosen.adapter)))
        except BaseException:
            for stream in streams:
                stream.cancel()
            raise
        return Taken(asked, streams, chosen, sum(map(len, prompts)))

    async def whole(self, taken: Taken) -> dict[str, Any]:
        """The whole answer; leaving it early frees its places.

        Raises:
            ShoalError: the engine failed.
        """
        n = taken.asked.n
        choices = [_Choice(i) for i in range(n * len(taken.streams))]
        try:
            async for number, delta in _merged(taken.streams):
                choices[number * n + delta.index].add(delta)
        finally:
            taken.cancel()
        words = _chat_choice if taken.chat else _text_choice
        usage = _usage(taken.prompt_tokens, [c.tokens for c in choices])
        return self._envelope(taken, [words(c) for c in choices], streamed=False) | {"usage": usage}

    async def events(self, taken: Taken) -> AsyncIterator[str]:
        """Server-sent events; a failure on the way is the last but one, since the status is sent by then."""
        asked, n = taken.asked, taken.asked.n
        counts = [0] * (n * len(taken.streams))
        try:
            if taken.chat:
                for index in range(n):
                    yield self._event(
                        taken, [_chat_delta(index, {"role": "assistant", "content": ""}, None, None)]
                    )
            async for number, delta in _merged(taken.streams):
                index = number * n + delta.index
                counts[index] = delta.completion_tokens
                yield self._event(taken, [_piece(taken.chat, index, delta)])
            if asked.stream_options and asked.stream_options.include_usage:
                usage = {"usage": _usage(taken.prompt_tokens, counts)}
                yield _sse(self._envelope(taken, [], streamed=True) | usage)
        except Exception as error:
            yield _sse(failure_of(error, self._config.retry_seconds).body())
        finally:
            taken.cancel()
        yield DONE

    def _limit(self, asked: ChatRequest | CompletionRequest) -> int:
        stated = asked.max_tokens
        if isinstance(asked, ChatRequest):
            stated = asked.max_completion_tokens or stated
        limit = stated or min(self._config.default_tokens, self._config.max_tokens)
        if limit > self._config.max_tokens:
            raise UsageError(f"max_tokens {limit} is above the limit of {self._config.max_tokens}; lower it")
        return limit

    def _prompts(self, asked: ChatRequest | CompletionRequest) -> list[list[int]]:
        if isinstance(asked, ChatRequest):
            roles = {"developer": "system"}
            chat = [{"role": roles.get(m.role, m.role), "content": m.text} for m in asked.messages]
            return self._backbone.encode_chats([chat])
        prompt: Any = asked.prompt
        several = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
        encoded = [self._backbone.encode_text(p) if isinstance(p, str) else list(p) for p in several]
        vocabulary = int(self._backbone.model.config.vocab_size)
        if any(token >= vocabulary for ids in encoded for token in ids):
            raise UsageError(f"a token id is above {vocabulary - 1}, the last of the vocabulary")
        return encoded

    def _event(self, taken: Taken, choices: list[dict[str, Any]]) -> str:
        envelope = self._envelope(taken, choices, streamed=True)
        options = taken.asked.stream_options
        return _sse(envelope | ({"usage": None} if options and options.include_usage else {}))

    def _envelope(self, taken: Taken, choices: Sequence[dict[str, Any]], *, streamed: bool) -> dict[str, Any]:
        kind = "chat.completion" if taken.chat else "text_completion"
        envelope = {
            "id": f"{'chatcmpl' if taken.chat else 'cmpl'}-{taken.id}",
            "object": f"{kind}.chunk" if streamed and taken.chat else kind,
            "created": taken.created,
            "model": taken.asked.model,
            "choices": list(choices),
        }
        return envelope if taken.chosen.facts is None else {**envelope, "adapter": dict(taken.chosen.facts)}


class _Choice:
    """One answer as it grows."""

    def __init__(self, index: int) -> None:
        self.index, self.tokens = index, 0
        self.text: list[str] = []
        self.scores: list[TokenScore] = []
        self.finish: str | None = None

    def add(self, delta: Delta) -> None:
        self.text.append(delta.text)
        self.scores += delta.tokens
        self.tokens, self.finish = delta.completion_tokens, delta.finish_reason or self.finish


def _number_of_prompts(asked: CompletionRequest) -> int:
    prompt = asked.prompt
    return len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1


def _request(asked: ChatRequest | CompletionRequest, prompt: Sequence[int], limit: int) -> Request:
    """A prompt's request, whose adapter is yet to be chosen."""
    if isinstance(asked, ChatRequest):
        if asked.top_logprobs is not None and not asked.logprobs:
            raise UsageError("top_logprobs needs logprobs true")
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    else:
        logprobs = asked.logprobs
    defaults = Sampling()
    sampling = Sampling(
        temperature=defaults.temperature if asked.temperature is None else asked.temperature,
        top_p=defaults.top_p if asked.top_p is None else asked.top_p,
        top_k=asked.top_k or 0,
        seed=asked.seed,
    )
    return Request(prompt, None, limit, asked.n, sampling, asked.stops, logprobs)


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


def _usage(prompt_tokens: int, counts: Sequence[int]) -> dict[str, int]:
    made = sum(counts)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": made, "total_tokens": prompt_tokens + made}


def _piece(chat: bool, index: int, delta: Delta) -> dict[str, Any]:
    if chat:
        content = {"content": delta.text} if delta.text or not delta.finish_reason else {}
        return _chat_delta(index, content, delta.tokens or None, delta.finish_reason)
    scores = _text_scores(delta.tokens) if delta.tokens else None
    return {"index": index, "text": delta.text, "logprobs": scores, "finish_reason": delta.finish_reason}


def _chat_delta(
    index: int, delta: dict[str, str], scores: Sequence[TokenScore] | None, finish: str | None
) -> dict[str, Any]:
    logprobs = {"content": _chat_scores(scores), "refusal": None} if scores else None
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _chat_choice(choice: _Choice) -> dict[str, Any]:
    message = {"role": "assistant", "content": "".join(choice.text), "refusal": None}
    logprobs = {"content": _chat_scores(choice.scores), "refusal": None} if choice.scores else None
    return {"index": choice.index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish}


def _text_choice(choice: _Choice) -> dict[str, Any]:
    logprobs = _text_scores(choice.scores) if choice.scores else None
    text = "".join(choice.text)
    return {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": choice.finish}


def _chat_scores(scores: Sequence[TokenScore]) -> list[dict[str, Any]]:
    def one(score: TokenScore) -> dict[str, Any]:
        return {"token": score.text, "logprob": score.logprob, "bytes": list(score.bytes)}

    return [{**one(score), "top_logprobs": [one(other) for other in score.top]} for score in scores]


def _text_scores(scores: Sequence[TokenScore]) -> dict[str, Any]:
    lengths = [len(score.text) for score in scores]
    return {
        "tokens": [score.text for score in scores],
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [{other.text: other.logprob for other in score.top} for score in scores],
        "text_offset": [sum(lengths[:i]) for i in range(len(lengths))],
    }


def _sse(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
