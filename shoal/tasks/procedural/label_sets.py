"""New tasks from those with many labels: each has a few of the labels, and descriptions that list them.

Which labels there are, and from one task or from several, is drawn anew for every new task, so a model that
is trained on many of them has to read the names in the description. Knows nothing of how examples came about.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from shoal.tasks.procedural.relabel import COPY
from shoal.tasks.records import Example, Task

LEAST_LABELS, MOST_LABELS, MOST_WORDS = 4, 30, 4
EXAMPLES_A_LABEL = 8
SOURCES = (1, 1, 1, 2, 3)  # tasks whose labels are drawn together
SIZES = (2, 3, 3, 4, 4, 5, 6, 7, 8)

# {all}: "change PIN, new card or payday".
DESCRIPTIONS = (
    "Classify the text as {all}.",
    "Which of these is it: {all}?",
    "Answer with one of {all}.",
    "The labels are {all}. Choose the one that fits.",
    "Pick the right label: {all}.",
    "Decide between {all}.",
    "Is this {all}?",
    "Read the input and say which label it belongs to. Labels: {all}.",
    "Assign one of the following to the input: {all}.",
    "Give the category of the text, {all}. Nothing else.",
    "Sort each message into one group, {all}.",
    "You are given a short text. Reply with its label only, which is one of {all}.",
    "possible answers: {all}",
    "Label it {all}.",
    "What kind is it? Choose from {all}.",
    "Tell whether it is {all}.",
)
PARAPHRASES = 16


def label_sets(tasks: Sequence[Task], count: int, seed: int = 0) -> list[Task]:
    """`count` tasks with labels of `tasks`, or none where no task has as many labels as are needed.

    A task gives labels if it has `LEAST_LABELS` to `MOST_LABELS` of them, of at most `MOST_WORDS` words and
    without commas, with at least `EXAMPLES_A_LABEL` training examples each; numbers and letters are no labels.
    The results have no test part. They are named as relabelled copies are, and depend on the tasks, the count
    and the seed alone.
    """
    source = Labels(tasks)
    drawn = (source.task(random.Random(f"{seed}\n{n}"), f"labels{COPY}{seed}-{n}") for n in range(count))
    return [task for task in drawn if task is not None]


class Labels:
    """The labels of some tasks with their examples, read once, from which new tasks are drawn."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        """Keep the suitable labels of `tasks`; see `label_sets`."""
        self._given = [labels for task in tasks if len(labels := _labels(task)) >= LEAST_LABELS]

    def task(self, rng: random.Random, name: str) -> Task | None:
        """A new task of this name; None where no labels are suitable."""
        return _drawn(self._given, rng, name) if self._given else None


def _labels(task: Task) -> dict[str, list[Example]]:
    """The task's labels with their training examples; none where it is not suitable."""
    labels: dict[str, list[Example]] = {}
    for example in task.train:
        labels.setdefault(example.outputs[0], []).append(example)
    wordy = all(1 <= len(label.split()) <= MOST_WORDS for label in labels)
    if len(labels) > MOST_LABELS or not wordy:
        return {}
    return {
        label: examples
        for label, examples in labels.items()
        if len(examples) >= EXAMPLES_A_LABEL and sum(map(str.isalpha, label)) >= 2 and "," not in label
    }


def _drawn(given: Sequence[Mapping[str, list[Example]]], rng: random.Random, name: str) -> Task:
    sources = rng.sample(given, min(rng.choice(SOURCES), len(given)))
    pool = {label.casefold(): label for source in sources for label in source}  # of two alike the last
    size = min(rng.choice(SIZES), len(pool))
    labels = rng.sample(sorted(pool.values()), size)
    seen: dict[str, Example] = {}
    for source in sources:
        for label in labels:
            for example in source.get(label, ()):
                seen.setdefault(example.input, Example(example.input, (label,)))
    examples = list(seen.values())
    rng.shuffle(examples)
    texts = [
        rng.choice(DESCRIPTIONS).format(all=_listed(rng.sample(labels, size), rng))
        for _ in range(PARAPHRASES)
    ]
    return Task(name, "classification", texts[0], tuple(dict.fromkeys(texts)), tuple(examples), ())


def _listed(labels: Sequence[str], rng: random.Random) -> str:
    """The labels as a list in words, some of them quoted."""
    if rng.random() < 0.15:
        labels = [f'"{label}"' for label in labels]
    joint = rng.choice((" or ", ", ", " or ", ", or "))
    return joint.join((", ".join(labels[:-1]), labels[-1]))
