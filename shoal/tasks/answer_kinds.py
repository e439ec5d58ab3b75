"""The kind of answer that a task asks for, by rule over its training examples, and a mix balanced by kind.

A mean over tasks hides what a training loses where most tasks are of one kind: labels crowd out rewriting.
Knows tasks as texts; nothing of tokens, models or descriptions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Literal

from shoal.errors import UsageError
from shoal.tasks.records import Example, Task

AnswerKind = Literal["label", "span", "rewrite", "sentence", "number", "structure"]
MixPart = Literal[AnswerKind, "long rewrite"]

EXAMPLES_READ = 200
MOST_LABELS = 32
TYPICAL = 0.6  # share of the examples that must show what makes a kind
LONG_WORDS = 10  # mean words of a long rewrite's answers
SPAN_LENGTH = 0.6  # of the input, at most

# Shares of the groups of examples that training draws.
BALANCED: Mapping[MixPart, float] = {
    "label": 0.2,
    "span": 0.12,
    "rewrite": 0.08,
    "long rewrite": 0.22,
    "sentence": 0.16,
    "number": 0.1,
    "structure": 0.12,
}

_NUMBER = re.compile(r"[^\w\s]{0,2}\d[\d.,:/\s-]*( ?[A-Za-z%°]{1,2})?", re.ASCII)
_MARKUP = re.compile(r"[{}\[\]<>|=;_\\`$]|\w\(|\w/\w|\s-\w|^[\w ]+: |\n")
_WORD = re.compile(r"\w+")


def answer_kind(task: Task) -> AnswerKind:
    """The first kind, in the order of the rules, that fits most of a task's first training answers.

    Numbers; labels, that is at most `MOST_LABELS` different answers, each given twice in the mean; structure,
    such as code, markup or fields; spans, whose parts all stand in the input and are well shorter than it;
    rewrites, which keep half of their words from the input at a similar length; else a new sentence, or word.
    """
    examples = list(islice(task.train or task.test, EXAMPLES_READ))
    answers = [example.outputs[0] for example in examples]

    def typical(shown: Sequence[object]) -> bool:
        return sum(map(bool, shown)) >= TYPICAL * len(shown)

    if typical([_NUMBER.fullmatch(answer) for answer in answers]):
        return "number"
    if len(set(answers)) <= min(MOST_LABELS, len(answers) // 2):
        return "label"
    if typical([_MARKUP.search(answer) for answer in answers]):
        return "structure"
    if typical([_is_span(example) for example in examples]):
        return "span"
    return "rewrite" if typical([_is_rewrite(example) for example in examples]) else "sentence"


def labels_of(task: Task) -> list[str]:
    """The different answers of a task's training examples, in alphabetical order.

    Raises:
        UsageError: fewer than 2 or more than `MOST_LABELS`.
    """
    labels = sorted({output for example in task.train for output in example.outputs})
    if not 2 <= len(labels) <= MOST_LABELS:
        raise UsageError(
            f"task {task.name} has {len(labels)} different answers, a closed set of labels has 2 to "
            f"{MOST_LABELS}; train it with the objective rloo"
        )
    return labels


def has_labels(task: Task) -> bool:
    """True where answers are labels: 2 to `MOST_LABELS` of them, each given twice or more in the mean."""
    answers = [output for example in task.train for output in example.outputs]
    return 2 <= len(set(answers)) <= min(MOST_LABELS, len(answers) // 2)


def mix_part(task: Task) -> MixPart:
    """The kind of a task's answers, with rewrites of `LONG_WORDS` words and more apart from the others."""
    kind = answer_kind(task)
    lengths = [len(example.outputs[0].split()) for example in islice(task.train, EXAMPLES_READ)]
    return "long rewrite" if kind == "rewrite" and sum(lengths) >= LONG_WORDS * len(lengths) else kind


def balanced_weights(tasks: Sequence[Task], shares: Mapping[MixPart, float] = BALANCED) -> list[float]:
    """The chance with which each task is drawn: every part has its share, divided evenly among its tasks.

    The shares of parts without any task go to the others.
    """
    parts = [mix_part(task) for task in tasks]
    counts = Counter(parts)
    weights = [shares[part] / counts[part] for part in parts]
    total = sum(weights)
    return [weight / total for weight in weights]


def _is_span(example: Example) -> bool:
    source, answer = example.input.casefold(), example.outputs[0].casefold()
    parts = [part.strip() for part in answer.split(",")]
    return len(answer) <= SPAN_LENGTH * len(source) and all(part in source for part in parts)


def _is_rewrite(example: Example) -> bool:
    source, answer = (Counter(_WORD.findall(text.casefold())) for text in (example.input, example.outputs[0]))
    kept = (source & answer).total()
    return (
        kept >= max(1, answer.total() / 2) and 0.4 * source.total() <= answer.total() <= 2.5 * source.total()
    )
