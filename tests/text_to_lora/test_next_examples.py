"""The value of more examples, and the inputs on which adapters that leave examples out disagree."""

from __future__ import annotations

import math

import pytest
import torch

from shoal.adapters.lora import LoRA, LoraFactors
from shoal.models.backbone import Backbone
from shoal.text_to_lora.gain import gain_of
from shoal.text_to_lora.next_examples import most_telling, next_note, promise


def test_gains_go_on_as_the_logarithm_of_the_number() -> None:
    gain = gain_of([2.0, 2.0], [1.0, 1.0])
    value = promise(gain, learned_from=3, examples=4)
    assert value.gain == pytest.approx(math.log(9 / 5) / math.log(4)) and value.pays
    later = promise(gain, learned_from=63, examples=64)
    assert 0 < later.gain < value.gain and not later.pays
    assert not promise(gain_of([1.0, 1.0], [1.5, 1.5]), 3, 4).pays


def test_the_note_names_no_input() -> None:
    facts = {"examples": 4, "gain": 0.31, "pays": True, "inputs": ("secret",), "spreads": (1.0,)}
    assert next_note(facts) == "4 more solved examples promise 0.31 nats per token less; give them."
    assert "little (0.01" in next_note({**facts, "gain": 0.01, "pays": False})


def test_inputs_are_ranked_by_how_adapters_disagree(sharp: Backbone) -> None:
    targets = sharp.shape.select(["q_proj", "v_proj"], None)
    lora = LoRA.identity(targets, 2, 4.0, generator=torch.Generator().manual_seed(0))

    def moved(seed: int) -> LoRA:
        noise = torch.Generator().manual_seed(seed)
        factors = {
            n: LoraFactors(f.a, 0.1 * torch.randn(f.b.shape, generator=noise))
            for n, f in lora.factors.items()
        }
        return LoRA(factors, lora.alpha)

    inputs = ["ape", "bumblebee", "cat", "dog"]
    ranked = most_telling(sharp, lora, [moved(1), moved(2), moved(3)], inputs, 4)
    spreads = [spread for _, spread in ranked]
    assert sorted(text for text, _ in ranked) == sorted(inputs)
    assert spreads == sorted(spreads, reverse=True) and spreads[0] > 0
    assert most_telling(sharp, lora, [moved(1), moved(2), moved(3)], inputs, 1) == ranked[:1]
    assert all(spread == 0 for _, spread in most_telling(sharp, lora, [lora, lora], inputs, 4))
