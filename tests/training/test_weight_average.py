"""The running mean of weights: an exact one at first, then one that reaches back as far as its decay says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shoal.training.weight_average import WeightAverage


def test_it_follows_the_formula() -> None:
    module = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(2.0)
    average, expected = WeightAverage(module, 0.5), 2.0
    for step, value in enumerate((4.0, -1.0, 3.0, 8.0), 1):
        with torch.no_grad():
            module.weight.fill_(value)
        average.update(step)
        decay = min(0.5, step / (step + 9))
        expected = decay * expected + (1 - decay) * value
    assert module.weight.item() == 8.0
    average.put_into_module()
    assert module.weight.item() == pytest.approx(expected)


def test_the_means_are_its_own() -> None:
    module = nn.Linear(2, 2)
    average = WeightAverage(module, 0.9)
    before = {name: mean.clone() for name, mean in average.means.items()}
    with torch.no_grad():
        module.weight.add_(1)
    assert all(torch.equal(average.means[name], mean) for name, mean in before.items())
