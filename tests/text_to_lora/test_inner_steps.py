"""Steps before the loss is asked: what is asked, which gradient goes where, and nothing at 0 steps."""

from __future__ import annotations

import random
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from shoal.config import HypernetworkTrainingConfig
from shoal.models.backbone import Backbone
from shoal.text_to_lora.descriptions import Descriptions
from shoal.text_to_lora.encoders.reader import description_reader
from shoal.text_to_lora.train import SftObjective
from shoal.training.batches import tokenise
from shoal.training.refining import RefiningRun

MODULES = ("q_proj", "v_proj")


def sft(toy: ModuleType, backbone: Backbone, **changes: Any) -> SftObjective:
    tasks = toy.toy_tasks()
    network = toy.moved(toy.toy_network(backbone.shape.select(MODULES, None), dropout=0.0))
    descriptions = Descriptions(description_reader(network, toy.HashEncoder(), backbone), tasks)
    config = HypernetworkTrainingConfig(**{"steps": 4, "batch_size": 4, "inner_rate": 1e-2, **changes})
    return SftObjective(network, backbone, tokenise(tasks, backbone, 512), descriptions, config)


def gradients(ours: SftObjective) -> dict[str, Any]:
    ours.module.zero_grad()
    ours.loss(0).loss.backward()
    return {name: p.grad for name, p in ours.module.named_parameters()}


def test_an_adapter_is_asked_after_its_steps(toy: ModuleType, sharp: Backbone) -> None:
    """They are those of refining on the examples that were drawn."""
    ours = sft(toy, sharp, inner_steps=4)
    asked = [[example] for example in ours._order.batch(0)]
    with torch.no_grad():
        emitted = ours.module(
            ours._embed([ours._descriptions._texts[e[0].task][0] for e in asked], [True] * 4)
        )
    refined = ours._inner.refined(ours.module, emitted, asked, 0)
    chance = random.Random("0/0/inner")
    drawn = [ours._inner._draw(own, chance) for own in asked]
    for row, (shots, (given,)) in enumerate(zip(drawn, asked, strict=True)):
        assert len(shots) == 4 and all(e.task == given.task and e.place != given.place for e in shots)
        run = RefiningRun(sharp, emitted.row(row), shots, dict.fromkeys(emitted.factors, 1e-2))
        assert len(list(run.steps(4))) == 4
        for name, pair in run.lora().factors.items():
            own = refined.adapters.row(row).factors[name]
            far = [
                float((a - b).norm() / (a - c).norm())
                for a, b, c in zip(pair, own, emitted.row(row).factors[name], strict=True)
            ]
            assert max(far) < 0.1, (name, far)  # where a gradient is 0 up to rounding, its sign is chance


def test_steps_lower_the_loss_that_is_asked(toy: ModuleType, sharp: Backbone) -> None:
    plain, four = (sft(toy, sharp, inner_steps=n, batch_size=8).loss(0) for n in (0, 4))
    assert float(four.loss.detach()) < float(plain.loss.detach()) and four.tokens > 4 * plain.tokens


@pytest.mark.parametrize("contrast", [0.0, 0.5])
def test_the_shared_adapter_learns_from_where_the_steps_led(
    contrast: float, toy: ModuleType, sharp: Backbone
) -> None:
    ours = sft(toy, sharp, inner_steps=1, contrastive_weight=contrast)
    found = gradients(ours)
    shared = {name: g for name, g in found.items() if name.startswith("offsets.")}
    # One step of Adam goes the rate's length by every gradient's sign, the mean over rows at most that.
    assert all(float(g.abs().max()) <= 1e-2 * 1.001 for g in shared.values())
    assert all(float(g.abs().max()) > 0 for g in shared.values())
    assert any(float(g.abs().max()) > 0 for n, g in found.items() if g is not None and n not in shared)


def test_the_network_gets_the_gradient_at_the_refined_adapters(toy: ModuleType, sharp: Backbone) -> None:
    """With a rate of almost nothing that is today's gradient, but for the shared adapter's."""
    plain, still = gradients(sft(toy, sharp)), gradients(sft(toy, sharp, inner_steps=1, inner_rate=1e-6))
    moved = gradients(sft(toy, sharp, inner_steps=4))
    names = [n for n, g in plain.items() if g is not None and not n.startswith("offsets.")]
    for name in names:
        torch.testing.assert_close(still[name], plain[name], atol=1e-3, rtol=1e-2)
    assert any(not torch.allclose(moved[name], plain[name], atol=1e-3, rtol=0.1) for name in names)


def test_tasks_from_outside_the_corpus_do_not_move(toy: ModuleType, sharp: Backbone) -> None:
    ours = sft(toy, sharp, inner_steps=1)
    asked = [[example] for example in ours._order.batch(0)]
    asked[1] = [replace(asked[1][0], task=-1, index=-1)]
    with torch.no_grad():
        emitted = ours.module(ours._embed([ours._descriptions._texts[0][0]] * 4, [True] * 4))
    refined = ours._inner.refined(ours.module, emitted, asked, 0).adapters
    assert refined.row(1) == emitted.row(1) and refined.row(0) != emitted.row(0)
