"""Steps at a rate for every module, and their derivative against the exact one through the unrolled loop."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from shoal.adapters.hooks import attach
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.errors import UsageError
from shoal.inference.forward import answer_losses, pad_sequences
from shoal.models.backbone import Backbone
from shoal.tasks.loading import Example, Task
from shoal.training.batches import TokenisedExample, tokenise
from shoal.training.lora import set_for_training
from shoal.training.refining import RefiningRun

STEPS, RATE, DECAY = 4, 3e-3, 0.05


@pytest.fixture
def start(sharp: Backbone) -> LoRA:
    """An adapter of twelve modules that changes something, as an emitted one does."""
    generator = torch.Generator().manual_seed(0)
    lora = LoRA.identity(
        sharp.shape.select(["q_proj", "k_proj", "v_proj", "o_proj"], None), 2, 4.0, generator=generator
    )
    factors = {
        name: LoraFactors(f.a, 0.05 * torch.randn(f.b.shape, generator=generator))
        for name, f in lora.factors.items()
    }
    return LoRA(factors, lora.alpha)


def tokenised(backbone: Backbone, words: Sequence[str]) -> tuple[TokenisedExample, ...]:
    examples = tuple(Example(word, (word.upper(),)) for word in words)
    return tokenise([Task("upper", "words", "Shout.", ("Shout.",), examples, ())], backbone, 200).examples[0]


@pytest.fixture
def shots(sharp: Backbone) -> tuple[TokenisedExample, ...]:
    return tokenised(sharp, ["ape", "bee", "cat", "doe"])


@pytest.fixture
def queries(sharp: Backbone) -> tuple[TokenisedExample, ...]:
    return tokenised(sharp, ["elk", "fox", "gnu"])


def loss_of(
    backbone: Backbone, factors: Sequence[Tensor], lora: LoRA, asked: Sequence[TokenisedExample]
) -> Tensor:
    pairs = zip(factors[::2], factors[1::2], strict=True)
    own = LoRA({n: LoraFactors(*pair) for n, pair in zip(lora.factors, pairs, strict=True)}, lora.alpha)
    batch = pad_sequences([(e.prompt, e.completion) for e in asked], backbone.end_of_turn, backbone.device)
    with attach(backbone.model, own):
        return answer_losses(backbone, batch).mean()


def unrolled(backbone: Backbone, lora: LoRA, numbers: Tensor, shots: Sequence, queries: Sequence) -> Tensor:
    """The query loss as a differentiable function of the log rates and, last, the decay: Adam written out."""
    begin = [f for pair in lora.factors.values() for f in pair]
    factors, first, second = (
        list(begin),
        [torch.zeros_like(f) for f in begin],
        [torch.zeros_like(f) for f in begin],
    )
    *log_rates, decay = numbers
    for step in range(1, STEPS + 1):
        gradients = torch.func.grad(lambda own: loss_of(backbone, own, lora, shots))(factors)
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        clip = torch.clamp(1.0 / (norm + 1e-6), max=1.0)
        moved = []
        for i, gradient in enumerate(gradients):
            first[i] = 0.9 * first[i] + 0.1 * clip * gradient
            second[i] = 0.999 * second[i] + 0.001 * (clip * gradient).square()
            size = (second[i] / (1 - 0.999**step) + 1e-16).sqrt() + 1e-8
            moved.append(factors[i] - log_rates[i // 2].exp() * first[i] / (1 - 0.9**step) / size)
        factors = [b + (1 - decay) * (m - b) for b, m in zip(begin, moved, strict=True)]
    return loss_of(backbone, factors, lora, queries)


def refined(backbone: Backbone, lora: LoRA, numbers: Sequence[float], shots: Sequence) -> RefiningRun:
    *log_rates, decay = numbers
    rates = {name: math.exp(value) for name, value in zip(lora.factors, log_rates, strict=True)}
    run = RefiningRun(backbone, lora, shots, rates, decay=decay)
    for _ in run.steps(STEPS):
        pass
    return run


def test_the_first_order_derivative_points_where_the_exact_one_does(
    sharp: Backbone, start: LoRA, shots: tuple, queries: tuple
) -> None:
    numbers = [math.log(RATE)] * len(start.factors) + [DECAY]
    run = refined(sharp, start, numbers, shots)
    found = run.sensitivity(queries)
    ours = torch.tensor([*found.log_rates.values(), found.decay])
    with set_for_training(sharp):
        exact = torch.func.grad(lambda n: unrolled(sharp, start, n, shots, queries))(torch.tensor(numbers))
        loss = unrolled(sharp, start, torch.tensor(numbers), shots, queries)
    assert found.loss == pytest.approx(float(loss), abs=1e-3)
    assert len(found.log_rates) == 12
    assert F.cosine_similarity(ours[:-1], exact[:-1], dim=0) > 0.9
    assert torch.sign(ours[-1]) == torch.sign(exact[-1])


def test_the_derivative_agrees_with_finite_differences(
    sharp: Backbone, start: LoRA, shots: tuple, queries: tuple
) -> None:
    numbers = [math.log(RATE)] * len(start.factors) + [DECAY]
    found = refined(sharp, start, numbers, shots).sensitivity(queries)
    slopes = []
    for i in range(len(start.factors)):
        low, high = ([*numbers[:i], numbers[i] + by, *numbers[i + 1 :]] for by in (-0.1, 0.1))
        losses = [refined(sharp, start, own, shots).sensitivity(queries).loss for own in (low, high)]
        slopes.append((losses[1] - losses[0]) / 0.2)
    ours = torch.tensor(list(found.log_rates.values()))
    assert F.cosine_similarity(ours, torch.tensor(slopes), dim=0) > 0.9


def test_other_examples_are_asked_where_the_last_layer_alone_is_adapted(
    sharp: Backbone, start: LoRA, shots: tuple, queries: tuple
) -> None:
    last = max(t.layer for t in sharp.shape.targets)
    names = [t.name for t in sharp.shape.targets if t.layer == last and t.name in start.factors]
    lora = LoRA({name: start.factors[name] for name in names}, start.alpha)
    run = refined(sharp, lora, [math.log(RATE)] * len(names) + [0.0], shots)
    factors = [f for pair in run.lora().factors.values() for f in pair]
    wanted = float(loss_of(sharp, factors, lora, queries).detach())
    assert last > 0 and run.sensitivity(queries).loss == pytest.approx(wanted, abs=1e-4)


def test_a_module_moves_by_its_own_rate(sharp: Backbone, start: LoRA, shots: tuple) -> None:
    slow = next(iter(start.factors))
    numbers = [math.log(1e-6), *[math.log(RATE)] * (len(start.factors) - 1), 0.0]
    after = refined(sharp, start, numbers, shots).lora()
    moved = {name: float((after.factors[name].b - f.b).abs().max()) for name, f in start.factors.items()}
    assert moved.pop(slow) < 1e-5 < min(moved.values())


def test_decay_keeps_an_adapter_near_its_start(sharp: Backbone, start: LoRA, shots: tuple) -> None:
    def distance(decay: float) -> float:
        after = refined(sharp, start, [math.log(RATE)] * 12 + [decay], shots).lora()
        return sum(float((after.factors[n].b - f.b).square().sum()) for n, f in start.factors.items())

    assert distance(0.5) < 0.5 * distance(0.0)


@pytest.mark.parametrize("since", [0, 2])
def test_the_mean_is_that_of_the_states_after_a_mark(
    since: int, sharp: Backbone, start: LoRA, shots: tuple
) -> None:
    run = RefiningRun(sharp, start, shots, dict.fromkeys(start.factors, RATE))
    run.marks.add(2)
    states = [run.lora() for _ in run.steps(5)][since:]
    found = run.mean(since)
    assert found.scaling == start.scaling
    for name, factors in found.factors.items():
        for place, factor in enumerate(factors):
            wanted = torch.stack([state.factors[name][place] for state in states]).mean(0)
            assert torch.allclose(factor, wanted, atol=1e-6)


def test_every_example_is_seen_once_before_any_is_seen_again(sharp: Backbone, start: LoRA) -> None:
    shots = tokenised(sharp, ["ape", "bee", "cat", "doe", "elk", "fox"])
    run = RefiningRun(sharp, start, shots, dict.fromkeys(start.factors, RATE), batch_size=4)
    seen = [e.index for number in range(3) for e in run.batch(number)]
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))


def test_halves_of_the_same_examples_agree(sharp: Backbone, start: LoRA) -> None:
    same = tokenised(sharp, ["ape"]) * 2
    run = RefiningRun(sharp, start, same, dict.fromkeys(start.factors, RATE))
    next(run.steps(1))
    assert run.agreement == pytest.approx(1.0, abs=1e-4)


def test_no_examples_and_rates_of_other_modules_are_refused(
    sharp: Backbone, start: LoRA, shots: tuple
) -> None:
    rates = dict.fromkeys(start.factors, RATE)
    with pytest.raises(UsageError, match="0 examples"):
        RefiningRun(sharp, start, (), rates)
    with pytest.raises(UsageError, match="rates are given for 1 modules, the adapter has 12"):
        RefiningRun(sharp, start, shots, {"other": RATE})
