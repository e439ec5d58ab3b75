"""Tokens to text as they come: only whole characters, and nothing that may turn out to be a stop string.

Knows one tokenizer and one answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tokenizers import decoders, pre_tokenizers
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from shoal.errors import UsageError

UNFINISHED = "\ufffd"  # what stands for bytes that are no whole character


class Released(NamedTuple):
    """Text that no later token can change, so it may be shown, and the number of tokens that it completes.

    These are counted from the first that was not released before. `stopped` says that a stop string came
    right after the text; nothing is released any more.
    """

    text: str
    tokens: int
    stopped: bool


class TextStream:
    """The text of one answer. Special tokens are left out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        """Nothing yet.

        Args:
            tokenizer: one that `fast_tokenizer` accepts.
            stop: not empty; the answer ends before the first of them.
        """
        self._tokenizer = fast_tokenizer(tokenizer)
        self._stop = tuple(stop)
        self._decoder = decoders.DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._decoded = self._sent = 0  # characters decoded, and those of them that were released
        self._held = ""  # decoded and not released
        self._ends: list[int] = []  # for each decoded token not released, where its text ends
        self._undecoded = 0  # tokens since the last whole character

    def push(self, token: int) -> Released:
        """Take the next token."""
        self._ids.append(token)
        self._undecoded += 1
        return self._release(self._decoder.step(self._tokenizer, token) or "", last=False)

    def finish(self) -> Released:
        """Release what was held back: no token follows."""
        whole = self._tokenizer.decode(self._ids, skip_special_tokens=True) if self._undecoded else ""
        return self._release(whole[self._decoded :], last=True)

    def _release(self, text: str, *, last: bool) -> Released:
        if text or last:
            self._decoded += len(text)
            self._held += text
            self._ends += [self._decoded] * self._undecoded
            self._undecoded = 0
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            shown = self._held[: min(found)]
            limit = self._sent + len(shown)
            starts = [self._sent, *self._ends[:-1]]
            tokens = sum(start < limit for start in starts[: len(self._ends)])
            self._held = ""
            self._ends = []
            return Released(shown, tokens, True)
        kept = 0 if last else self._beginning_of_a_stop()
        shown = self._held[: len(self._held) - kept]
        self._sent += len(shown)
        tokens = sum(end <= self._sent for end in self._ends)
        self._held, self._ends = self._held[len(shown) :], self._ends[tokens:]
        return Released(shown, tokens, False)

    def _beginning_of_a_stop(self) -> int:
        """Length of the longest end of the held text with which a stop string begins."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest


def fast_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The tokenizer of the `tokenizers` library inside one of `transformers`.

    Raises:
        UsageError: it has none.
    """
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None or not hasattr(inner, "decoder"):
        raise UsageError(
            f"a {type(tokenizer).__name__} cannot decode token by token; use a model with a tokenizer.json"
        )
    return inner


class TokenTexts:
    """Single tokens as text and as bytes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take a tokenizer that `fast_tokenizer` accepts."""
        self._tokenizer = fast_tokenizer(tokenizer)
        self._byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
        self._alphabet = set(pre_tokenizers.ByteLevel.alphabet())

    def text(self, token: int) -> str:
        """Its text by itself; a special token's name."""
        return str(self._tokenizer.decode([token], skip_special_tokens=False))

    def bytes(self, token: int) -> tuple[int, ...]:
        """Its bytes, also where they are part of a character."""
        text = self.text(token)
        if UNFINISHED not in text:
            return tuple(text.encode())
        piece = self._tokenizer.id_to_token(token) or ""
        if piece.startswith("<0x") and piece.endswith(">") and len(piece) == 6:
            return (int(piece[3:5], 16),)
        if set(piece) <= self._alphabet:
            return tuple(self._byte_of[character] for character in piece)
        return tuple(text.encode())
