"""Tasks of all kinds derived from other tasks' examples, in the numbers that are asked for."""

from __future__ import annotations

import random
from collections.abc import Sequence

from shoal.tasks.procedural.label_sets import Labels, label_sets
from shoal.tasks.procedural.relabel import COPY, relabel
from shoal.tasks.procedural.rewrites import Texts, rewrites
from shoal.tasks.records import Task

KINDS, WEIGHTS = ("rewrite", "labels", "copy"), (3, 1, 1)


def derived_tasks(tasks: Sequence[Task], *, copies: int = 0, sets: int = 0, texts: int = 0) -> list[Task]:
    """Tasks derived from these.

    Args:
        tasks: whose training examples are used.
        copies: of every task with a closed label set, under other label names.
        sets: tasks with a few labels of others.
        texts: tasks over texts of others.
    """
    relabelled = (relabel(task, seed) for seed in range(copies) for task in tasks)
    kept = [copy for copy in relabelled if copy is not None]
    return [*kept, *label_sets(tasks, sets), *rewrites(tasks, texts)]


class Derivation:
    """Tasks of all kinds derived from given ones, one after the other and without end."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        """Read the texts and labels of `tasks` once."""
        self._texts, self._labels = Texts(tasks), Labels(tasks)
        self._renamed = [task for task in tasks if relabel(task, 0) is not None]

    def task(self, rng: random.Random, name: str) -> Task | None:
        """A new task of a kind at random; None where the given ones are not suited to that kind."""
        kind = rng.choices(KINDS, WEIGHTS)[0]
        if kind == "copy":
            return relabel(rng.choice(self._renamed), rng.getrandbits(32)) if self._renamed else None
        source = self._texts if kind == "rewrite" else self._labels
        return source.task(rng, f"{kind}{COPY}{name}")
