"""The steering margin: large where adapters depend on the description, zero where they do not."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from shoal.inference.forward import adapted, answer_losses, pad_sequences
from shoal.models.backbone import Backbone
from shoal.text_to_lora.descriptions import Descriptions
from shoal.text_to_lora.encoders.reader import description_reader
from shoal.text_to_lora.steering import SteeringMonitor
from shoal.training.batches import tokenise


def monitor_of(toy: ModuleType, backbone: Backbone, count: int, *, fresh: bool = False) -> SteeringMonitor:
    tasks = toy.toy_tasks(count)
    network = toy.toy_network(backbone.shape.select(("q_proj", "v_proj"), None), dropout=0.0).eval()
    if not fresh:
        with torch.no_grad():
            for p in network.parameters():
                p.add_(0.2 * torch.randn_like(p))
    corpus = tokenise(tasks, backbone, 512)
    first = Descriptions(description_reader(network, toy.HashEncoder()), tasks).read(
        [task.descriptions[0] for task in tasks]
    )
    return SteeringMonitor(network, backbone, corpus, first, 3)


def test_a_network_that_ignores_its_descriptions_has_no_margin(toy: ModuleType, backbone: Backbone) -> None:
    numbers = monitor_of(toy, backbone, 4, fresh=True)()
    assert numbers["unseen_margin"] == pytest.approx(0, abs=1e-6) and numbers["unseen_loss"] > 0


@torch.no_grad()
@torch.no_grad()
def test_the_margin_is_wrong_minus_right(toy: ModuleType, backbone: Backbone) -> None:
    monitor = monitor_of(toy, backbone, 4)
    numbers = monitor()
    emitted = monitor._network(monitor._descriptions)
    losses = torch.zeros(4, 4)
    for task, examples in enumerate(monitor._corpus.examples):
        pairs = [(e.prompt, e.completion) for e in examples[:3]]
        batch = pad_sequences(pairs, backbone.end_of_turn, backbone.device)
        for row in range(4):
            with adapted(backbone, emitted.row(row)):
                losses[task, row] = answer_losses(backbone, batch).mean()
    right = float(losses.diagonal().mean())
    wrong = float(losses[torch.arange(4), torch.tensor([2, 3, 0, 1])].mean())
    assert numbers == pytest.approx({"unseen_loss": right, "unseen_margin": wrong - right}, abs=1e-5)
    assert abs(numbers["unseen_margin"]) > 1e-4


def test_one_task_has_no_other(toy: ModuleType, backbone: Backbone) -> None:
    assert monitor_of(toy, backbone, 1)().keys() == {"unseen_loss"}
