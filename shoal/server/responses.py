"""OpenAI's response bodies: choices, pieces of a stream, token scores and usage, from the engine's deltas.

Knows no requests and no engine; `shoal.server.completions` puts an envelope around these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from shoal.inference.engine.records import Delta, TokenScore

DONE = "data: [DONE]\n\n"


@dataclass(frozen=True)
class Echo:
    """A prompt that is shown before its answers.

    Attributes:
        text: of the prompt.
        logprobs: of its tokens, as `text_logprobs` writes them, where they are asked for.
    """

    text: str = ""
    logprobs: Mapping[str, list[Any]] | None = None


class Choice:
    """One answer as it grows, perhaps after its prompt.

    Attributes:
        index: among the answers of its request.
        tokens: generated so far.
        labels: probability of every label, where one of them is the answer.
    """

    def __init__(self, index: int, echo: Echo | None = None) -> None:
        self.index = index
        self.tokens = 0
        self.labels: Mapping[str, float] | None = None
        self._echo = echo or Echo()
        self._text: list[str] = [self._echo.text]
        self._scores: list[TokenScore] = []
        self._end: tuple[TokenScore, ...] = ()
        self._finish: str | None = None

    def add(self, delta: Delta) -> None:
        """Append the next piece."""
        self._text.append(delta.text)
        self._scores += delta.tokens
        self._end = _end(delta)
        self.tokens = delta.completion_tokens
        self.labels = delta.probabilities or self.labels
        self._finish = delta.finish_reason or self._finish

    def body(self, chat: bool) -> dict[str, Any]:
        """The choice as a chat or a completion returns it."""
        text = "".join(self._text)
        if chat:
            message = {"role": "assistant", "content": text, "refusal": None}
            return self._finished({"message": message, "logprobs": chat_logprobs(self._scores)})
        scores = [*self._scores, *self._end]
        return self._finished({"text": text, "logprobs": _joined(self._echo.logprobs, scores)})

    def _finished(self, content: dict[str, Any]) -> dict[str, Any]:
        return {"index": self.index, **content, "finish_reason": self._finish or "length"}


def first_piece(index: int, content: str | None = "") -> dict[str, Any]:
    """The choice of a chat's stream that says whose turn it is; None as content where no text comes."""
    delta = {"role": "assistant", "content": content}
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def piece(chat: bool, index: int, delta: Delta) -> dict[str, Any]:
    """The choice of one event of a stream."""
    finish = delta.finish_reason
    if chat:
        content = {"content": delta.text} if delta.text or not finish else {}
        scores = chat_logprobs(delta.tokens)
        return {"index": index, "delta": content, "logprobs": scores, "finish_reason": finish}
    return {
        "index": index,
        "text": delta.text,
        "logprobs": text_logprobs([*delta.tokens, *_end(delta)]),
        "finish_reason": finish,
    }


def _end(delta: Delta) -> tuple[TokenScore, ...]:
    """The end-of-turn token: a completion has a score for each drawn token, a chat for those of its text."""
    return () if delta.end is None else (delta.end,)


def echo_piece(index: int, echo: Echo, *, last: bool) -> dict[str, Any]:
    """The first choice of a completion's stream, which repeats its prompt; `last` if nothing follows."""
    finish = "length" if last else None
    return {"index": index, "text": echo.text, "logprobs": echo.logprobs, "finish_reason": finish}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Tokens read and generated."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def chat_logprobs(scores: Sequence[TokenScore]) -> dict[str, Any] | None:
    """`logprobs` of a chat's choice; None without scores."""
    if not scores:
        return None

    def one(score: TokenScore) -> dict[str, Any]:
        return {"token": score.text, "logprob": score.logprob, "bytes": list(score.bytes)}

    content = [{**one(score), "top_logprobs": [one(other) for other in score.top]} for score in scores]
    return {"content": content, "refusal": None}


def text_logprobs(scores: Sequence[TokenScore], begin: int = 0) -> dict[str, list[Any]] | None:
    """`logprobs` of a completion's choice, whose text begins at an offset; None without scores."""
    if not scores:
        return None
    lengths = (len(score.text) for score in scores)
    return {
        "tokens": [score.text for score in scores],
        "token_logprobs": [score.logprob for score in scores],
        # Of two tokens of one text the likelier, which is the first.
        "top_logprobs": [
            {other.text: other.logprob for other in reversed(score.top)}
            if score.logprob is not None
            else None
            for score in scores
        ],
        "text_offset": list(accumulate(lengths, initial=begin))[:-1],
    }


def _joined(echo: Mapping[str, list[Any]] | None, scores: Sequence[TokenScore]) -> Mapping[str, Any] | None:
    """`logprobs` of a prompt and of the answer after it."""
    if echo is None:
        return text_logprobs(scores)
    answer = text_logprobs(scores, echo["text_offset"][-1] + len(echo["tokens"][-1]))
    return {name: values + answer[name] for name, values in echo.items()} if answer else echo


def event(content: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
