"""The tasks that methods are compared on: made in code, or the validation tasks of a directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from shoal.errors import UsageError
from shoal.evaluation.benchmark.config import BenchmarkConfig
from shoal.tasks.loading import Task, load_split
from shoal.tasks.procedural.catalogue import FAMILIES, procedural_tasks

TRAINING_EXAMPLES = 200

T = TypeVar("T")


def benchmark_tasks(config: BenchmarkConfig) -> list[Task]:
    """Tasks evenly chosen from all there are, so that each kind has its share.

    Raises:
        UsageError: there are fewer tasks than wanted, or none of them has a test example.
        ShoalError: the task data is damaged.
    """
    if config.tasks is None:
        names = _evenly([family.name for family in FAMILIES], config.num_tasks)
        size = TRAINING_EXAMPLES + config.examples
        tasks = procedural_tasks(names, size=size, test_size=config.examples, seed=config.seed)
    else:
        tasks = _evenly(list(load_split(Path(config.tasks)).validation), config.num_tasks)
    tested = [task for task in tasks if task.test]
    if not tested:
        raise UsageError(f"none of {len(tasks)} tasks has test examples; give some a list under `test`")
    return tested


def _evenly(things: Sequence[T], count: int) -> list[T]:
    if count > len(things):
        raise UsageError(f"num_tasks {count}: there are {len(things)}; choose at most as many")
    return [things[i * len(things) // count] for i in range(count)]
