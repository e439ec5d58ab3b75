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

# Regular expressions, matched where a word begins, in lower case.
KEYWORDS = {
    "code_generation": (
        r"cod(e|er|ing|ebase)\b|program(s|mer|mers|ming)?\b|script(s|ing)?\b|python|javascript|typescript|java\b"
        r"|rust\b|golang|kotlin|haskell|c\+\+|c#|sql\b|html|css\b|react\b|django|flask|apis?\b|endpoint|regex"
        r"|functions?\b|software|unit tests?|bash|backend|front-?end|app\b|website|compiler|implement"
        r"|boilerplate|refactor|dockerfile|terraform|json\b|plugin|bot\b"
    ),
    "mathematics": (
        r"math|algebra|calculus|geometr|arithmetic|equation|theorem|proofs?\b|prove\b|integral|derivative"
        r"|probabilit|statistic|fraction|percent|trigonometr|eigenvalue|combinatori|polynomial|calculat|numeric"
        r"|number theory|quantitative|odds\b|sums?\b|logarithm"
    ),
    "reasoning": (
        r"reason|logic|deduc|infer|puzzle|riddle|brain ?teaser|syllog|step by step|critical thinking"
        r"|common ?sense|conclu|premise|fallac|analog(y|ies)|strateg|chain of thought"
    ),
    "creative_writing": (
        r"creative|stor(y|ies|yteller|ytelling)\b|poem|poet|novel|fiction|lyric|haiku|limerick|sonnet|rhyme|verse"
        r"|tales?\b|screenplay|dialogue|character|plot\b|fantasy|imaginat|fable|narrative|ballad|song|scene\b"
        r"|playwright|myth"
    ),
    "analysis": (
        r"analy[sz]|sentiment|insight|trend|evaluat|interpret|compar|classif|theme|pattern|assess|critique|survey"
        r"|outlier|anomal|reviews?\b|feedback|swot"
    ),
    "summarization": (
        r"summar|tl;?dr|condense|abstracts?\b|gist|key points|main points|digest|recap|shorten|bullet|boil"
        r"|nutshell|takeaway|minutes\b|short version|abridge|brief\b"
    ),
    "translation": (
        r"translat|interpreter|bilingual|multilingual|locali[sz]|subtitle|english|french|german|spanish|italian"
        r"|portuguese|dutch|polish|turkish|russian|chinese|japanese|korean|arabic|hindi|greek|latin\b|swedish"
        r"|mandarin|vietnamese|language"
    ),
    "question_answering": (
        r"question|answer|faq|q&a|qa\b|trivia|quiz|explain|customer support|help ?desk|knowledge|what is"
        r"|what's|who (is|was)|tell (me|people|them) (about|what)|facts\b|factual|ask\b|chatbot|tutor"
        r"|comprehension|teach"
    ),
    "debugging": (
        r"debug|bugs?\b|fix(es|ing)?\b|error|crash|traceback|stack ?trace|exception|troubleshoot|fault"
        r"|diagnos|fail(s|ing|ure|ures|ed)?\b|broken|leak|deadlock|wrong|why (does|is|do)|root cause|segfault"
        r"|not work|doesn't work|syntax error|issue"
    ),
    "optimization": (
        r"optimi[sz]|performance\b|faster|speed|slow|latency|efficien|memory (use|usage)|reduce|throughput"
        r"|profil|tuning|cheaper|bottleneck|scal(e|ing|able)|compress|cost|route|schedul|quick"
    ),
}
SKILLS = tuple(KEYWORDS)
KEYWORD_PATTERNS = tuple(re.compile(rf"\b({pattern})") for pattern in KEYWORDS.values())
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
    """What the head reads of prepared texts: float32 (len(texts), encoder.dim + 10 + len(vocabulary)).

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
