"""Text -> what the skill head reads of it: task embedding, keywords and words, after correction.

Misspelt words are corrected and negated clauses ("don't translate, ...") left out first. Knows nothing of the
head or of what a skill is good for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from functools import lru_cache

import torch
from torch import Tensor

from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.text_to_lora.skill_keywords import KEYWORD_PATTERNS, SKILLS

WORD = re.compile(r"[a-z]+", re.IGNORECASE)
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


def prepare(text: str, encoder: TaskEncoder, vocabulary: tuple[str, ...]) -> str:
    """`text` with misspelt words of the vocabulary corrected and negated clauses about skills left out.

    A word is misspelt if it is neither in the vocabulary nor a token of the encoder's.
    """

    def corrected(match: re.Match[str]) -> str:
        word = match[0].lower()
        return match[0] if len(word) < 4 or encoder.knows(word) else _closest(word, vocabulary) or match[0]

    return _NEGATED.sub(
        lambda match: " " if any(p.search(match[0].lower()) for p in KEYWORD_PATTERNS) else match[0],
        WORD.sub(corrected, text),
    ).strip()


@lru_cache(maxsize=4096)
def _closest(word: str, vocabulary: tuple[str, ...]) -> str | None:
    if word in vocabulary:
        return None
    alike = [w for w in vocabulary if len(w) >= 4 and w[0] == word[0] and abs(len(w) - len(word)) <= 2]
    return next(iter(get_close_matches(word, alike, n=1, cutoff=0.8)), None)


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
