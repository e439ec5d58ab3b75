"""Tasks that are drawn anew while a training goes on, by worker processes, and never come twice.

What a pool of batches gets is a pure function of (seed, number of the pool), however many workers there are,
so a resumed run sees what an uninterrupted one would. Knows tasks and tokens; nothing of models' weights.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch.utils.data import DataLoader, Dataset

from shoal.config import HypernetworkTrainingConfig
from shoal.errors import UsageError
from shoal.models.backbone import Backbone, load_wording
from shoal.tasks.procedural.derived import Derivation
from shoal.tasks.procedural.relabel import is_copy
from shoal.tasks.records import Example, Task
from shoal.training.batches import POOL_BATCHES, TokenisedExample, tokenise

Group = list[TokenisedExample]

LAST_POOL = 2**31
POOLS_AHEAD = 2  # that each worker has ready
FRUITLESS = 100  # draws in a row without a task, after which there are none


class FreshTasks(Dataset[list[Group]]):
    """For every pool of batches, groups of examples, each of a new task over the given ones' examples.

    An example carries its description; its task is -1, and its index negative: it comes once.
    """

    def __init__(
        self, tasks: Sequence[Task], base_model: str, *, seed: int, groups: int, group: int, max_length: int
    ) -> None:
        """Groups for each pool.

        Args:
            tasks: whose training examples new tasks are derived from.
            base_model: whose template and tokenizer to use.
            seed: of the draws.
            groups: in a pool.
            group: examples of one task.
            max_length: tokens of prompt and completion; longer examples are left out.

        Raises:
            UsageError: no task can be derived from these.
        """
        self._tasks = tuple(tasks)
        self._base_model = base_model
        self._seed, self._groups, self._group, self._max_length = seed, groups, group, max_length
        self._loaded: tuple[Derivation, Backbone] | None = None
        self._draw(random.Random(f"{seed}/first"), "first", -1)

    def __getstate__(self) -> dict[str, object]:
        """What a worker gets; it reads the tokenizer itself."""
        return {**self.__dict__, "_loaded": None}

    def __len__(self) -> int:
        return LAST_POOL

    def __getitem__(self, number: int) -> list[Group]:
        """The groups of a pool."""
        chance = random.Random(f"{self._seed}/{number}/fresh")
        first = number * self._groups
        return [
            self._draw(chance, f"fresh-{number}-{i}", -1 - (first + i) * self._group)
            for i in range(self._groups)
        ]

    def _draw(self, chance: random.Random, name: str, index: int) -> Group:
        """Examples of one new task with similar lengths, their indices going down from `index`."""
        if self._loaded is None:
            self._loaded = Derivation(self._tasks), load_wording(self._base_model)
        derivation, wording = self._loaded
        for attempt in range(FRUITLESS):
            task = derivation.task(chance, f"{name}-{attempt}")
            if task is None:
                continue
            try:
                own = tokenise([_with_neighbours(task, self._group, chance)], wording, self._max_length)
            except UsageError:  # none is short enough
                continue
            examples = own.examples[0]
            text = chance.choice(task.descriptions)
            return [
                replace(examples[i % len(examples)], task=-1, index=index - i, description=text)
                for i in range(self._group)
            ]
        raise UsageError(
            f"no new tasks can be derived from the {len(self._tasks)} given ones in {FRUITLESS} draws: they "
            "need short texts, or closed sets of labels; set fresh_share to 0"
        )


class FreshPools:
    """The groups of pools in order, drawn ahead by worker processes, or on the spot without any."""

    def __init__(self, fresh: FreshTasks, workers: int) -> None:
        """Start no worker yet."""
        self._fresh = fresh
        self._workers = workers
        self._next = -1
        self._ahead: Iterator[list[Group]] = iter(())

    def __call__(self, number: int) -> list[Group]:
        """The groups of a pool; any order is right, an ascending one is fast."""
        if not self._workers:
            return self._fresh[number]
        if number != self._next:
            self._ahead = iter(
                DataLoader(
                    self._fresh,
                    batch_size=None,
                    sampler=range(number, LAST_POOL),
                    num_workers=self._workers,
                    prefetch_factor=POOLS_AHEAD,
                    collate_fn=_as_it_is,
                    multiprocessing_context="spawn",  # a fork of a process with threads may hang
                )
            )
        self._next = number + 1
        return next(self._ahead)


def fresh_pools(
    tasks: Sequence[Task], base_model: str, config: HypernetworkTrainingConfig
) -> FreshPools | None:
    """What takes the place of `config.fresh_share` of every pool's groups; None for nothing.

    Raises:
        UsageError: as `FreshTasks`.
    """
    groups = round(config.fresh_share * POOL_BATCHES * config.batch_size / config.examples_a_task)
    if not groups:
        return None
    fresh = FreshTasks(
        [task for task in tasks if not is_copy(task)],
        base_model,
        seed=config.seed,
        groups=groups,
        group=config.examples_a_task,
        max_length=config.max_length,
    )
    return FreshPools(fresh, config.fresh_workers)


def _as_it_is(groups: list[Group]) -> list[Group]:
    return groups


def _with_neighbours(task: Task, count: int, chance: random.Random) -> Task:
    """The task with so many of its training examples, which have similar lengths."""
    examples = sorted(task.train, key=_length)
    start = chance.randrange(max(1, len(examples) - count + 1))
    return replace(task, train=tuple(examples[start : start + count]))


def _length(example: Example) -> int:
    return len(example.input) + len(example.outputs[0])
