"""The training tasks of a hypernetwork as points, and nonsense to tell their descriptions from.

Knows an encoder and tasks; `shoal.text_to_lora.familiarity` holds the measure.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

from shoal.errors import UsageError
from shoal.tasks.loading import Task
from shoal.tasks.procedural.relabel import is_copy
from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.text_to_lora.familiarity import KnownTasks
from shoal.text_to_lora.nonsense import gibberish, vocabulary, word_salad

log = logging.getLogger(__name__)

DESCRIPTIONS_PER_TASK = 24  # that familiarity is measured on
LEAST_NONSENSE, MOST_NONSENSE = 100, 1000  # texts of each kind; between these, one for every 4 descriptions


def known_tasks(encoder: TaskEncoder, tasks: Sequence[Task]) -> KnownTasks | None:
    """Where training tasks are, by their first descriptions, and what tells those from nonsense.

    Tasks derived from others' examples are no places, as copies are beside their originals and no unseen task
    is beside a trained one; but what describes them is no nonsense. None, with a warning, where that tells
    nothing: a few tasks are as far from one another as from nonsense.
    """
    originals = [task for task in tasks if not is_copy(task)]
    texts = [first_descriptions(task) for task in originals]
    derived = [text for task in tasks if is_copy(task) for text in first_descriptions(task)]
    log.info("measuring how far the descriptions of %d tasks are from one another", len(tasks))
    words = vocabulary(texts)
    read = encoder.encode([*(text for own in texts for text in own), *derived])
    own, others = read.split([sum(map(len, texts)), len(derived)])
    chance = random.Random("known tasks")
    count = min(MOST_NONSENSE, max(LEAST_NONSENSE, sum(map(len, texts)) // 4))
    lengths = [chance.randint(3, 16) for _ in range(count)]
    letters = [gibberish(f"known tasks/{number}", length) for number, length in enumerate(lengths)]
    salad = [word_salad(f"known tasks/{number}", words, length) for number, length in enumerate(lengths)]
    try:
        return KnownTasks.measure(
            [task.name for task in originals],
            list(own.split([len(some) for some in texts])),
            encoder.encode(letters),
            encoder.encode(salad),
            others if derived else None,
        )
    except UsageError as error:
        log.warning("the hypernetwork cannot tell how near a description is to its tasks: %s", error)
        return None


def first_descriptions(task: Task) -> list[str]:
    """The descriptions of a task by which its place is measured."""
    return list(task.descriptions[:DESCRIPTIONS_PER_TASK])
