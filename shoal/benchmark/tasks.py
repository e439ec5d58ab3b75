"""The tasks that methods are compared on: made in code, or the validation tasks of a directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from shoal.config import BenchmarkConfig
from shoal.errors import UsageError
from shoal.procedural.catalogue import FAMILIES, procedural_tasks
from shoal.tasks import Task, load_split

TRAINING_EXAMPLES = 200

T = TypeVar("T")


def benchmark_tasks(config: BenchmarkConfig) -> list[Task]:
    """Tasks evenly chosen from all there are, so that each kind has its share.

    Raises:
        UsageError: there are fewer tasks than wanted, or one has fewer test examples.
        ShoalError: the task data is damaged.
    """
    if config.tasks is None:
        names = [family.name for family in FAMILIES]
        chosen = _evenly(names, config.num_tasks)
        tasks = procedural_tasks(
            chosen,
            size=TRAINING_EXAMPLES + config.examples,
            test_size=config.examples,
            seed=config.seed,
        )
        return [task for task in tasks if task.test]
    validation = load_split(Path(config.tasks)).validation
    return [t for t in _evenly(list(validation), config.num_tasks) if t.test]


def _evenly(things: Sequence[T], count: int) -> list[T]:
    if count > len(things):
        raise UsageError(f"num_tasks {count}: there are {len(things)}; choose at most as many")
    return [things[i * len(things) // count] for i in range(count)]
