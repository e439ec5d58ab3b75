"""Answers that cannot but match a format: before each token, those that the format forbids are masked out.

llguidance compiles a format for one tokenizer and says after each token which may come next, the end of turn
only where the format is complete. Its cost is bounded by `limits`; what would exceed them is an error. Knows
tokens and logits; nothing of prompts, adapters or requests.

Source: https://github.com/guidance-ai/llguidance (derivatives of regular expressions, an Earley parser).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from copy import copy
from functools import cached_property
from typing import Any, NamedTuple

import numpy
import torch
from cachetools import LRUCache
from jaxtyping import Float
from torch import Tensor

from shoal.adapters.output_format import OutputFormat
from shoal.errors import ShoalError, UsageError, reason, shorten
from shoal.models.backbone import Backbone

KEPT = 64  # compiled formats
# Lexer steps, parser items and lexer states; a tenth to a quarter of llguidance's own limits.
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 20_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
}
# Else a model may go on with spaces for good.
JSON_OPTIONS: Any = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,20}"}
MISSING = "formats of answers need llguidance, which is not installed; pip install 'shoal[structured]'"


class Grammar:
    """A compiled format, to be used for any number of answers."""

    def __init__(self, matcher: Any, ends: frozenset[int]) -> None:
        """Take llguidance's matcher at its beginning, and the tokens that end an answer."""
        self._matcher = matcher
        self._ends = ends

    def begin(self) -> GrammarState:
        """The state of one more answer."""
        return GrammarState(self._matcher.deep_copy(), self._ends)


class GrammarState:
    """One answer's place in its grammar."""

    def __init__(self, matcher: Any, ends: frozenset[int]) -> None:
        """Nothing is said yet."""
        self._matcher = matcher
        self._ends = ends

    def allowed(self) -> bytes:
        """A bit for each token, the lowest first: 1 where it may come next.

        Raises:
            UsageError: the grammar has become too dear, or nothing may come next.
        """
        bits: bytes = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise UsageError(f"the answer's format cannot go on: {_error(self._matcher)}; simplify it")
        return bits

    def take(self, token: int) -> None:
        """Go on by a token that was allowed.

        Raises:
            UsageError: the token was not allowed, or ends the answer within its format.
        """
        if token in self._ends and not self._matcher.is_accepting():
            raise UsageError("the grammar has the end of turn within an answer; leave that token out")
        if not self._matcher.consume_token(token):
            raise UsageError(f"the answer's format cannot go on: {_error(self._matcher)}; simplify it")


class GrammarCompiler:
    """Compiles formats for one model, from any thread; the last ones are kept, apart for each owner."""

    def __init__(self, backbone: Backbone) -> None:
        """Nothing is compiled, and the tokenizer is not read, before the first format comes."""
        self._backbone = backbone
        self._lock = threading.Lock()  # over the tokenizer and the cache, not held while compiling
        self._kept: LRUCache[tuple[str, OutputFormat], Grammar] = LRUCache(KEPT)

    def compile(self, wanted: OutputFormat, owner: str = "") -> Grammar:
        """The grammar of a format, from the cache where the same owner had it.

        Raises:
            UsageError: the format is none, no text fits it, it is too large, or the model's tokenizer has no
                tokenizer.json.
            ShoalError: llguidance is not installed.
        """
        with self._lock:
            found = self._kept.get((owner, wanted))
            tokenizer = self._tokenizer
        if found is None:
            found = Grammar(self._compiled(tokenizer, wanted), self._backbone.end_tokens)
            with self._lock:
                self._kept[owner, wanted] = found
        return found

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            from llguidance import LLTokenizer
        except ImportError:
            raise ShoalError(MISSING) from None
        backbone = self._backbone
        inner = getattr(backbone.tokenizer, "backend_tokenizer", None)
        if inner is None or not hasattr(inner, "to_str"):
            raise UsageError(
                f"a {type(backbone.tokenizer).__name__} cannot hold answers to a format; use a model with a "
                "tokenizer.json"
            )
        inner = copy(inner)
        inner.no_padding()
        inner.no_truncation()
        embeddings: Any = backbone.model.get_input_embeddings()
        width = max(int(embeddings.weight.shape[0]), inner.get_vocab_size(with_added_tokens=True))
        try:
            return LLTokenizer(inner.to_str(), n_vocab=width, eos_token=sorted(backbone.end_tokens))
        except Exception as error:  # another library's, of any class
            name = backbone.shape.base_model
            raise UsageError(
                f"the tokenizer of {name} cannot hold answers to a format: {reason(error)}; use another model"
            ) from None

    def _compiled(self, tokenizer: Any, wanted: OutputFormat) -> Any:
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(**LIMITS, verbose_errors=False)
        try:
            matcher = LLMatcher(tokenizer, _source(wanted), log_level=0, limits=limits)
        except Exception as error:  # another library's, of any class
            raise UsageError(_refused(wanted, reason(error))) from None
        if not matcher.is_error():
            matcher.compute_bitmask()  # the dearest of all, and it shows where nothing fits
        if matcher.is_error():
            raise UsageError(_refused(wanted, _error(matcher)))
        return matcher


class Masked(NamedTuple):
    """Logits of every row, and the errors of the rows whose format cannot go on, by number."""

    logits: Tensor
    errors: dict[int, UsageError]


def mask_logits(logits: Float[Tensor, "rows vocabulary"], states: Sequence[GrammarState | None]) -> Masked:
    """The logits with -infinity for every token that a row's format forbids; the same where there is none."""
    rows: list[int] = []
    bits: list[bytes] = []
    errors: dict[int, UsageError] = {}
    for row, state in enumerate(states):
        if state is None:
            continue
        try:
            bits.append(state.allowed())
            rows.append(row)
        except UsageError as error:
            errors[row] = error
    if not rows:
        return Masked(logits, errors)
    packed = numpy.frombuffer(b"".join(bits), dtype=numpy.uint8).reshape(len(rows), -1)
    allowed = numpy.unpackbits(packed, axis=1, count=logits.shape[-1], bitorder="little")
    forbidden = torch.from_numpy(allowed == 0).to(logits.device)
    if len(rows) == len(states):
        return Masked(logits.masked_fill(forbidden, -torch.inf), errors)
    logits = logits.clone()
    logits[rows] = logits[rows].masked_fill(forbidden, -torch.inf)
    return Masked(logits, errors)


def _source(wanted: OutputFormat) -> str:
    """The format as llguidance takes it."""
    from llguidance import LLMatcher, grammar_from

    if wanted.kind == "json_schema":
        return str(LLMatcher.grammar_from_json_schema(wanted.text, overrides=JSON_OPTIONS))
    if wanted.kind == "regex":
        return str(LLMatcher.grammar_from_regex(wanted.text))
    if wanted.kind == "choice":
        texts = map(json.dumps, wanted.choices)
        return str(LLMatcher.grammar_from_lark("start: " + " | ".join(texts)))
    return str(grammar_from("grammar", wanted.text))


def _refused(wanted: OutputFormat, said: str) -> str:
    kind = wanted.kind.replace("_", " ")
    if "NoExtension" in said:
        return f"no text fits the {kind} {shorten(wanted.text)}; correct it"
    return f"the {kind} {shorten(wanted.text)} cannot be used: {said}; correct or simplify it"


def _error(matcher: Any) -> str:
    """The first lines of llguidance's own error."""
    return reason(Exception(str(matcher.get_error()).partition("<non-verbose/>")[0]))
