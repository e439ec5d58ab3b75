"""Text as tokens come: whatever the tokens, pieces add up to the whole, cut before the first stop string."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from shoal.inference.engine.detokenizer import UNFINISHED, TextStream, TokenTexts

WORDS = st.text("ab é日🙂", max_size=12)


@pytest.fixture(scope="session")
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    """One token a byte, so that every character beyond ASCII comes in parts."""
    return AutoTokenizer.from_pretrained(tiny_llama)


def streamed(tokenizer: PreTrainedTokenizerBase, ids: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    stream, pieces, tokens = TextStream(tokenizer, stop), [], 0
    for token in ids:
        released = stream.push(token)
        pieces.append(released.text)
        tokens += released.tokens
        if released.stopped:
            return pieces
    released = stream.finish()
    assert released.stopped or tokens + released.tokens == len(ids)
    return [*pieces, released.text]


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 258), max_size=30))
@example(ids=[0xE2 - 40, 65])
def test_any_tokens_add_up_to_the_decoded_text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> None:
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@settings(max_examples=300, deadline=None)
@given(text=WORDS, stop=st.lists(st.text("ab é🙂", min_size=1, max_size=4), max_size=3))
def test_no_half_character_and_no_part_of_a_stop_string_is_ever_shown(
    tokenizer: PreTrainedTokenizerBase, text: str, stop: list[str]
) -> None:
    pieces = streamed(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"], tuple(stop))
    assert not any(UNFINISHED in piece for piece in pieces)
    # One token a byte: the stop string that is complete first ends the answer.
    ends = [text.find(s) + len(s) for s in stop if s in text]
    ended = min(ends, default=len(text))
    starts = [text.find(s) for s in stop if s in text and text.find(s) + len(s) == ended]
    assert "".join(pieces) == text[: min(starts, default=len(text))]


def test_what_may_become_a_stop_string_is_held_back_until_it_does_not(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    ids = tokenizer("x<en<end", add_special_tokens=False)["input_ids"]
    assert streamed(tokenizer, ids, ("<end>",)) == ["x", "", "", "", "<en", "", "", "", "<end"]


def test_tokens_are_counted_with_the_text_that_they_complete(tokenizer: PreTrainedTokenizerBase) -> None:
    stream = TextStream(tokenizer, ("bc",))
    assert [stream.push(t).tokens for t in tokenizer("é", add_special_tokens=False)["input_ids"]] == [0, 2]
    a, b, c = tokenizer("abc", add_special_tokens=False)["input_ids"]
    assert [tuple(stream.push(t)) for t in (a, b, c)] == [("a", 1, False), ("", 0, False), ("", 0, True)]


def test_single_tokens_have_bytes_even_where_they_are_no_character(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    texts = TokenTexts(tokenizer)
    ids = tokenizer("é a", add_special_tokens=False)["input_ids"]
    assert [texts.bytes(token) for token in ids] == [(0xC3,), (0xA9,), (0x20,), (0x61,)]
    assert [texts.text(token) for token in ids] == [UNFINISHED, UNFINISHED, " ", "a"]
    assert texts.text(tokenizer.eos_token_id) == "<|im_end|>"
