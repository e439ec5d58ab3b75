"""Descriptions for a hypernetwork in training: its tasks' own, and nonsense in their place.

Knows texts and their reader, nothing of examples, losses or steps.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from shoal.tasks.loading import Task
from shoal.text_to_lora.encoders.reader import DescriptionReader
from shoal.text_to_lora.nonsense import gibberish, vocabulary, word_salad


class Descriptions:
    """The descriptions of every task, as a network reads them.

    What is small, as sentence vectors and token states are, is read once and kept, the latter in bfloat16;
    what is not, as states of the backbone are not, is read whenever it is needed.
    """

    def __init__(self, reader: DescriptionReader, tasks: Sequence[Task | Sequence[str]]) -> None:
        """Read the descriptions of some tasks, which need not be more than their descriptions."""
        self._texts = [tuple(task.descriptions if isinstance(task, Task) else task) for task in tasks]
        self._vocabulary = vocabulary(self._texts)
        self._reader = reader
        self._kept: dict[str, Tensor] = {}
        if reader.small:
            texts = list(dict.fromkeys(text for own in self._texts for text in own))
            rows = reader.read(texts)  # at once, as the encoder sorts by length
            self._kept = {
                text: row.bfloat16() if row.dim() > 1 else row for text, row in zip(texts, rows, strict=True)
            }

    def __len__(self) -> int:
        return len(self._texts)

    def choose(self, task: int, chance: random.Random) -> str:
        """One of a task's descriptions."""
        return chance.choice(self._texts[task])

    def nonsense(self, chance: random.Random) -> str:
        """Random letters, or words of the descriptions at random, as many as a short description has."""
        seed, words = chance.random(), chance.randint(3, 16)
        return gibberish(seed, words) if seed < 0.5 else word_salad(seed, self._vocabulary, words)

    def read(self, texts: Sequence[str]) -> list[Float[Tensor, "*rows dim"]]:
        """Some descriptions as the network reads them."""
        new = [text for text in dict.fromkeys(texts) if text not in self._kept]
        read = dict(zip(new, self._reader.read(new), strict=True)) if new else {}
        return [read[text] if text in read else self._kept[text] for text in texts]

    def fingerprint(self) -> str:
        """Names the texts."""
        return hashlib.sha256(repr(self._texts).encode()).hexdigest()
