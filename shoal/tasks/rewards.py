"""Verifiable rewards: what an answer earns on an example, in [0, 1]. Knows text only."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from shoal.tasks.metrics import exact_match, rouge_l
from shoal.tasks.records import Example

Reward = Callable[[Example, str], float]

_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?|[-+]?\.\d+")


def exact(example: Example, answer: str) -> float:
    """1 if the answer is one of the right ones, as `metrics.exact_match` compares them."""
    return exact_match(answer, example.outputs)


def label(example: Example, answer: str) -> float:
    """1 if the first line of the answer is a right label, quotes and closing punctuation aside."""
    lines = answer.strip().splitlines() or [""]
    return exact_match(lines[0].strip(" \t\"'`.,;:!*"), example.outputs)


def numeric(example: Example, answer: str) -> float:
    """1 if the last number of the answer equals that of a right one, to a relative 1e-6."""
    given = _last_number(answer)
    wanted = [number for output in example.outputs if (number := _last_number(output)) is not None]
    return float(given is not None and any(math.isclose(given, n, rel_tol=1e-6) for n in wanted))


def overlap(example: Example, answer: str) -> float:
    """ROUGE-L against the best right answer."""
    return rouge_l(answer, example.outputs)


def form(example: Example, answer: str) -> float:
    """1 if the answer is written as a right one: words, numbers and signs in the same order."""
    return float(_pattern(answer) in {_pattern(output) for output in example.outputs})


REWARDS: dict[str, Reward] = {
    "exact_match": exact,
    "label": label,
    "numeric": numeric,
    "rouge_l": overlap,
    "format": form,
}


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _pattern(text: str) -> str:
    """Every run of letters as `a`, of digits as `9`, of spaces as one space; signs as they are."""
    text = re.sub(r"[^\W\d_]+", "a", text.strip())
    return re.sub(r"\s+", " ", re.sub(r"\d+", "9", text))
