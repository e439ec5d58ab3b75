"""Tasks of all kinds derived from other tasks' examples, in the numbers that are asked for."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.tasks.procedural.label_sets import label_sets
from shoal.tasks.procedural.relabel import relabel
from shoal.tasks.procedural.rewrites import rewrites
from shoal.tasks.records import Task


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
