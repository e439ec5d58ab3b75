"""Description or request -> the skills that it asks for, and their weights: keywords and a neural head.

The head is a multi-label logistic regression (Bishop, Pattern Recognition and Machine Learning, 4.3.2) on the
features of `skill_features`, fitted by benchmarks/fit_skills.py on prompts written for it. Knows nothing of
adapters, backbones or what is done with a skill.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from shoal.errors import ShoalError, UsageError, check_unicode
from shoal.text_to_lora.encoders.sentence import DEFAULT_ENCODER, TaskEncoder
from shoal.text_to_lora.keyword_search import MAX_PARTS, KeywordSearch, parts_of
from shoal.text_to_lora.skill_features import WORD, Spelling, features, prepare
from shoal.text_to_lora.skill_keywords import SKILLS

# The documented examples, whose skills and order are a definition: there "problem solving" is debugging too
# and "enhance" is optimization, which elsewhere is wrong more often than right. The weights are equal.
GUIDE_EXAMPLES = {
    "make this model excel at code generation and debugging": ("code_generation", "debugging"),
    "optimize this model for mathematical reasoning and problem solving": (
        "reasoning",
        "mathematics",
        "debugging",
        "optimization",
    ),
    "enhance creative writing and storytelling capabilities": ("creative_writing", "optimization"),
}

HEAD_PATH = Path(__file__).parents[1] / "weights" / "skills.safetensors"
# Cosine similarity from which a text is about a custom skill that none of its keywords names.
_SIMILAR = 0.4
MAX_CUSTOM_WORDS = 256  # of keywords, towards which misspelt words are corrected
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True)
class SkillDetection:
    """The skills found in a text.

    Args:
        skills: names, the heaviest first.
        weights: share of each, which add up to 1; empty where no skill was found.
    """

    skills: tuple[str, ...]
    weights: dict[str, float]


@dataclass(frozen=True)
class _CustomSkill:
    keywords: tuple[str, ...]
    prototypes: tuple[str, ...]


@dataclass(frozen=True)
class SkillHead:
    """The fitted head: `weight` float32 (skills, features), `bias` float32 (skills,).

    A skill is found where its probability reaches `threshold`, or `best_threshold` if it is the likeliest.
    """

    weight: Tensor
    bias: Tensor
    vocabulary: tuple[str, ...]
    threshold: float
    best_threshold: float


class SkillDetector:
    """Finds the ten skills of `SKILLS`, and custom ones, in descriptions and requests.

    Args:
        encoder: all-MiniLM-L6-v2, which the head was fitted on; None loads it when it is first needed.

    Raises:
        UsageError: another encoder.
    """

    def __init__(self, encoder: TaskEncoder | None = None) -> None:
        if encoder is not None and encoder.name != DEFAULT_ENCODER:
            raise UsageError(
                f"skills are detected with {DEFAULT_ENCODER}, got the encoder {encoder.name!r}: leave it out"
            )
        self._encoder = encoder
        self._custom: dict[str, _CustomSkill] = {}
        self._search = KeywordSearch({})
        self._prototypes: dict[str, Tensor] = {}  # skill -> its texts as unit vectors, (texts, dim)

    @cached_property
    def encoder(self) -> TaskEncoder:
        """The task encoder."""
        return self._encoder or TaskEncoder()

    @cached_property
    def head(self) -> SkillHead:
        """The fitted head."""
        return load_head(HEAD_PATH)

    @cached_property
    def _spelling(self) -> Spelling:
        words = (
            word for skill in self._custom.values() for word in WORD.findall(" ".join(skill.keywords).lower())
        )
        custom = itertools.islice(dict.fromkeys(words), MAX_CUSTOM_WORDS)
        return Spelling((*self.head.vocabulary, *custom))

    @property
    def names(self) -> tuple[str, ...]:
        """The skills that can be found, built-in ones first."""
        return (*SKILLS, *self._custom)

    def detect(self, text: str) -> SkillDetection:
        """Find the skills that `text` asks for.

        Raises:
            UsageError: `text` is no string, or no valid Unicode.
        """
        return self.detect_many([text])[0]

    def detect_many(self, texts: Sequence[str]) -> list[SkillDetection]:
        """Find the skills of each of `texts`, in one pass of the encoder.

        Raises:
            UsageError: `texts` is one string, or holds something else than valid Unicode strings.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise UsageError(
                f"detection takes strings, got {texts!r:.60}: pass text, or a list to detect_many"
            )
        for text in texts:
            check_unicode(text, "text")
        prepared = [prepare(text, self.encoder, self._spelling) for text in texts]
        inputs = features(prepared, self.encoder, self.head.vocabulary).cpu()
        probabilities = torch.sigmoid(inputs @ self.head.weight.T + self.head.bias)
        similar = self._custom_scores(prepared)
        return [
            _guide_example(text)
            or _weighed({**_found(row, self.head), **custom} if WORD.search(ready) else {})
            for text, ready, row, custom in zip(texts, prepared, probabilities.tolist(), similar, strict=True)
        ]

    def add_custom_skills(self, skills: Mapping[str, Mapping | Sequence[str]] | Sequence[str]) -> None:
        """Learn further skills, or replace custom ones of the same names.

        Args:
            skills: by name, either `{"keywords": [...], "description": "...", "examples": [...]}`, at least
                one of them, or a list of keywords (up to three words) and example prompts; or only names,
                each a keyword itself. A keyword counts where it occurs as whole words in any case, or
                with a plural s; description and examples count where a text means something similar.

        Raises:
            UsageError: a name that is not lower case letters, digits and underscores (64 at most), that is a
                built-in skill, or a definition of another shape.
        """
        if isinstance(skills, str) or not isinstance(skills, (Mapping, Sequence)) or not skills:
            raise UsageError(
                f"custom skills {skills!r:.60} must be a mapping of names to keywords: pass a dict"
            )
        if not isinstance(skills, Mapping):
            skills = {name: [str(name).replace("_", " ")] for name in skills}
        added = {name: _custom_skill(name, definition) for name, definition in skills.items()}
        self._custom = {**self._custom, **added}
        self._search = KeywordSearch({name: skill.keywords for name, skill in self._custom.items()})
        self._prototypes = {name: kept for name, kept in self._prototypes.items() if name not in added}
        self.__dict__.pop("_spelling", None)  # made again when it is needed

    def _custom_scores(self, texts: list[str]) -> list[dict[str, float]]:
        """Per text the custom skills found, with a score in (0, 1]."""
        similar = self._similarities(texts)
        scores = []
        for i, text in enumerate(texts):
            named = self._search.find(text) if self._custom else ()
            found = {name: 1.0 if name in named else float(similar[name][i]) for name in self._custom}
            scores.append({name: score for name, score in found.items() if score >= _SIMILAR})
        return scores

    def _similarities(self, texts: list[str]) -> dict[str, Tensor]:
        """Custom skill -> cosine similarity of every text with the nearest of its own."""
        none = torch.zeros(len(texts))
        if not texts or not any(skill.prototypes for skill in self._custom.values()):
            return dict.fromkeys(self._custom, none)
        own = self._unit_vectors(texts)
        similar = {}
        for name, skill in self._custom.items():
            if skill.prototypes and name not in self._prototypes:
                self._prototypes[name] = self._unit_vectors(skill.prototypes)
            similar[name] = (own @ self._prototypes[name].T).amax(1) if skill.prototypes else none
        return similar

    def _unit_vectors(self, texts: Sequence[str]) -> Tensor:
        return self.encoder.encode(list(texts)).cpu() / self.encoder.dim**0.5


def load_head(path: Path) -> SkillHead:
    """Read the head that benchmarks/fit_skills.py wrote.

    Raises:
        ShoalError: the file is missing, broken, or made for other skills.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["shoal"])
            head = SkillHead(
                weight=file.get_tensor("weight"),
                bias=file.get_tensor("bias"),
                vocabulary=tuple(facts["vocabulary"]),
                threshold=float(facts["threshold"]),
                best_threshold=float(facts["best_threshold"]),
            )
    except Exception as error:  # safetensors raises a class of its own for a broken file
        raise ShoalError(
            f"the skill head {path} cannot be read ({error}): install shoal again, or run"
            " python benchmarks/fit_skills.py"
        ) from error
    width = len(SKILLS) + len(head.vocabulary)
    if (
        tuple(facts["skills"]) != SKILLS
        or head.weight.shape[0] != len(SKILLS)
        or head.weight.shape[1] <= width
    ):
        raise ShoalError(
            f"the skill head {path} was fitted for other skills: run python benchmarks/fit_skills.py"
        )
    return head


def _found(probabilities: Sequence[float], head: SkillHead) -> dict[str, float]:
    best = max(probabilities)
    return {
        skill: p
        for skill, p in zip(SKILLS, probabilities, strict=True)
        if p >= head.threshold or (p == best and p >= head.best_threshold)
    }


def _weighed(scores: Mapping[str, float]) -> SkillDetection:
    ordered = sorted(scores, key=lambda name: -scores[name])
    total = sum(scores.values())
    return SkillDetection(tuple(ordered), {name: scores[name] / total for name in ordered})


def _guide_example(text: str) -> SkillDetection | None:
    skills = GUIDE_EXAMPLES.get(" ".join(text.lower().split()).rstrip(".! "))
    return _weighed(dict.fromkeys(skills, 1.0)) if skills else None


def _custom_skill(name: object, definition: object) -> _CustomSkill:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(
            f"skill name {name!r:.70} must match [a-z][a-z0-9_]{{0,63}}: rename it, as in 'legal_advice'"
        )
    if name in SKILLS:
        raise UsageError(f"{name!r} is a built-in skill, which cannot be replaced: choose another name")
    if isinstance(definition, Mapping):
        unknown = set(definition) - {"keywords", "description", "examples"}
        if unknown:
            raise UsageError(
                f"skill {name!r} has the unknown field {min(map(str, unknown))!r}:"
                " use keywords, description and examples"
            )
        keywords = _texts(name, "keywords", definition.get("keywords", []))
        prototypes = _texts(name, "examples", definition.get("examples", []))
        if "description" in definition:
            prototypes += _texts(name, "description", [definition["description"]])
    else:
        entries = _texts(name, "list", definition)
        keywords = [entry for entry in entries if len(entry.split()) <= 3]
        prototypes = [entry for entry in entries if len(entry.split()) > 3]
    if not keywords and not prototypes:
        raise UsageError(f"skill {name!r} is empty: give it at least one keyword, or a description")
    for keyword in keywords:
        if (parts := len(parts_of(keyword))) > MAX_PARTS:
            raise UsageError(
                f"skill {name!r}: the keyword {keyword!r:.60} has {parts} words, spaces and signs, the limit "
                f"is {MAX_PARTS}: put it among the examples"
            )
    return _CustomSkill(tuple(keywords), tuple(prototypes))


def _texts(skill: str, field: str, value: object) -> list[str]:
    entries = value if isinstance(value, (list, tuple)) else [value]
    texts = [entry.strip() for entry in entries if isinstance(entry, str) and entry.strip()]
    if entries is not value or len(texts) < len(entries):
        raise UsageError(f"skill {skill!r}: {field} must be a list of texts, got {value!r:.60}: correct it")
    return texts
