"""The value of the next solved examples: the gain that some more promise, and the inputs to label first.

Knows gains, adapters and inputs; nothing of how an adapter was refined.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.adapters.lora import LoRA
from shoal.inference.generate import generate_greedy
from shoal.inference.scoring import reference_losses
from shoal.models.backbone import Backbone
from shoal.text_to_lora.gain import Gain

MORE = 4
LEAST_GAIN = 0.05  # nats per token that are worth labelling for
ANSWER_TOKENS = 24


@dataclass(frozen=True)
class NextExamples:
    """The value of more solved examples.

    Attributes:
        examples: examples more.
        gain: expected fall of the loss on new requests, nats per token.
        pays: it is at least `LEAST_GAIN`.
        inputs: inputs without answers that are worth labelling first, the most telling one first.
        spreads: of each, how much adapters that leave an example out disagree, nats per token.
    """

    examples: int
    gain: float
    pays: bool
    inputs: tuple[str, ...] = ()
    spreads: tuple[float, ...] = ()


def promise(gain: Gain, learned_from: int, examples: int, more: int = MORE) -> NextExamples:
    """The value of `more` examples if gains go on as the logarithm of 1 + their number.

    Args:
        gain: measured.
        learned_from: examples that it comes from.
        examples: that there are.
        more: examples.
    """
    slope = (gain.loss_before - gain.loss_after) / math.log(1 + learned_from)
    expected = slope * math.log((1 + examples + more) / (1 + examples))
    return NextExamples(more, expected, expected >= LEAST_GAIN)


def most_telling(
    backbone: Backbone, lora: LoRA, others: Sequence[LoRA], inputs: Sequence[str], count: int
) -> list[tuple[str, float]]:
    """The inputs on which some adapters disagree most, each with the spread of its losses.

    The answer of `lora` to every input, of at most `ANSWER_TOKENS` tokens, is scored by each of the others;
    the spread is the standard deviation of its losses, nats per token. That is one greedy answer and
    `len(others)` forward passes for each input.

    Args:
        backbone: the frozen model.
        lora: the adapter in use.
        others: at least two that leave an example out.
        inputs: without answers.
        count: inputs that are wanted.
    """
    lora = lora.to(backbone.device)
    answers = generate_greedy(backbone, inputs, lora, max_new_tokens=ANSWER_TOKENS)
    losses = [reference_losses(backbone, inputs, answers, own.to(backbone.device)) for own in others]
    spreads = [statistics.stdev(own) for own in zip(*losses, strict=True)]
    order = sorted(range(len(inputs)), key=lambda place: -spreads[place])
    return [(inputs[place], spreads[place]) for place in order[:count]]


def next_note(facts: Mapping[str, Any]) -> str:
    """`next_examples` of an adapter's facts, as a sentence that names no input."""
    count, gain = facts["examples"], facts["gain"]
    if facts["pays"]:
        return f"{count} more solved examples promise {gain:.2f} nats per token less; give them."
    return f"{count} more solved examples promise little ({gain:.2f} nats per token)."
