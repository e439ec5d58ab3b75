"""Text -> what the skill head reads of it: task embedding, keywords and words, after correction.

Misspelt words are corrected and negated clauses ("don't translate, ...") left out first. Knows nothing of the
head or of what a skill is good for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches

import torch
from cachetools import LRUCache
from torch import Tensor

from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.text_to_lora.skill_keywords import KEYWORD_PATTERNS, SKILLS

WORD = re.compile(r"[a-z]+", re.IGNORECASE)
MAX_WORD, MAX_CORRECTED, MAX_KNOWN = 32, 256, 4096  # letters of a word; words of a text, of a cache
_KEYWORD_SCALE = 0.3
_WORDS_SCALE = 0.8
# A clause that begins with a negation, up to its end: "no code please", ", don't summarise".
_NEGATED = re.compile(
    r"((^|(?<=[,.;:!?(–—-])|(?<=\band)|(?<=\bbut))\s*(please\s+)?"
    r"(do not|don't|dont|never|no|not|nothing|stop|avoid|skip"
    r"|you don't (need|have) to|i (don't|do not) (want|need))"
    r"\b(?!\s+(know|understand|see|idea|clue|one|longer|matter))"
    r"|\b(instead of|rather than)\b)"
    r"[^,.;:!?]*?(?=[,.;:!?]|\bbut\b|\bjust\b|\bonly\b|$)",
    re.IGNORECASE,
)


def prepare(text: str, encoder: TaskEncoder, spelling: Spelling) -> str:
    """`text` with misspelt words of a vocabulary corrected and negated clauses about skills left out.

    A word is misspelt if it is neither in the vocabulary nor a token of the encoder's; the first
    `MAX_CORRECTED` of a text are corrected.
    """
    left = MAX_CORRECTED

    def corrected(match: re.Match[str]) -> str:
        nonlocal left
        word = match[0].lower()
        if not 4 <= len(word) <= MAX_WORD or word in spelling.words or not left or encoder.knows(word):
            return match[0]
        left -= 1
        return spelling.closest(word) or match[0]

    return _NEGATED.sub(
        lambda match: " " if any(p.search(match[0].lower()) for p in KEYWORD_PATTERNS) else match[0],
        WORD.sub(corrected, text),
    ).strip()


class Spelling:
    """Corrects words towards a vocabulary.

    Attributes:
        words: the vocabulary.
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        """Take the words, in lower case; of those that are alike the first wins."""
        self.words = frozenset(vocabulary)
        self._by_letter: dict[str, list[str]] = {}
        for word in dict.fromkeys(vocabulary):
            if 4 <= len(word) <= MAX_WORD:
                self._by_letter.setdefault(word[0], []).append(word)
        self._known: LRUCache[str, str | None] = LRUCache(MAX_KNOWN)  # of words of bounded length

    def closest(self, word: str) -> str | None:
        """The word of the vocabulary that a misspelt one stands for; None where none is close."""
        if word not in self._known:
            alike = [w for w in self._by_letter.get(word[0], ()) if abs(len(w) - len(word)) <= 2]
            self._known[word] = next(iter(get_close_matches(word, alike, n=1, cutoff=0.8)), None)
        return self._known.get(word)


def features(texts: Sequence[str], encoder: TaskEncoder, vocabulary: Sequence[str]) -> Tensor:
    """The features of prepared texts: float32 (len(texts), encoder.dim + 10 + len(vocabulary)).

    The unit-length task embedding; 0.3 for each skill with a keyword in the text; and the words of the
    vocabulary that occur, as a vector of length 0.8.
    """
    index = {word: i for i, word in enumerate(vocabulary)}
    keywords = torch.zeros(len(texts), len(SKILLS))
    words = torch.zeros(len(texts), len(vocabulary))
    for row, text in enumerate(texts):
        lower = text.lower()
        keywords[row] = torch.tensor([float(bool(pattern.search(lower))) for pattern in KEYWORD_PATTERNS])
        words[row, [index[word] for word in WORD.findall(lower) if word in index]] = 1.0
    embeddings = encoder.encode(texts).cpu() / encoder.dim**0.5
    words = torch.nn.functional.normalize(words, dim=1)
    return torch.cat([embeddings, _KEYWORD_SCALE * keywords, _WORDS_SCALE * words], dim=1)
