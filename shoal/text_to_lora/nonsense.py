"""Descriptions that say nothing: random letters, and random words.

A hypernetwork is trained on some, measured on some and evaluated with some, each with other seeds.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def gibberish(seed: float | str, words: int = 12) -> str:
    """`words` words of random letters."""
    chance = random.Random(seed)
    return " ".join("".join(chance.choices(LETTERS, k=chance.randint(3, 9))) for _ in range(words))


def word_salad(seed: float | str, vocabulary: Sequence[str], words: int = 12) -> str:
    """`words` words of a vocabulary, at random."""
    return " ".join(random.Random(seed).choices(vocabulary, k=words))


def vocabulary(texts: Sequence[Sequence[str]]) -> list[str]:
    """The words of every task's texts, each once, sorted."""
    return sorted({word for own in texts for text in own for word in text.split()})
