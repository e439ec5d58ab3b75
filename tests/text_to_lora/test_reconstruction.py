"""Reconstruction: trained adapters are reproduced from descriptions, and other adapters are another run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from shoal.adapters.lora import LoRA
from shoal.config import HypernetworkTrainingConfig
from shoal.errors import UsageError
from shoal.models.backbone import Backbone
from shoal.text_to_lora.descriptions import Descriptions
from shoal.text_to_lora.encoders.reader import description_reader
from shoal.text_to_lora.reconstruction import ReconstructionObjective, train_reconstruction

MODULES = ("q_proj", "v_proj")
FAMILIES = ("llama", "gpt2", "gpt_neox", "opt")
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def config(**changes: Any) -> HypernetworkTrainingConfig:
    return HypernetworkTrainingConfig(**{"steps": 4, "batch_size": 8, "learning_rate": 1e-3, **changes})


def test_reconstruction_recovers_adapters(toy: ModuleType, backbone: Backbone, tmp_path: Path) -> None:
    """A network with room for it reproduces the delta weights of every task from its description."""
    targets = backbone.shape.select(MODULES, 1)
    tasks = toy.toy_tasks(3)
    adapters = toy.toy_adapters(targets, 3)
    network = toy.toy_network(targets, dropout=0.0, latent_size=32, hidden_size=64)
    settings = {"objective": "reconstruction", "learning_rate": 1e-2, "offset_learning_rate": 1e-2}
    summary = train_reconstruction(
        network,
        toy.HashEncoder(),
        tasks,
        adapters,
        tmp_path,
        config(steps=300, batch_size=3, clip_norm=10.0, **settings),
        show_progress=False,
    )
    rows = toy.rows_of(tmp_path)
    assert rows[0]["loss"] == pytest.approx(1.0, rel=1e-4)  # the identity is as far as the adapters are large
    assert summary.final_loss < 0.02
    with torch.no_grad():
        described = toy.read_all(toy.HashEncoder(), network, tasks)
        emitted = network(torch.stack([own[1] for own in described]))
    for row, adapter in enumerate(adapters):
        for t in targets:
            wanted, got = adapter.delta_weight(t.name), emitted.row(row).delta_weight(t.name)
            assert float((got - wanted).norm() / wanted.norm()) < 0.25


def test_the_reconstruction_loss_is_the_distance_of_delta_weights(
    toy: ModuleType, backbone: Backbone
) -> None:
    targets = backbone.shape.select(("q_proj", "v_proj", "down_proj"), 1)
    adapters = [*toy.toy_adapters(targets, 2), *toy.toy_adapters(targets, 2, rank=3)]  # ranks may differ
    adapters = [lora * (number + 1.0) for number, lora in enumerate(adapters)]
    network = toy.moved(toy.toy_network(targets, dropout=0.0))
    tasks = [dataclasses.replace(t, descriptions=t.descriptions[:1]) for t in toy.toy_tasks()]
    embeddings = toy.read_all(toy.HashEncoder(), network, tasks)
    descriptions = Descriptions(description_reader(network, toy.HashEncoder()), tasks)
    objective = ReconstructionObjective(network, descriptions, adapters, config(batch_size=9))

    def distance(ours: LoRA | None, theirs: LoRA) -> float:
        zero = {t.name: torch.zeros(t.out_features, t.in_features) for t in targets}
        own = zero if ours is None else {n: ours.delta_weight(n) for n in ours.factors}
        return float(sum((own[n] - theirs.delta_weight(n)).square().sum() for n in theirs.factors))

    with torch.no_grad():
        emitted = network(torch.stack([own[0] for own in embeddings]))
    far = sum(distance(emitted.row(row), lora) for row, lora in enumerate(adapters))
    size = sum(distance(None, lora) for lora in adapters)
    result = objective.loss(0)
    assert float(result.loss.detach()) == pytest.approx(far / size, rel=1e-4)
    assert result.tokens == 0


def test_a_reader_reproduces_adapters(toy: ModuleType, sharp: Backbone, tmp_path: Path) -> None:
    targets, width = sharp.shape.select(MODULES, 1), sharp.model.config.hidden_size
    adapters = toy.toy_adapters(targets, 3)
    network = toy.toy_network(targets, dropout=0.0, head="reader", task_dim=width)
    told = (network, toy.HashEncoder(), toy.toy_tasks(3), adapters, tmp_path)
    settings = {"objective": "reconstruction", "learning_rate": 1e-2, "offset_learning_rate": 1e-2}
    with pytest.raises(UsageError, match="head reader .* got no model; give it"):
        train_reconstruction(*told, config(**settings))
    summary = train_reconstruction(
        *told, config(steps=60, batch_size=3, clip_norm=10.0, **settings), backbone=sharp, show_progress=False
    )
    assert toy.rows_of(tmp_path)[0]["loss"] == pytest.approx(1.0, rel=1e-4)
    assert summary.final_loss < 0.6


def test_adapters_that_cannot_be_reproduced(toy: ModuleType, backbone: Backbone, tmp_path: Path) -> None:
    targets = backbone.shape.select(MODULES, 1)
    tasks, adapters = toy.toy_tasks(), toy.toy_adapters(targets, 4)
    wider = [dataclasses.replace(t, out_features=t.out_features + 1) for t in targets]
    cases = (
        (adapters[:3], "got 3 adapters for 4 tasks"),
        (toy.toy_adapters(targets[:1], 4), "over the network's 2 modules"),
        (toy.toy_adapters(wider, 4), "over the network's 2 modules"),
        ([LoRA.identity(targets, 2, 4.0)] * 4, "all 4 adapters are zero"),
    )
    for given, message in cases:
        with pytest.raises(UsageError, match=message):
            train_reconstruction(
                toy.toy_network(targets),
                toy.HashEncoder(),
                tasks,
                given,
                tmp_path,
                config(),
                show_progress=False,
            )
    with pytest.raises(UsageError, match="got 0 adapters for 0 tasks"):
        train_reconstruction(toy.toy_network(targets), toy.HashEncoder(), [], [], tmp_path, config())
    assert list(tmp_path.iterdir()) == []


def test_other_adapters_are_another_run(toy: ModuleType, backbone: Backbone, tmp_path: Path) -> None:
    targets = backbone.shape.select(MODULES, 1)
    adapters = toy.toy_adapters(targets, 4)

    def train(adapters: list[LoRA]) -> None:
        arguments = (toy.HashEncoder(), toy.toy_tasks(), adapters, tmp_path, config(steps=1))
        train_reconstruction(toy.toy_network(targets), *arguments, show_progress=False)

    train(adapters)
    with pytest.raises(UsageError, match="another run, with other data"):
        train([*adapters[:3], adapters[3] * 1.01])
