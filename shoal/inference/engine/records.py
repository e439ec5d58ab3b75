"""Records into the engine and out of it: requests, limits, pieces of answers, and the operators' figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from shoal.adapters.base import Adapter
from shoal.adapters.card import LabelSet
from shoal.adapters.output_format import OutputFormat
from shoal.errors import ShoalError, UnavailableError, UsageError
from shoal.inference.engine.adapter_cache import CacheStatistics
from shoal.inference.sampling import Sampling

Finish = Literal["stop", "length"]
Outcome = Literal["stop", "length", "cancelled", "failed"]
MAX_STOPS, MAX_STOP_LENGTH, MAX_TOP = 64, 256, 20

# A name of the adapter cache; names with the weights of a mix; an adapter itself; or None for the bare model.
RequestedAdapter = str | Mapping[str, float] | Adapter | None


class EngineFull(UnavailableError):
    """As many requests wait as may: try again later."""


class EngineClosed(UnavailableError):
    """The engine was shut down."""


@dataclass(frozen=True)
class Request:
    """One question, and how it is to be answered.

    Attributes:
        prompt: token ids.
        adapter: a name of the engine's adapter cache; names with the weights of their sum; an adapter of any
            kind; or None for the bare model.
        max_tokens: limit of an answer, in tokens.
        n: answers to the same prompt.
        sampling: how tokens are drawn. With a seed, answer i is the same in any batch.
        stop: up to 64 strings; an answer ends before the first of them.
        logprobs: None, or for every token its score and those of so many of the likeliest tokens, 0 to 20.
        stop_at_end: False goes on past the end-of-turn token.
        labels: answers are the likeliest of these, whole, however tokens are drawn else; vLLM, which cannot
            score them, answers freely.
        evidence: for each of them from elsewhere, in nats, which is added to its log-likelihood.
        format: that answers match, however tokens are drawn; not with labels. One that reaches `max_tokens`
            is only the beginning of an answer that does.
        owner: whose it is: places are shared among owners.
        answered: False for a prompt that is repeated or scored only, with `max_tokens` 0; never submitted.
    """

    prompt: Sequence[int]
    adapter: RequestedAdapter = None
    max_tokens: int = 256
    n: int = 1
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    stop_at_end: bool = True
    labels: LabelSet | None = None
    evidence: tuple[float, ...] | None = None
    format: OutputFormat | None = None
    owner: str = ""
    answered: bool = True


@dataclass(frozen=True)
class Limits:
    """Limits of the work that the engine takes on.

    Attributes:
        max_batch: answers that are generated together; so many labels of one request are scored together.
        max_waiting: requests that may wait for their turn. An owner has at most as many as are left for all.
        kv_tokens: places for keys and values: answers that run together times the longest of their prompts
            with limit. As many again are for prompts that are read, labels that are scored, and answers that
            wait for their turn. Buffers may be up to twice as large, since they grow in steps.
        prefill_tokens: of prompts that are read in one step at most, fewer where that would take long;
            between steps running answers go on.
        max_n: answers of one request.
        max_rank: of a request's adapter, after composition.
        unread_events: pieces of an answer that may wait for a reader; one more, and the request is cancelled.
    """

    max_batch: int = 16
    max_waiting: int = 128
    kv_tokens: int = 32768
    prefill_tokens: int = 512
    max_n: int = 16
    max_rank: int = 256
    unread_events: int = 512

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise UsageError(f"{name} {value} is below 1; raise it")


@dataclass(frozen=True)
class TokenScore:
    """A token of an answer under the model's own distribution, before temperature, top-p and top-k.

    Attributes:
        token: its id.
        text: of it alone, in which half a character is U+FFFD.
        bytes: that it stands for.
        logprob: natural logarithm of its probability; None for the first of a prompt, which nothing predicts.
        top: the likeliest tokens in its place, without alternatives of their own.
    """

    token: int
    text: str
    bytes: tuple[int, ...]
    logprob: float | None
    top: tuple[TokenScore, ...] = ()


@dataclass(frozen=True)
class Delta:
    """The next piece of an answer.

    Attributes:
        index: of the answer, 0 to n - 1.
        text: which no later piece changes.
        tokens: scores of the tokens that it completes, where the request asks for them.
        finish_reason: of the last piece: `stop` for a stop string or the end of turn, else `length`.
        completion_tokens: generated for this answer until now, with the end-of-turn token.
        probabilities: of every label, where the request has labels.
        end: score of the end-of-turn token, where the request asks for scores; its text is not the answer's.
    """

    index: int
    text: str
    tokens: tuple[TokenScore, ...] = ()
    finish_reason: Finish | None = None
    completion_tokens: int = 0
    probabilities: Mapping[str, float] | None = None
    end: TokenScore | None = None


class Event(NamedTuple):
    """News of one request, by the ticket that `submit` returned.

    A piece of an answer, or None where the request failed, with the error; `last` where nothing more comes.
    """

    ticket: int
    delta: Delta | None
    error: ShoalError | None
    last: bool


@dataclass(frozen=True)
class StepRecord:
    """One step of the engine.

    Attributes:
        seconds: that it took.
        running: answers that got a token in it.
        waiting: requests whose prompts are not being read after it.
        prefill_tokens: of prompts that were read, and of labels that were scored.
        gaps: for every answer that got a token and had one before, seconds between the two.
    """

    seconds: float
    running: int
    waiting: int
    prefill_tokens: int
    gaps: tuple[float, ...]


@dataclass(frozen=True)
class FinishedRecord:
    """One request that has ended.

    Attributes:
        outcome: of its last answer; or that it was cancelled, or failed.
        queue_seconds: until its prompt began to be read; all of its time where it was not.
        first_token_seconds: from its arrival to its first token; None where there was none.
        total_seconds: from its arrival to its end.
        prompt_tokens: of its prompt.
        completion_tokens: generated, over all n answers.
    """

    outcome: Outcome
    queue_seconds: float
    first_token_seconds: float | None
    total_seconds: float
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class EngineState:
    """The work that the engine has at hand.

    Attributes:
        waiting: requests whose prompts are not being read yet.
        running: answers that are being generated.
        reading: requests whose prompts are being read, or whose labels are scored.
        kv_tokens: places for keys and values that are reserved for running answers.
        adapters: figures of its adapter cache.
        paused: answers that have begun and wait for their turn.
    """

    waiting: int
    running: int
    reading: int
    kv_tokens: int
    adapters: CacheStatistics
    paused: int = 0


Observer = Callable[[StepRecord | FinishedRecord], None]  # called with the record of every step and request
