"""Adapters that leave an example out, against trainings without it."""

from __future__ import annotations

import pytest
import torch

from shoal.adapters.hooks import attach
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.inference.forward import answer_losses, pad_sequences
from shoal.models.backbone import Backbone
from shoal.tasks.loading import Example, Task
from shoal.training.batches import TokenisedExample, tokenise
from shoal.training.refining import RefiningRun

RATE, DECAY = 3e-3, 0.05


@pytest.fixture
def start(sharp: Backbone) -> LoRA:
    generator = torch.Generator().manual_seed(0)
    lora = LoRA.identity(sharp.shape.select(["q_proj", "v_proj"], None), 2, 4.0, generator=generator)
    factors = {
        n: LoraFactors(f.a, 0.05 * torch.randn(f.b.shape, generator=generator))
        for n, f in lora.factors.items()
    }
    return LoRA(factors, lora.alpha)


@pytest.fixture
def shots(sharp: Backbone) -> tuple[TokenisedExample, ...]:
    words = ["ape", "bee", "cat", "doe", "eel"]
    examples = tuple(Example(word, (word.upper(),)) for word in words)
    return tokenise([Task("upper", "words", "Shout.", ("Shout.",), examples, ())], sharp, 200).examples[0]


def run(backbone: Backbone, lora: LoRA, shots: tuple, steps: int, left_out: int = 0) -> RefiningRun:
    own = RefiningRun(
        backbone, lora, shots, dict.fromkeys(lora.factors, RATE), decay=DECAY, left_out=left_out
    )
    own.marks.add(steps - 1)  # the last state alone is looked at
    assert len(list(own.steps(steps))) == steps
    return own


def loss_of(backbone: Backbone, lora: LoRA, example: TokenisedExample) -> float:
    pair = (example.prompt, example.completion)
    batch = pad_sequences([pair], backbone.end_of_turn, backbone.device)
    with torch.no_grad(), attach(backbone.model, lora):
        return float(answer_losses(backbone, batch)[0])


def retrained(backbone: Backbone, lora: LoRA, shots: tuple, steps: int) -> list[float]:
    """The loss of every example after as many steps on the others."""
    others = [tuple(e for e in shots if e is not left) for left in shots]
    adapters = [run(backbone, lora, own, steps).lora() for own in others]
    return [loss_of(backbone, own, left) for own, left in zip(adapters, shots, strict=True)]


def test_after_one_step_it_is_exact(sharp: Backbone, start: LoRA, shots: tuple) -> None:
    """But where a gradient is 0 up to rounding, whose sign Adam's first step follows."""
    followed = run(sharp, start, shots, 1, left_out=5)._others
    assert followed is not None
    for number in range(5):
        again = run(sharp, start, shots[:number] + shots[number + 1 :], 1).lora()
        expected = torch.cat([f.flatten() for pair in again.factors.values() for f in pair])
        found = torch.cat([own[number].flatten() for own in followed.factors])
        assert float(((found - expected).abs() < 1e-5).float().mean()) > 0.9


def test_after_more_steps_it_is_near_what_training_again_gives(
    sharp: Backbone, start: LoRA, shots: tuple
) -> None:
    followed = run(sharp, start, shots, 8, left_out=5)
    found, exact = torch.tensor(followed.left_out_losses(7)), torch.tensor(retrained(sharp, start, shots, 8))
    trained = followed.lora()
    seen = torch.tensor([loss_of(sharp, trained, example) for example in shots])
    assert float((found - exact).abs().mean()) < 0.2 * float((exact - seen).abs().mean())


def test_the_training_is_as_without(sharp: Backbone, start: LoRA, shots: tuple) -> None:
    plain, followed = run(sharp, start, shots, 6), run(sharp, start, shots, 6, left_out=3)
    for name, pair in plain.lora().factors.items():
        torch.testing.assert_close(followed.lora().factors[name], pair, atol=2e-4, rtol=1e-3)
    assert plain.left_out_losses(5) == [] and len(followed.left_out_losses(5)) == 3
