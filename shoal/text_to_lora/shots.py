"""Solved examples as text behind a description, for a network that reads both in one pass of the base model.

Knows texts and how long they are in tokens; nothing of networks or adapters.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from shoal.models.backbone import Backbone
from shoal.tasks.records import Example
from shoal.tasks.texts import normalise
from shoal.text_to_lora.encoders.states import SHOT_TOKENS

DRAWS = 4  # examples that are looked at in training for every one that is wanted, as long ones are left out


@dataclass(frozen=True)
class ShotsRead:
    """The use that a network has made of some examples.

    Attributes:
        read: examples that it read behind the description.
        long: examples of more than `SHOT_TOKENS` tokens, which were left out.
    """

    read: int
    long: int


def as_text(shot: Example) -> str:
    """An example as it stands behind a description."""
    return f"\n\nInput: {shot.input}\nOutput: {shot.outputs[0]}"


def with_shots(description: str, shots: Sequence[Example]) -> str:
    """A description and the examples behind it; without any, the description as it is."""
    return "".join([description, *map(as_text, shots)])


def short_shots(backbone: Backbone, examples: Sequence[Example]) -> list[Example]:
    """The examples that have at most `SHOT_TOKENS` tokens as text."""
    return [e for e in examples if len(backbone.encode_text(as_text(e))) <= SHOT_TOKENS]


def draw_shots(
    backbone: Backbone, examples: Sequence[Example], asked: Collection[int], most: int, chance: random.Random
) -> list[Example]:
    """0 to `most` short examples for training, none of an input that is asked.

    Args:
        backbone: whose tokens are counted.
        examples: of one task.
        asked: places in `examples` of those that the adapter will be asked.
        most: examples, at most.
        chance: draws how many, and which.
    """
    count = chance.randint(0, most)
    places = chance.sample(range(len(examples)), min(len(examples), DRAWS * count))
    known = {normalise(examples[place].input) for place in asked}
    others = [examples[place] for place in places if normalise(examples[place].input) not in known]
    return short_shots(backbone, others)[:count]
