"""The rows of a report that tell what a description is worth: right, another task's, meaningless and none.

Beside them, the retrieval baseline: the library task whose descriptions are nearest. Knows emitters,
encoders and tasks; nothing of how answers are generated or scored.

Source: Charakorn et al., arXiv 2506.06105, section 5 (descriptions that fit the task, and that do not).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from shoal.errors import UsageError
from shoal.evaluation.evaluate import Method
from shoal.tasks.loading import Task
from shoal.text_to_lora.emission import Emitter
from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.text_to_lora.nonsense import gibberish

RIGHT = "Text-to-LoRA"
OTHER = "Text-to-LoRA, another task's description"
GIBBERISH = "Text-to-LoRA, gibberish"
NONE = "Text-to-LoRA, no description"


def right_description(emitter: Emitter, index: int = 0) -> Method:
    """Adapters from each task's own description number `index`, from 0; the count wraps around."""
    return described_by(RIGHT, emitter, lambda task: _description(task, index))


def other_description(emitter: Emitter, tasks: Sequence[Task]) -> Method:
    """Adapters from the first description of another of the tasks: the one half the list further on.

    Raises:
        UsageError: fewer than two tasks.
    """
    if len(tasks) < 2:
        raise UsageError(f"another task's description needs at least 2 tasks, got {len(tasks)}; add one")
    others = [*tasks[len(tasks) // 2 :], *tasks[: len(tasks) // 2]]
    wrong = {task.name: _description(other) for task, other in zip(tasks, others, strict=True)}
    return described_by(OTHER, emitter, lambda task: wrong[task.name])


def gibberish_description(emitter: Emitter, seed: int = 0) -> Method:
    """Adapters from random letters, others for every task."""
    return described_by(GIBBERISH, emitter, lambda task: gibberish(f"{seed}/{task.name}"))


def no_description(emitter: Emitter) -> Method:
    """The adapter of a description that says nothing."""
    return Method(NONE, lambda task: emitter.fallback)


def described_by(name: str, emitter: Emitter, describe: Callable[[Task], str]) -> Method:
    """Adapters from whatever description a function gives a task, as they are emitted."""
    return Method(name, lambda task: emitter.emit([describe(task)]).adapters.row(0))


def far_tasks(emitter: Emitter, tasks: Sequence[Task]) -> list[str]:
    """Names of the tasks whose first description is far from every training task, where those are known."""
    known = emitter.checkpoint.known_tasks
    if known is None:
        return []
    found = known.compare(emitter.encoder.encode([_description(task) for task in tasks]))
    return [task.name for task, one in zip(tasks, found, strict=True) if one.far or one.nonsense]


def nearest_tasks(
    encoder: TaskEncoder, tasks: Sequence[Task], library: Sequence[Task], *, descriptions: int = 16
) -> list[Task]:
    """For every task, the library's whose mean description embedding is nearest to its first description.

    Args:
        encoder: reads the descriptions.
        tasks: whose first description asks.
        library: to choose from.
        descriptions: of each library task, at most, whose embeddings are averaged.

    Raises:
        UsageError: the library is empty.
    """
    if not library:
        raise UsageError("the nearest task needs a library of at least 1 task, got none; give its tasks")
    read = [task.descriptions[:descriptions] for task in library]
    encoder.encode([text for texts in read for text in texts])  # in full batches; the cache keeps them
    means = F.normalize(torch.stack([encoder.encode(texts).mean(0) for texts in read]), dim=-1)
    asked = encoder.encode([_description(task) for task in tasks])
    return [library[index] for index in (asked @ means.T).argmax(-1).tolist()]


def _description(task: Task, index: int = 0) -> str:
    return task.descriptions[index % len(task.descriptions)]
