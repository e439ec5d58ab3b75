"""Tasks from procedural puzzles: the generators of reasoning-gym.

reasoning-gym: Stojanovski et al. 2025, arXiv:2505.24760. It is imported where it is used. Knows nothing of
tokens, prompts or models.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from shoal.errors import ShoalError, UsageError, reason, shorten
from shoal.tasks.records import Example, Task, describe, divide

logger = logging.getLogger(__name__)


def load_reasoning_gym(
    generator: str,
    *,
    name: str | None = None,
    definition: str | None = None,
    descriptions: Sequence[str] = (),
    size: int = 660,
    test_size: int = 60,
    seed: int = 0,
    **config: Any,
) -> Task:
    """Generate `size` puzzles with one of reasoning-gym's generators.

    Without `definition` the first paragraph of the generator's documentation is taken. Puzzles that come out
    twice are joined, so there can be fewer than `size`. `config` is the generator's own (`min_digits=2`).

    Raises:
        UsageError: there is no such generator, it refuses `config`, it has no documentation to take, or it
            gives no answers (a few puzzles come with a verifier alone).
        ShoalError: reasoning-gym is not installed.
    """
    dataset = _open_generator(generator, size, seed, config)
    if definition is None:
        definition = " ".join((type(dataset).__doc__ or "").strip().split("\n\n")[0].split())
        if not definition:
            raise UsageError(
                f"reasoning-gym generator {generator} documents 0 words; give the task's definition"
            )
    answered = ((entry["question"], str(entry["answer"])) for entry in dataset if entry["answer"] is not None)
    examples = [Example(question, (answer,)) for question, answer in answered if answer.strip()]
    if not examples:
        raise UsageError(
            f"reasoning-gym generator {generator}: 0 of {size} puzzles come with an answer to learn "
            "from; choose another generator"
        )
    train, test = divide(examples, test_size=test_size, seed=seed)
    return Task(
        name=generator if name is None else name,
        category=dataset.category,
        definition=definition,
        descriptions=describe(definition, descriptions),
        train=train,
        test=test,
        source=("reasoning-gym",),
        license=("Apache-2.0",),
    )


def _open_generator(generator: str, size: int, seed: int, config: Mapping[str, Any]) -> Any:
    try:
        from reasoning_gym import factory
    except ImportError as error:
        raise ShoalError(f"reasoning-gym cannot be imported ({error}); pip install reasoning-gym") from None
    if generator not in factory.DATASETS:
        close = difflib.get_close_matches(generator, factory.DATASETS, n=1)
        hint = f"did you mean {close[0]}?" if close else "reasoning_gym.factory.DATASETS lists them"
        raise UsageError(
            f"reasoning-gym generator {shorten(generator)}: not one of {len(factory.DATASETS)}; {hint}"
        )
    if size < 1:
        raise UsageError(f"size {size}: must be at least 1; give a number of puzzles")
    try:
        return factory.create_dataset(generator, size=size, seed=seed, **config)
    except (AssertionError, TypeError, ValueError) as error:
        raise UsageError(
            f"reasoning-gym generator {generator}: refuses {dict(config)} ({reason(error)}); "
            "change its config"
        ) from None
