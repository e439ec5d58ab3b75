"""New tasks over the texts of others: something is done to every text, or said about it, as descriptions say.

What is done, with which words, signs and labels, and to the texts of which task is drawn anew for every new
task, so that a model which is trained on many of them has to read the description and to keep to the text. How
each is worded is in `shoal.tasks.procedural.rewrite_wording`.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from shoal.tasks.procedural.family import Rule
from shoal.tasks.procedural.relabel import COPY
from shoal.tasks.procedural.rewrite_wording import WORDING
from shoal.tasks.records import Example, Task

LEAST_WORDS, MOST_WORDS = 4, 25  # of a text
LEAST_TEXTS = 24  # of a task that gives any, and of a new one
MOST_TEXTS = 120
ATTEMPTS = 50

SIGNS = ("()", "[]", "{}", "<>", '""', "**", "~~", "||", "##", "__")
SEPARATORS = ("_", "-", "/", "|", "+", ", ", "; ", " - ")
COUNTS = {"two": 2, "three": 3, "four": 4, "five": 5}
PLACES = ("first", "second", "third", "fourth", "last")
WAYS = {
    "in capital letters": str.upper,
    "in upper case": str.upper,
    "in small letters": str.lower,
    "in lower case": str.lower,
}
LETTERS = "abcdefhilmnoprstw"


@dataclass(frozen=True)
class Draw:
    """The material from which an operation is drawn.

    Attributes:
        rng: decides.
        texts: of the task that gives them.
        words: of the texts of all tasks, each in one spelling; labels and other words are drawn from them.
    """

    rng: random.Random
    texts: Sequence[str]
    words: Sequence[str]

    def label(self) -> str:
        """One or two words."""
        return " ".join(self.rng.sample(self.words, self.rng.choice((1, 1, 2))))

    def frequent(self, least: float, most: float) -> str | None:
        """A word that stands in such a share of the texts, if one does."""
        found = Counter(word for text in self.texts for word in set(_words(text.lower())))
        count = len(self.texts)
        fitting = sorted(word for word, n in found.items() if least <= n / count <= most and word.isalpha())
        return self.rng.choice(fitting) if fitting else None


# What the descriptions are filled with, and the answer to a text, where "" leaves the text out.
Drawn = tuple[Mapping[str, str], Rule]


@dataclass(frozen=True)
class Operation:
    """A way to make a task.

    Attributes:
        name: in `WORDING`.
        category: of the task.
        draw: gives None where the texts do not suit it.
        weight: how often it is drawn, beside the others' weights.
    """

    name: str
    category: str
    draw: Callable[[Draw], Drawn | None]
    weight: int = 2


def rewrites(tasks: Sequence[Task], count: int, seed: int = 0) -> list[Task]:
    """At most `count` tasks over texts of `tasks`, or none where no task has as many short ones as are needed.

    A task gives the inputs of its training part that are one line of `LEAST_WORDS` to `MOST_WORDS` words
    with single spaces between them, if it has `LEAST_TEXTS` of them. The results have no test part. They
    are named as relabelled copies are, and depend on the tasks, the count and the seed alone.
    """
    source = Texts(tasks)
    drawn = (source.task(random.Random(f"{seed}\n{n}"), f"rewrite{COPY}{seed}-{n}") for n in range(count))
    return [task for task in drawn if task is not None]


class Texts:
    """The texts of some tasks, read once, from which new tasks are drawn; see `rewrites`."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        """Keep the suitable texts of `tasks`, and their words."""
        self._given = [texts for task in tasks if len(texts := _texts(task)) >= LEAST_TEXTS]
        spelt = {word.lower(): word for texts in self._given for text in texts for word in _words(text)}
        self._words = sorted(w for w in spelt.values() if len(w) > 2 and w.isascii() and w.isalpha())

    def task(self, rng: random.Random, name: str) -> Task | None:
        """A new task of this name; None where no texts are suitable, or none of `ATTEMPTS` draws gives one."""
        for _ in range(ATTEMPTS if self._given and len(self._words) > 1 else 0):
            task = _drawn_task(Draw(rng, rng.choice(self._given), self._words), name)
            if task is not None:
                return task
        return None


def _texts(task: Task) -> list[str]:
    inputs = (example.input for example in task.train)
    return [text for text in inputs if LEAST_WORDS <= text.count(" ") + 1 <= MOST_WORDS and _is_plain(text)]


def _is_plain(text: str) -> bool:
    """True where it is words with single spaces between them, so that all count them alike."""
    parts = text.split()
    return " ".join(parts) == text and all(re.search(r"\w", part) for part in parts)


def _drawn_task(draw: Draw, name: str) -> Task | None:
    """A task by an operation at random; None where the texts do not suit it."""
    operation = draw.rng.choices(OPERATIONS, [operation.weight for operation in OPERATIONS])[0]
    drawn = operation.draw(draw)
    if drawn is None:
        return None
    names, answer = drawn
    answers = [(text, reply) for text in draw.texts if (reply := answer(text))]
    draw.rng.shuffle(answers)
    chosen = _balanced(answers) if operation.category == "classification" else answers[:MOST_TEXTS]
    if len(chosen) < LEAST_TEXTS:
        return None
    descriptions = tuple(text.format(**names) for text in WORDING[operation.name])
    train = tuple(Example(text, (reply,)) for text, reply in chosen)
    return Task(name, operation.category, descriptions[0], descriptions, train, ())


def _balanced(answers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """As many texts of either answer as the rarer one has; none where there is but one."""
    counts = Counter(answer for _, answer in answers)
    left = dict.fromkeys(counts, min(*counts.values(), MOST_TEXTS // 2) if len(counts) > 1 else 0)
    chosen = []
    for text, answer in answers:
        if left[answer]:
            left[answer] -= 1
            chosen.append((text, answer))
    return chosen


def _bare(part: str) -> str:
    """A word without the signs around it."""
    return re.sub(r"^\W+|\W+$", "", part)


def _words(text: str) -> list[str]:
    return [word for part in text.split() if (word := _bare(part))]


def _whole(word: str) -> re.Pattern[str]:
    """The word by itself, not as a part of another one such as "it" in "it's"."""
    return re.compile(rf"(?<![\w'’-]){re.escape(word)}(?![\w'’-])", re.IGNORECASE)


def _always(draw: Draw) -> Drawn:
    label = draw.label()
    return {"label": label}, lambda text: label


def _two_labels(draw: Draw, holds: Callable[[str], bool], names: Mapping[str, str]) -> Drawn:
    yes, no = draw.label(), draw.label()
    return {**names, "yes": yes, "no": no}, lambda text: yes if holds(text) else no


def _contains(draw: Draw) -> Drawn | None:
    word = draw.frequent(0.15, 0.85)
    if word is None:
        return None
    pattern = _whole(word)
    return _two_labels(draw, lambda text: bool(pattern.search(text)), {"word": word})


def _long(draw: Draw) -> Drawn:
    lengths = sorted(len(text.split()) for text in draw.texts)
    limit = lengths[len(lengths) // 2]
    return _two_labels(draw, lambda text: len(text.split()) > limit, {"count": str(limit)})


def _ends(draw: Draw) -> Drawn:
    sign = draw.rng.choice("?.!")
    return _two_labels(draw, lambda text: text.endswith(sign), {"sign": sign})


def _starts(draw: Draw) -> Drawn:
    first = Counter(_words(text.lower())[0] for text in draw.texts)
    word = draw.rng.choice([word for word, _ in first.most_common(3)])
    return _two_labels(draw, lambda text: _words(text.lower())[0] == word, {"word": word})


def _copy(draw: Draw) -> Drawn:
    return {}, lambda text: text


def _wrap(draw: Draw) -> Drawn:
    signs = draw.rng.choice(SIGNS)
    left, right = signs[0], signs[1]
    return {"left": left, "right": right}, lambda text: f"{left}{text}{right}"


def _before(draw: Draw) -> Drawn:
    label = draw.label()
    return {"label": label}, lambda text: f"{label}: {text}"


def _after(draw: Draw) -> Drawn:
    label = draw.label()
    return {"label": label}, lambda text: f"{text} {label}"


def _replace(draw: Draw) -> Drawn | None:
    word = draw.frequent(0.1, 1)
    new = draw.rng.choice((draw.rng.choice(draw.words), "___", "[X]"))
    if word is None or word == new.lower():
        return None
    pattern = _whole(word)
    return {"word": word, "new": new}, lambda text: pattern.sub(new, text) if pattern.search(text) else ""


def _remove(draw: Draw) -> Drawn | None:
    word = draw.frequent(0.1, 1)
    if word is None:
        return None

    def without(text: str) -> str:
        parts = text.split()
        left = [part for part in parts if part.lower() != word]
        clean = all(_bare(part).lower() != word for part in left)  # else signs around it would be left over
        return " ".join(left) if clean and len(left) < len(parts) else ""

    return {"word": word}, without


def _word_at(draw: Draw) -> Drawn:
    place = draw.rng.choice(PLACES)
    at = -1 if place == "last" else PLACES.index(place)
    return {"place": place}, lambda text: _words(text)[at]


def _head(draw: Draw) -> Drawn:
    name, count = draw.rng.choice(list(COUNTS.items()))
    return {"count": name}, lambda text: " ".join(text.split()[:count]) if text.count(" ") >= count else ""


def _tail(draw: Draw) -> Drawn:
    name, count = draw.rng.choice(list(COUNTS.items()))
    return {"count": name}, lambda text: " ".join(text.split()[-count:]) if text.count(" ") >= count else ""


def _without_head(draw: Draw) -> Drawn:
    name, count = draw.rng.choice(list(COUNTS.items())[:2])
    return {"count": name}, lambda text: " ".join(text.split()[count:])


def _case(draw: Draw) -> Drawn:
    way = draw.rng.choice(list(WAYS))
    return {"way": way}, WAYS[way]


def _join(draw: Draw) -> Drawn:
    sign = draw.rng.choice(SEPARATORS)
    return {"sign": sign}, lambda text: sign.join(text.split())


def _twice(draw: Draw) -> Drawn:
    sign = draw.rng.choice(SEPARATORS[-3:])
    return {"sign": sign}, lambda text: f"{text}{sign}{text}" if text.count(" ") < 9 else ""


def _object(draw: Draw) -> Drawn:
    key = draw.rng.choice(draw.words).lower()
    return {"key": key}, lambda text: json.dumps({key: text}, ensure_ascii=False)


def _starting_with(draw: Draw) -> Drawn:
    letter = draw.rng.choice(LETTERS)
    return {"letter": letter}, lambda text: ", ".join(w for w in _words(text) if w.lower().startswith(letter))


def _longest(draw: Draw) -> Drawn:
    def longest(text: str) -> str:
        *_, second, first = sorted(_words(text), key=len)
        return first if len(first) > len(second) and first.isalpha() else ""

    return {}, longest


def _without_signs(draw: Draw) -> Drawn:
    def words(text: str) -> str:
        found = _words(text)
        return " ".join(found) if all(word.isalnum() for word in found) else ""

    return {}, words


OPERATIONS = (
    Operation("always", "constant", _always, 4),
    Operation("contains", "classification", _contains, 4),
    Operation("long", "classification", _long),
    Operation("ends", "classification", _ends),
    Operation("starts", "classification", _starts),
    Operation("copy", "rewriting", _copy, 1),
    Operation("wrap", "rewriting", _wrap),
    Operation("before", "rewriting", _before),
    Operation("after", "rewriting", _after),
    Operation("replace", "rewriting", _replace, 4),
    Operation("remove", "rewriting", _remove),
    Operation("word at", "extraction", _word_at),
    Operation("head", "extraction", _head),
    Operation("tail", "extraction", _tail),
    Operation("without head", "rewriting", _without_head),
    Operation("case", "rewriting", _case),
    Operation("join", "rewriting", _join),
    Operation("twice", "rewriting", _twice),
    Operation("object", "format", _object),
    Operation("starting with", "extraction", _starting_with),
    Operation("longest", "extraction", _longest, 1),
    Operation("without signs", "rewriting", _without_signs, 1),
)
