"""Scores of one answer and of many together, and bootstrap intervals over many scores.

Exact match and ROUGE compare an answer with its references. ROUGE: Lin 2004, "ROUGE: A Package for Automatic
Evaluation of Summaries", sections 2 and 3, through the library rouge-score, with stemming as in the
evaluation of Super-NaturalInstructions. BLEU (Papineni et al. 2002) and chrF (Popovic 2015) are of a whole
set of answers, through sacrebleu (Post 2018), whose signatures say how. Intervals are percentile bootstraps:
Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3. Knows nothing of models, tasks or
files.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shoal.errors import ShoalError, UsageError

# Scripts written without spaces between words: Thai to Tibetan, Burmese, Khmer, Tai Le to Tai Tham, kana and
# bopomofo, the ideographs of Chinese, Yi, Javanese, Tai Viet, kana of half width, Tangut.
_SPACELESS = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u3005-\u3007\u3040-\u312f\u31a0-\u31bf"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua4cf\ua980-\ua9ff\uaa60-\uaadf\uf900-\ufaff\uff66-\uff9f"
    "\U00016fe0-\U0001b2ff\U00020000-\U0003ffff"
)
_WORD_PARTS = re.compile(f"[{_SPACELESS}]|[^{_SPACELESS}]+")
_IS_SPACELESS = re.compile(f"[{_SPACELESS}]")
_SPACELESS_SHARE = 0.1
# Latin, Chinese, Japanese, Hindi, Urdu, Amharic, Armenian, Burmese, Khmer, Tibetan, Mongolian, Santali
_FULL_STOPS = (".", "。", "．", "｡", "।", "۔", "።", "։", "။", "។", "།", "᠃", "᱾")
# Marks that nobody sees: of direction, of places where a line may break or must not, and of byte order.
_UNSEEN = re.compile("[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
_RESAMPLED_AT_ONCE = 4_000_000

Scores = Sequence[float] | NDArray[np.float64]
Tokenization = Literal["latin", "unicode", "characters"]
RougeKind = Literal["rouge1", "rouge2", "rougeL"]


@dataclass(frozen=True)
class CorpusScore:
    """A score of a whole set of answers, in [0, 100], and sacrebleu's signature of how it came about."""

    score: float
    signature: str


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence limits; there are none (None) for fewer than two values."""

    mean: float
    low: float | None
    high: float | None
    n: int


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1.0 if the answer equals any reference, else 0.0.

    Case, whitespace around and its amount within, one full stop of any script at the end, marks that are not
    seen, and whether an accent is a character of its own (Unicode NFC) do not matter.

    Raises:
        UsageError: there is no reference.
    """
    _check_references(references)
    given = _normalise(answer)
    return float(any(given == _normalise(reference) for reference in references))


def rouge(answer: str, references: Sequence[str], kind: RougeKind) -> float:
    """The F1 of words (`rouge1`), of pairs of words (`rouge2`) or of the longest common subsequence.

    In [0, 1], best over the references. References in ASCII letters and digits are scored by rouge-score with
    `use_stemmer=True`: lower case, punctuation dropped, Porter stems. Its tokenizer drops every other letter,
    so a reference that has one is split into words of any script (stemmed where they are ASCII; one character
    each in scripts without spaces), and one without letters and digits into its visible characters. The
    reference alone decides.

    Raises:
        UsageError: there is no reference.
        ShoalError: rouge-score is not installed.
    """
    _check_references(references)
    return max(
        float(_scorer(_tokenization(reference), kind).score(reference, answer)[kind].fmeasure)
        for reference in references
    )


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """`rouge` of the longest common subsequence."""
    return rouge(answer, references, "rougeL")


def bleu(answers: Sequence[str], references: Sequence[Sequence[str]]) -> CorpusScore:
    """BLEU of a set of answers, each with one or more references.

    The effective order counts only the n-grams that an answer is long enough to have: without it a set of
    right answers of one word would score 0. Where a reference holds Chinese, its characters are tokens
    (sacrebleu's `zh`); where a `_SPACELESS_SHARE` of the references' letters is of another script without
    spaces, all characters are (`char`); else words (`13a`). The signature says which.

    Raises:
        UsageError: no answers, or not a list of at least one reference for each.
        ShoalError: sacrebleu is not installed.
    """
    tokenizer = _bleu_tokenizer([reference for each in references for reference in each])
    return _corpus_score("BLEU", answers, references, effective_order=True, tokenize=tokenizer)


def chrf(answers: Sequence[str], references: Sequence[Sequence[str]]) -> CorpusScore:
    """chrF2 of a set of answers, by n-grams of characters; arguments and errors as `bleu`."""
    return _corpus_score("CHRF", answers, references)


def perplexity(losses: Sequence[float]) -> float:
    """The exponential of the mean of cross-entropies in nats per token; at least 1, infinite above 700 nats.

    Raises:
        UsageError: there is no loss, or one is negative or no number (NaN).
    """
    if not len(losses) or not all(loss >= 0 for loss in losses):
        raise UsageError(f"losses {list(losses)[:3]}: at least 1 number from 0 is needed; check the training")
    mean = sum(losses) / len(losses)
    return math.exp(mean) if mean <= 700 else math.inf


def bootstrap_interval(
    values: Scores, *, level: float = 0.95, samples: int = 2000, seed: int = 0
) -> Interval:
    """The mean of the values with its percentile bootstrap interval.

    Args:
        values: one score for each independent unit, such as an example or a task.
        level: share of such intervals that cover the true mean, in (0, 1).
        samples: resamples with replacement.
        seed: of the resampling.

    Raises:
        UsageError: there is no value, one is not finite, or `level` or `samples` is out of range.
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or not len(scores) or not np.isfinite(scores).all():
        raise UsageError(
            f"values of shape {scores.shape}: at least 1 finite number in one row is needed; check them"
        )
    if not 0 < level < 1:
        raise UsageError(f"level {level}: must be between 0 and 1; 0.95 is usual")
    if samples < 1:
        raise UsageError(f"samples {samples}: must be at least 1; 2000 is usual")
    mean, n = float(scores.mean()), len(scores)
    if n == 1:
        return Interval(mean, None, None, n)
    generator = np.random.default_rng(seed)
    rows = max(1, _RESAMPLED_AT_ONCE // n)
    means = np.concatenate(
        [
            scores[generator.integers(n, size=(min(rows, samples - start), n))].mean(axis=1)
            for start in range(0, samples, rows)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), n)


def bootstrap_difference(
    a: Scores, b: Scores, *, level: float = 0.95, samples: int = 2000, seed: int = 0
) -> Interval:
    """The mean of `a - b` with its interval, for scores of two systems on the same units (paired).

    Raises:
        UsageError: the lengths differ, or as `bootstrap_interval`.
    """
    if len(a) != len(b):
        raise UsageError(
            f"{len(a)} and {len(b)} values: paired scores must be of one length; score the same units"
        )
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return bootstrap_interval(difference, level=level, samples=samples, seed=seed)


def _check_references(references: Sequence[str]) -> None:
    if isinstance(references, str) or not references:
        raise UsageError(f"references {references!r}: a list of at least 1 string is needed; give one")


def _normalise(text: str) -> str:
    text = unicodedata.normalize("NFC", _UNSEEN.sub("", text)).casefold()
    text = " ".join(unicodedata.normalize("NFC", text).split())
    return (text[:-1].rstrip() or text) if text.endswith(_FULL_STOPS) else text


def _bleu_tokenizer(references: Sequence[str]) -> Literal["13a", "zh", "char"]:
    """The tokenizer of sacrebleu that splits the scripts of these references."""
    letters = [c for reference in references for c in reference if unicodedata.category(c)[0] in "LM"]
    spaceless = [c for c in letters if _IS_SPACELESS.fullmatch(c)]
    chinese = [c for c in spaceless if c <= "\uffff" and unicodedata.name(c, "").startswith("CJK ")]
    if len(spaceless) - len(chinese) >= max(1, _SPACELESS_SHARE * len(letters)):  # zh leaves them whole
        return "char"
    return "zh" if spaceless else "13a"


def _tokenization(reference: str) -> Tokenization:
    letters = [character for character in reference if character.isalnum()]
    if not letters:
        return "characters"
    return "latin" if all(letter.isascii() for letter in letters) else "unicode"


def _corpus_score(
    name: str, answers: Sequence[str], references: Sequence[Sequence[str]], **options: Any
) -> CorpusScore:
    if not len(answers) or len(answers) != len(references):
        raise UsageError(
            f"{len(answers)} answers and {len(references)} lists of references: at least 1 answer, and "
            "a list for each, is needed; pair them"
        )
    for each in references:
        _check_references(each)
    try:
        from sacrebleu import metrics
    except ImportError as error:
        raise ShoalError(
            f"sacrebleu cannot be imported ({error}) and is needed for {name}; pip install sacrebleu"
        ) from None
    composed = [[unicodedata.normalize("NFC", reference) for reference in each] for each in references]
    streams = zip_longest(*composed)  # None where an answer has fewer references than others
    scorer = getattr(metrics, name)(**options)
    given = [unicodedata.normalize("NFC", answer) for answer in answers]
    score = scorer.corpus_score(given, [list(stream) for stream in streams]).score
    return CorpusScore(float(score), str(scorer.get_signature()))


@lru_cache(maxsize=9)
def _scorer(tokenization: Tokenization, kind: RougeKind) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from rouge_score.tokenizers import DefaultTokenizer
    except ImportError as error:
        raise ShoalError(
            f"rouge-score cannot be imported ({error}) and is needed for ROUGE; pip install rouge-score"
        ) from None
    latin = DefaultTokenizer(use_stemmer=True)
    tokenizers = {"latin": latin, "unicode": _UnicodeTokenizer(latin), "characters": _CharacterTokenizer()}
    return RougeScorer([kind], tokenizer=tokenizers[tokenization])


class _CharacterTokenizer:
    """Every character but whitespace is a token."""

    def tokenize(self, text: str) -> list[str]:
        return list("".join(text.split()))


class _UnicodeTokenizer:
    """Words are runs of letters, digits and marks of any script; ASCII words go to another tokenizer."""

    def __init__(self, ascii_tokenizer: Any) -> None:
        self._ascii_tokenizer = ascii_tokenizer

    def tokenize(self, text: str) -> list[str]:
        text = unicodedata.normalize("NFC", text.casefold())
        kept = (character if unicodedata.category(character)[0] in "LNM" else " " for character in text)
        parts = _WORD_PARTS.findall("".join(kept))
        words = [word for part in parts for word in part.split()]
        return [
            token
            for word in words
            for token in (self._ascii_tokenizer.tokenize(word) if word.isascii() else [word])
        ]
