"""Descriptions that say nothing."""

from __future__ import annotations

from shoal.text_to_lora.nonsense import gibberish, word_salad


def test_gibberish_is_random_letters_by_seed() -> None:
    assert gibberish(1) == gibberish(1) != gibberish(2)
    words = gibberish("seed", words=5).split()
    assert len(words) == 5
    assert all(3 <= len(word) <= 9 and word.isascii() and word.islower() for word in words)


def test_word_salad_is_words_of_a_vocabulary_by_seed() -> None:
    vocabulary = ["sort", "the", "letters", "backwards"]
    assert word_salad(1, vocabulary) == word_salad(1, vocabulary) != word_salad(2, vocabulary)
    words = word_salad("seed", vocabulary, words=50).split()
    assert len(words) == 50 and set(words) == set(vocabulary)
