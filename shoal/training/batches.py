"""Tokenised examples and the order in which training sees them.

The order is a pure function of (seed, step), so a resumed run sees exactly the batches that an uninterrupted
one would. Knows nothing of models' weights, losses or optimisers.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.errors import UsageError
from shoal.models.backbone import Backbone
from shoal.tasks.loading import Task

log = logging.getLogger(__name__)

POOL_BATCHES = 32


@dataclass(frozen=True)
class TokenisedExample:
    """One example as token ids.

    Attributes:
        task: index of its task; -1 outside the corpus.
        index: its own index in the corpus; negative outside it.
        prompt: ids of the request.
        completion: ids of the first right answer with the end-of-turn token.
        place: where it stands in its task's `train` list.
        description: of its task, where that is not of the corpus.
    """

    task: int
    index: int
    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    place: int
    description: str | None = None

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class Corpus:
    """The training examples of some tasks, tokenised.

    Attributes:
        tasks: the tasks, in order.
        examples: for every task, its examples.
    """

    tasks: tuple[Task, ...]
    examples: tuple[tuple[TokenisedExample, ...], ...]


def tokenise(tasks: Sequence[Task], backbone: Backbone, max_length: int, *, describe: bool = False) -> Corpus:
    """Tokenise the `train` lists; examples of more than `max_length` tokens are left out, and logged.

    Args:
        tasks: whose `train` lists to take.
        backbone: whose template and tokenizer to use.
        max_length: tokens of prompt and completion.
        describe: put one of the task's descriptions before the input, each in its turn (a control: the
            adapter then need not carry it).

    Raises:
        UsageError: a task has no example, or none that fits.
    """
    examples, index, dropped = [], 0, 0
    same: dict[int, int] = {}  # one object a token id: a corpus has millions, and an int takes 28 bytes
    for number, task in enumerate(tasks):
        if not task.train:
            raise UsageError(f"task {task.name} has no training examples; add some, or leave the task out")
        texts = [task.described(e.input, i) if describe else e.input for i, e in enumerate(task.train)]
        prompts = backbone.encode_prompts(texts)
        completions = backbone.encode_completions([e.outputs[0] for e in task.train])
        fitting = []
        for place, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            if len(prompt) + len(completion) > max_length:
                dropped += 1
                continue
            asked, answered = (tuple(map(same.setdefault, ids, ids)) for ids in (prompt, completion))
            fitting.append(TokenisedExample(number, index, asked, answered, place))
            index += 1
        if not fitting:
            raise UsageError(
                f"none of the {len(task.train)} training examples of task {task.name} has at most "
                f"{max_length} tokens; raise max_length, or leave the task out"
            )
        examples.append(tuple(fitting))
    if dropped:
        log.info("left out %d of %d examples longer than %d tokens", dropped, dropped + index, max_length)
    return Corpus(tuple(tasks), tuple(examples))


class LengthWeights:
    """How much each example's loss counts: its answer's tokens to a power, with mean 1 over the tasks.

    A loss is a mean over an answer's tokens, so at exponent 0 the end-of-turn token is half of a one-word
    answer and a twentieth of a sentence; at 1 every token counts alike.
    """

    def __init__(self, corpus: Corpus, exponent: float, weights: Sequence[float] | None = None) -> None:
        """`weights` are those with which `BatchOrder` draws the corpus's tasks."""
        self._exponent = exponent
        own = [sum(self._of(e) for e in examples) / len(examples) for examples in corpus.examples]
        weights = weights or [1.0] * len(own)
        self._mean = sum(w * o for w, o in zip(weights, own, strict=True)) / sum(weights)

    def __call__(self, examples: Sequence[TokenisedExample]) -> Float[Tensor, " examples"]:
        """One weight an example, float32 on the CPU."""
        return torch.tensor([self._of(e) / self._mean for e in examples])

    def _of(self, example: TokenisedExample) -> float:
        return float(len(example.completion) ** self._exponent)


class BatchOrder:
    """Length-bucketed batches: tasks are drawn evenly or by weights; a pool is sorted by length and cut.

    Every task that is drawn gives `group` consecutive examples of similar length, which can share an adapter.
    """

    def __init__(
        self,
        corpus: Corpus,
        batch_size: int,
        seed: int,
        group: int = 1,
        weights: Sequence[float] | None = None,
        fresh: Callable[[int], list[list[TokenisedExample]]] | None = None,
    ) -> None:
        """Batches of `batch_size` examples.

        Args:
            corpus: the examples.
            batch_size: examples a batch.
            seed: of the order.
            group: examples of one task that are drawn together.
            weights: how often each task is drawn, relative to the others; None for all alike, in rounds.
            fresh: number of a pool -> groups from outside the corpus, in the place of as many drawn ones.

        Raises:
            UsageError: `group` does not divide the batch size.
        """
        if batch_size % group:
            raise UsageError(
                f"batch_size {batch_size} is not a multiple of examples_a_task {group}; change one of them"
            )
        self._batch_size = batch_size
        self._seed = seed
        self._group = group
        self._weights = weights
        self._fresh = fresh
        self._examples = [sorted(examples, key=lambda e: e.length) for examples in corpus.examples]
        self._pool: tuple[int, list[list[TokenisedExample]]] = (-1, [])

    def batch(self, step: int) -> list[TokenisedExample]:
        """The examples of one forward pass, of similar length; `step` counts forward passes from 0."""
        number, position = divmod(step, POOL_BATCHES)
        if self._pool[0] != number:
            self._pool = (number, self._draw_pool(number))
        return self._pool[1][position]

    def _draw_pool(self, number: int) -> list[list[TokenisedExample]]:
        chance = random.Random(f"{self._seed}/{number}")
        tasks = list(range(len(self._examples)))
        size = self._batch_size // self._group  # groups a batch
        drawn: list[list[TokenisedExample]] = self._fresh(number) if self._fresh else []
        while len(drawn) < POOL_BATCHES * size:
            if self._weights is None:
                chance.shuffle(tasks)
            else:
                tasks = chance.choices(range(len(self._examples)), self._weights, k=POOL_BATCHES * size)
            drawn += [self._draw_group(self._examples[t], chance) for t in tasks]
        drawn = drawn[: POOL_BATCHES * size]
        drawn.sort(key=lambda group: max(e.length for e in group))
        batches = [[e for group in drawn[i : i + size] for e in group] for i in range(0, len(drawn), size)]
        chance.shuffle(batches)
        return batches

    def _draw_group(self, examples: list[TokenisedExample], chance: random.Random) -> list[TokenisedExample]:
        start = chance.randrange(max(1, len(examples) - self._group + 1))
        return [examples[(start + i) % len(examples)] for i in range(self._group)]
