"""Families of procedural tasks, and the ways to put an input and its answer together.

Knows nothing of any one family, of the division into train and test, or of models.
"""

from __future__ import annotations

import random
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Pair = tuple[str, str]
Draw = Callable[[random.Random], str]
Rule = Callable[[str], str]
Make = Callable[[random.Random], Pair]

ATTEMPTS = 400


@dataclass(frozen=True)
class Family:
    """One kind of question: how it is described, and how an (input, output) pair of it is made.

    `definition` says exactly what comes in and what goes out; `descriptions` are paraphrases that a user
    might type; `make` draws everything that is random about a pair from the generator that it is given.
    """

    name: str
    category: str
    definition: str
    descriptions: tuple[str, ...]
    make: Make


def lines(text: str) -> tuple[str, ...]:
    """The lines of an indented block, blank ones left out; a line that is indented more continues the last."""
    found: list[str] = []
    for line in textwrap.dedent(text).splitlines():
        if line.startswith(" "):
            found[-1] += " " + line.strip()
        elif line:
            found.append(line.rstrip())
    return tuple(found)


def over(draw: Draw, answer: Rule) -> Make:
    """Pairs of a drawn input and the answer that follows from it."""

    def make(rng: random.Random) -> Pair:
        text = draw(rng)
        return text, answer(text)

    return make


def where(draw: Draw, wanted: Callable[[str], bool]) -> Draw:
    """Inputs that are `wanted`; the last of `ATTEMPTS` draws if none of them is."""

    def filtered(rng: random.Random) -> str:
        text = draw(rng)
        for _ in range(ATTEMPTS):
            if wanted(text):
                break
            text = draw(rng)
        return text

    return filtered


def balanced(draw: Draw, rule: Rule, labels: Sequence[str]) -> Make:
    """Pairs in which each label is about as frequent as the others, however rare it is among the inputs."""

    def make(rng: random.Random) -> Pair:
        label = rng.choice(labels)
        text = where(draw, lambda text: rule(text) == label)(rng)
        return text, rule(text)

    return make
