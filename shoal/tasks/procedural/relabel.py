"""The same task with other names for its labels, which every description states.

A model that is trained on many such variants has to read which answers are wanted instead of guessing them from
the input. Works on any task with a small closed set of labels; knows nothing of how its examples came about.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from shoal.tasks.records import Example, Task

COPY = "-relabelled-"  # in the name of every copy, and of every other task that is made of others' examples
MOST_LABELS = 12
MOST_WORDS = 3
MENTIONS_NEEDED = 4

INVENTED = tuple("zorp blick fendle quarn drask mulvo teppin ushka wexil jorble nanto kive".split())

# Words without a meaning of their own for the task; a set serves as many labels as it has words.
NEUTRAL = (
    ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"),
    ("A", "B", "C", "D", "E", "F", "G", "H", "I", "J", "K", "L"),
    ("1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"),
    ("red", "blue", "green", "yellow", "black", "white", "purple", "brown", "orange", "pink", "grey", "gold"),
    INVENTED,
    ("north", "south", "east", "west"),
    ("oak", "pine", "birch", "maple", "willow", "cedar", "elm", "ash", "beech", "palm", "larch", "poplar"),
    ("option 1", "option 2", "option 3", "option 4", "option 5", "option 6"),
    ("class A", "class B", "class C", "class D", "class E", "class F"),
    ("yes", "no"),
    ("true", "false"),
    ("left", "right"),
    ("+", "-"),
)
TRUTH = frozenset({"yes", "no", "true", "false"})


@dataclass(frozen=True)
class Form:
    """A way to write a label in which it can still be read.

    `way` names it: "Write the label in capitals". `inline` says whether the new label may stand where the old
    one stood in a description.
    """

    way: str
    write: Callable[[str], str]
    inline: bool = True


FORMS = (
    Form("in capitals", str.upper),
    Form("in angle brackets", lambda label: f"<{label}>"),
    Form("in square brackets", lambda label: f"[{label}]"),
    Form("in double quotes", lambda label: f'"{label}"'),
    Form('after "label: "', lambda label: f"label: {label}", inline=False),
    Form("between two pairs of asterisks", lambda label: f"**{label}**"),
    Form("as a hashtag", lambda label: "#" + label.replace(" ", "-")),
    Form("as JSON", lambda label: f'{{"label": "{label}"}}', inline=False),
    Form("after an arrow", lambda label: f"=> {label}", inline=False),
    Form("in parentheses", lambda label: f"({label})"),
)

# {each}: "alpha for even and beta for odd"; {pairs}: "even = alpha, odd = beta".
MAPPINGS = (
    "Answer {each}.",
    "Write {each}.",
    "Use these labels: {pairs}.",
    "The answers are renamed: {pairs}.",
    "Reply with {each}, nothing else.",
    "Instead of the usual labels say {each}.",
    "Code the answer like this: {pairs}.",
    "Labels: {pairs}.",
    "The output must be {each}.",
    "Please put {each}.",
)


def is_copy(task: Task) -> bool:
    """True where it was derived from other tasks' examples."""
    return COPY in task.name


def siblings(tasks: Sequence[Task]) -> dict[int, tuple[int, ...]]:
    """Position of a task -> positions of the same task under other label names, where there are any.

    These are its copies; of a copy, the original and the other copies. What is made of several tasks has none.
    """
    names = {task.name for task in tasks}
    families: dict[str, list[int]] = {}
    for place, task in enumerate(tasks):
        origin = task.name.split(COPY)[0]
        if origin in names:
            families.setdefault(origin, []).append(place)
    return {
        place: tuple(other for other in family if other != place)
        for family in families.values()
        if len(family) > 1
        for place in family
    }


def relabel(task: Task, seed: int) -> Task | None:
    """`task` with its labels renamed one to one, in its examples, definition and descriptions; else None.

    A task is suitable if its first outputs are 2 to `MOST_LABELS` labels of at most `MOST_WORDS` words, its
    test part has no others, and all of them stand in its definition or in `MENTIONS_NEEDED` descriptions.
    The result is named `<task>-relabelled-<seed>` and depends on the task and the seed alone.

    Raises:
        UsageError: the new name is longer than a task's name may be.
    """
    labels = _labels(task)
    if labels is None:
        return None
    rng = random.Random(f"{seed}\n{task.name}")
    form = rng.choice(_distinct_forms(labels)) if rng.random() < 0.5 else None
    renamed = _neutral(task, labels, rng) if form is None else {label: form.write(label) for label in labels}
    return replace(
        task,
        name=f"{task.name}{COPY}{seed}",
        definition=f"{task.definition} {_mapping(renamed, form, rng)}",
        descriptions=tuple(_restate(text, renamed, form, rng) for text in task.descriptions),
        train=_rename(task.train, renamed),
        test=_rename(task.test, renamed),
    )


def _labels(task: Task) -> tuple[str, ...] | None:
    """The labels in alphabetical order, or None where the task is not suitable."""
    labels = tuple(sorted({example.outputs[0] for example in task.train}))
    if not 2 <= len(labels) <= MOST_LABELS or len({label.casefold() for label in labels}) < len(labels):
        return None
    if any(len(label.split()) > MOST_WORDS or label != " ".join(label.split()) for label in labels):
        return None
    if any(example.outputs[0] not in labels for example in task.test):
        return None
    if _mentions_all(task.definition, labels):
        return labels
    mentioning = sum(_mentions_all(text, labels) for text in task.descriptions)
    return labels if mentioning >= MENTIONS_NEEDED else None


def _pattern(labels: Iterable[str]) -> re.Pattern[str]:
    """Any of the labels as whole words, the longest first."""
    longest_first = sorted(labels, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE)


def _mentioned(text: str, labels: Sequence[str]) -> list[str]:
    return [match[0].casefold() for match in _pattern(labels).finditer(text)]


def _mentions_all(text: str, labels: Sequence[str]) -> bool:
    return {label.casefold() for label in labels} <= set(_mentioned(text, labels))


def _distinct_forms(labels: Sequence[str]) -> list[Form]:
    """The forms that change every label and leave no two of them the same."""
    return [
        form for form in FORMS if len({form.write(label) for label in labels} - set(labels)) == len(labels)
    ]


def _neutral(task: Task, labels: Sequence[str], rng: random.Random) -> dict[str, str]:
    """The labels with words of a random set that is large enough and of which the task speaks nowhere."""
    spoken = set(re.findall(r"\w+|[-+]", " ".join((task.definition, *task.descriptions))))
    spoken |= {word.casefold() for word in spoken}
    spoken |= TRUTH if TRUTH & spoken else set()
    fitting = [names for names in NEUTRAL if len(names) >= len(labels) and spoken.isdisjoint(names)]
    names = list(rng.choice(fitting or [INVENTED])[: len(labels)])
    rng.shuffle(names)
    return dict(zip(labels, names, strict=True))


def _mapping(renamed: Mapping[str, str], form: Form | None, rng: random.Random) -> str:
    """A sentence that says for every label what is written instead."""
    entries = list(renamed.items())
    rng.shuffle(entries)
    each = [f"{new} for {old}" for old, new in entries]
    joined = f"{', '.join(each[:-1])} and {each[-1]}"
    pairs = ", ".join(f"{old} = {new}" for old, new in entries)
    if form is not None and rng.random() < 0.5:
        return f"Write the label {form.way}: {joined}."
    return rng.choice(MAPPINGS).format(each=joined, pairs=pairs)


def _restate(text: str, renamed: Mapping[str, str], form: Form | None, rng: random.Random) -> str:
    """The description with the new labels in it, or with a sentence that states them behind it."""
    labels = list(renamed)
    if form is not None and form.inline and rng.random() < 0.5 and _replaceable(text, labels):
        new = {label.casefold(): name for label, name in renamed.items()}
        return _pattern(labels).sub(lambda match: new[match[0].casefold()], text)
    end = "" if text.endswith((".", "?", "!")) else "."
    return f"{text}{end} {_mapping(renamed, form, rng)}"


def _replaceable(text: str, labels: Sequence[str]) -> bool:
    """True where every label stands in the text just once, and not between marks already."""
    found = _mentioned(text, labels)
    if sorted(found) != sorted(label.casefold() for label in labels):
        return False
    marks = re.compile(r"[\"'`<\[({#*>]")
    return not any(
        marks.match(text[match.start() - 1 : match.start()]) for match in _pattern(labels).finditer(text)
    )


def _rename(examples: Iterable[Example], renamed: Mapping[str, str]) -> tuple[Example, ...]:
    """The examples with new outputs; a further output that is no label is left out."""
    return tuple(
        Example(example.input, tuple(renamed[output] for output in example.outputs if output in renamed))
        for example in examples
    )
