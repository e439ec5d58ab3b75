"""A request from arrival to end, and each of its answers as it grows token by token."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.adapters.base import Adapter
from shoal.errors import ShoalError, UsageError
from shoal.inference.engine.detokenizer import TextStream, TokenTexts
from shoal.inference.engine.records import Delta, Finish, FinishedRecord, Outcome, Request, TokenScore
from shoal.inference.grammar import Grammar, mask_logits
from shoal.inference.sampling import Scores, choose_tokens, not_finite, token_scores


class Flow(NamedTuple):
    """Requests that take turns with others': of one owner, brief or long, answered freely or with a label."""

    owner: str
    brief: bool
    labels: bool


@dataclass(eq=False)
class Job:
    """A request between its arrival and its end.

    Attributes:
        ticket: its number.
        request: what was asked.
        arrived: when, in seconds of the engine's clock.
        rows: that it takes.
        width: columns that each of its rows may come to need.
        flow: with whose other requests it takes turns.
        grammar: its compiled format.
        placed: when its prompt began to be read.
        first_token: when its first token was drawn.
        adapter: of its rows, from then on.
        open: answers that have not ended.
        tokens: generated, over all answers.
        overtaken: by so many later jobs of other flows while it had no room.
        over: True where nothing more is to be done for it.
    """

    ticket: int
    request: Request
    arrived: float
    rows: int
    width: int
    flow: Flow
    grammar: Grammar | None = None
    placed: float | None = None
    first_token: float | None = None
    adapter: Adapter | None = None
    open: int = field(init=False)
    tokens: int = 0
    overtaken: int = 0
    over: bool = False

    def __post_init__(self) -> None:
        self.open = self.request.n

    def record(self, outcome: Outcome, now: float) -> FinishedRecord:
        """Its record at its end."""
        return FinishedRecord(
            outcome,
            (now if self.placed is None else self.placed) - self.arrived,
            None if self.first_token is None else self.first_token - self.arrived,
            now - self.arrived,
            len(self.request.prompt),
            self.tokens,
        )


class Answer:
    """One of a request's answers.

    Attributes:
        job: its request.
        index: which of the n answers.
        latest: its last token, which the model has not read yet.
        latest_at: when that was drawn.
        grammar: its place in the format of its request.
        finished: True where it has ended.
    """

    def __init__(self, job: Job, index: int, text: TextStream) -> None:
        """No token yet."""
        self.job = job
        self.index = index
        self.latest = 0
        self.latest_at = 0.0
        self.grammar = job.grammar.begin() if job.grammar else None
        self.finished = False
        self._text = text
        self._count = 0
        self._scores: list[Scores] = []  # of tokens that are not released
        seed = job.request.sampling.seed
        # Seeding with text makes answers of one seed independent, on every platform and version.
        self._random = random.Random(None if seed is None else f"{seed} {index}")

    @property
    def ended(self) -> bool:
        """True where nothing more is to be done for it."""
        return self.finished or self.job.over

    def number(self) -> float:
        """The next random number, uniform in [0, 1)."""
        return self._random.random()

    def take(
        self, token: int, ends: frozenset[int], scores: Scores | None, texts: TokenTexts
    ) -> Delta | None:
        """Append a token; returns the text that can be shown now, or None where there is none.

        Args:
            token: the next one.
            ends: tokens that end an answer.
            scores: of the token, where the request asks for them.
            texts: of single tokens.
        """
        request = self.job.request
        self.latest = token
        self._count += 1
        self.job.tokens += 1
        finish: Finish | None = None
        end: TokenScore | None = None
        if request.stop_at_end and token in ends:
            finish, released = "stop", self._text.finish()
            if scores is not None and not released.stopped:
                end = with_text(scores, texts)
        else:
            if scores is not None:
                self._scores.append(scores)
            released = self._text.push(token)
            if released.stopped:
                finish = "stop"
            elif self._count >= request.max_tokens:
                rest = self._text.finish()
                finish = "stop" if rest.stopped else "length"
                released = rest._replace(text=released.text + rest.text, tokens=released.tokens + rest.tokens)
        self.finished = finish is not None
        shown = tuple(with_text(scores, texts) for scores in self._scores[: released.tokens])
        self._scores = self._scores[released.tokens :]
        if not released.text and not shown and finish is None:
            return None
        return Delta(self.index, released.text, shown, finish, self._count, end=end)


def with_text(scores: Scores, texts: TokenTexts) -> TokenScore:
    """Scores of a token with the texts of all tokens in them."""
    chosen, *top = (
        TokenScore(s.token, texts.text(s.token), texts.bytes(s.token), s.logprob)
        for s in (scores.chosen, *scores.top)
    )
    return TokenScore(chosen.token, chosen.text, chosen.bytes, chosen.logprob, tuple(top))


class Drawn(NamedTuple):
    """A token for an answer, with scores where they are asked for; or the error by which there is none."""

    token: int | None
    scores: Scores | None
    error: ShoalError | None


def draw(answers: Sequence[Answer], logits: Float[Tensor, "answers vocabulary"]) -> list[Drawn]:
    """The next token of every answer, by its request's format and sampling; scores are before both."""
    requests = [answer.job.request for answer in answers]
    numbers = [0.0 if r.sampling.greedy else a.number() for r, a in zip(requests, answers, strict=True)]
    masked, errors = mask_logits(logits, [answer.grammar for answer in answers])
    tokens = choose_tokens(masked, [request.sampling for request in requests], numbers)
    tops = {
        row: request.logprobs
        for row, (request, token) in enumerate(zip(requests, tokens, strict=True))
        if request.logprobs is not None and token is not None
    }
    found = token_scores(logits[list(tops)], [tokens[row] or 0 for row in tops], list(tops.values()))
    scores = dict(zip(tops, found, strict=True))
    return [
        Drawn(token, scores.get(row), errors.get(row) or _error(answer, token, logits.dtype))
        for row, (answer, token) in enumerate(zip(answers, tokens, strict=True))
    ]


def _error(answer: Answer, token: int | None, dtype: torch.dtype) -> ShoalError | None:
    """Let the answer's grammar go on by its token; an error where that or the token cannot be."""
    if token is None:
        return not_finite(dtype)
    try:
        if answer.grammar is not None:
            answer.grammar.take(token)
    except UsageError as error:
        return error
    return None
