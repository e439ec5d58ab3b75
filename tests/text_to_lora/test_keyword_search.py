"""Keywords are found as a regular expression would find them, in the time of the text."""

from __future__ import annotations

import gc
import re
import sys
import time
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import UsageError
from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.text_to_lora.keyword_search import KeywordSearch
from shoal.text_to_lora.skill_features import MAX_CORRECTED, MAX_KNOWN, MAX_WORD, Spelling
from shoal.text_to_lora.skills import SkillDetector

WORDS = st.text("ab+ S", min_size=1, max_size=8).filter(str.strip)


def by_expression(keyword: str, text: str) -> bool:
    phrase = r"\s+".join(map(re.escape, keyword.split()))
    return re.search(rf"(?<!\w)({phrase})s?(?!\w)", text, re.IGNORECASE) is not None


@given(keywords=st.lists(WORDS, min_size=1, max_size=4), text=st.text("ab+ S\n", max_size=30))
def test_keywords_are_whole_words(keywords: list[str], text: str) -> None:
    search = KeywordSearch({keyword: [keyword] for keyword in keywords})
    assert search.find(text) == {keyword for keyword in keywords if by_expression(keyword, text)}


@pytest.mark.parametrize("text", ["a " * 10_000, "+" * 20_000, "a" * 20_000, "a+" * 10_000])
def test_odd_keywords_cost_little(text: str) -> None:
    odd = [" ".join("a" * (20 + i % 12)) + "b" * (1 + i) for i in range(250)]
    odd += ["+" * (20 + i % 30) + "b" * (1 + i) for i in range(250)]
    search = KeywordSearch({"odd": odd})
    started = time.process_time()
    assert search.find(text) == set()
    assert time.process_time() - started < 1


def test_unknown_words_cost_little() -> None:
    detector = SkillDetector()
    detector.add_custom_skills({"odd": {"keywords": [f"qzx{a}{b}w" for a in "abcdefgh" for b in "abcdefgh"]}})
    text = " ".join(f"qzx{a}{b}{c}" for a in "ijklmnopqr" for b in "abcdefghij" for c in "klmnopqrst")
    detector.detect("warm")
    started = time.process_time()
    detector.detect(text)
    assert time.process_time() - started < 2
    assert len(detector._spelling._known) <= MAX_CORRECTED


def test_the_cache_of_corrections_keeps_no_long_words() -> None:
    spelling = Spelling(["translate", "x" * 100])
    assert spelling.closest("tranlsate") == "translate"
    assert spelling.closest("y" * 8) is None and list(spelling._known) == ["tranlsate", "y" * 8]


def test_the_cache_of_corrections_is_bounded_and_goes_with_its_owner() -> None:
    spelling = Spelling([f"{letter}{'o' * 10}{number}" for letter in "abc" for number in range(9)])
    for number in range(MAX_KNOWN + 100):
        spelling.closest(f"z{number:08}")
    assert len(spelling._known) == MAX_KNOWN and "z00000099" not in spelling._known
    held = sum(sys.getsizeof(word) for word in spelling._known)
    assert held < MAX_KNOWN * (MAX_WORD + sys.getsizeof(""))
    gone = weakref.ref(spelling)
    del spelling
    gc.collect()
    assert gone() is None  # no cache of the module's holds a vocabulary


def test_a_keyword_of_many_parts_is_refused() -> None:
    with pytest.raises(UsageError, match="has 65 words, spaces and signs, the limit is 64"):
        SkillDetector().add_custom_skills({"odd": ["+" * 65]})


def test_examples_of_skills_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, encoded = SkillDetector(), list[str]()
    detector.add_custom_skills({"odd": {"description": "Sail a boat to an island."}})
    plain = TaskEncoder.encode
    monkeypatch.setattr(
        TaskEncoder, "encode", lambda self, texts, *rest: encoded.extend(texts) or plain(self, texts, *rest)
    )
    for _ in range(3):
        assert "odd" in detector.detect("sailing boats to the islands").skills
    assert encoded.count("Sail a boat to an island.") == 1
