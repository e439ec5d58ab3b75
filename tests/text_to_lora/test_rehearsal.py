"""Rehearsal: a network takes new tasks, and what it emits for old descriptions stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from shoal.adapters.lora import LoRA
from shoal.config import HypernetworkTrainingConfig
from shoal.errors import UsageError
from shoal.models.backbone import Backbone
from shoal.tasks.records import Task
from shoal.text_to_lora.checkpoint import HypernetworkCheckpoint
from shoal.text_to_lora.descriptions import Descriptions
from shoal.text_to_lora.encoders.reader import description_reader
from shoal.text_to_lora.familiarity import KnownTasks
from shoal.text_to_lora.hypernetwork import Hypernetwork
from shoal.text_to_lora.rehearsal import RehearsingObjective, old_descriptions
from shoal.text_to_lora.train import train_hypernetwork


def network_of(toy: ModuleType, backbone: Backbone) -> Hypernetwork:
    """A network with dropout whose adapters differ from description to description."""
    return toy.moved(toy.toy_network(backbone.shape.select(("q_proj", "v_proj"), 1)))


def config(**changes: Any) -> HypernetworkTrainingConfig:
    return HypernetworkTrainingConfig(
        **{"steps": 12, "batch_size": 4, "learning_rate": 2e-3, "offset_learning_rate": 2e-3, **changes}
    )


def emitted(toy: ModuleType, network: Hypernetwork, task: Task) -> list[LoRA]:
    with torch.no_grad():
        batch = network.eval()(toy.HashEncoder().encode(task.descriptions))
    return [batch.row(row) for row in range(len(task.descriptions))]


def moved_by(before: list[LoRA], after: list[LoRA]) -> float:
    """Squared distance of delta weights, as a share of their squared size."""
    pairs = [
        (old.delta_weight(name), new.delta_weight(name))
        for old, new in zip(before, after, strict=True)
        for name in old.factors
    ]
    size = sum(float(old.square().sum()) for old, _ in pairs)
    return sum(float((new - old).square().sum()) for old, new in pairs) / size


def test_with_a_large_weight_old_answers_stay_and_new_tasks_are_learnt(
    toy: ModuleType, sharp: Backbone, tmp_path: Path
) -> None:
    old, new = toy.toy_tasks(2)
    shares = {}
    for weight in (0.0, 100.0):
        network = network_of(toy, sharp)
        before = emitted(toy, network, old), emitted(toy, network, new)
        settings = config(rehearse=weight, rehearsed=1)
        arguments = (toy.HashEncoder(), [new], tmp_path / str(weight), settings)
        train_hypernetwork(network, sharp, *arguments, old=[old.descriptions], show_progress=False)
        shares[weight] = [
            moved_by(own, emitted(toy, network, task)) for own, task in zip(before, (old, new), strict=True)
        ]
    assert shares[100.0][0] < 0.1 < 0.3 < shares[0.0][0]
    assert shares[100.0][1] > shares[100.0][0]  # what is new moves all the same


def test_with_no_weight_a_run_is_the_plain_one(toy: ModuleType, sharp: Backbone, tmp_path: Path) -> None:
    old, new = toy.toy_tasks(2)
    found = []
    for name, tasks in (("plain", []), ("beside", [old.descriptions])):
        network = network_of(toy, sharp)
        arguments = (toy.HashEncoder(), [new], tmp_path / name, config(steps=2))
        train_hypernetwork(network, sharp, *arguments, old=tasks, show_progress=False)
        found.append(list(network.state_dict().values()))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


class Nothing:
    """Stands for the new tasks' objective: it has no loss."""

    def loss(self, forward_pass: int) -> Any:
        return SimpleNamespace(loss=torch.zeros(()), tokens=0, metrics={})


def test_the_distance_is_that_of_delta_weights_without_dropout(toy: ModuleType, sharp: Backbone) -> None:
    old = replace(toy.toy_task("upper"), descriptions=("Write it in capitals.",))
    network = network_of(toy, sharp)
    before = emitted(toy, network, old)
    descriptions = Descriptions(description_reader(network, toy.HashEncoder()), [old])
    ours: Any = RehearsingObjective(network, Nothing(), descriptions, config(rehearse=3.0))
    network.train()
    assert ours.loss(0).metrics["forgotten"] == pytest.approx(0, abs=1e-6)
    toy.moved(network)
    expected = moved_by(before, emitted(toy, network, old))
    network.train()
    taken = ours.loss(0)
    assert taken.metrics["forgotten"] == pytest.approx(expected, rel=1e-4) and expected > 0.01
    assert float(taken.loss.detach()) == pytest.approx(3 * expected, rel=1e-4) and network.training


def test_other_old_descriptions_are_another_run(toy: ModuleType, sharp: Backbone, tmp_path: Path) -> None:
    one, other, new = toy.toy_tasks(3)
    for tasks, fits in (([one], True), ([one, other], False)):
        texts = [task.descriptions for task in tasks]
        arguments = (toy.HashEncoder(), [new], tmp_path, config(steps=1, rehearse=1.0))
        if fits:
            train_hypernetwork(network_of(toy, sharp), sharp, *arguments, old=texts, show_progress=False)
            continue
        with pytest.raises(UsageError, match="another run, with other data"):
            train_hypernetwork(network_of(toy, sharp), sharp, *arguments, old=texts, show_progress=False)


def test_nothing_to_rehearse(toy: ModuleType, sharp: Backbone, tmp_path: Path) -> None:
    arguments = (toy.HashEncoder(), toy.toy_tasks(1), tmp_path, config(rehearse=1.0))
    with pytest.raises(UsageError, match="needs old descriptions, got none"):
        train_hypernetwork(network_of(toy, sharp), sharp, *arguments)
    zero = toy.toy_network(sharp.shape.select(("q_proj", "v_proj"), 1))
    with pytest.raises(UsageError, match="emits zero for old descriptions"):
        train_hypernetwork(zero, sharp, *arguments, old=[("Write it.",)])


def checkpoint(toy: ModuleType, backbone: Backbone, *names: str) -> HypernetworkCheckpoint:
    known = KnownTasks(names, torch.eye(len(names), 16), 0.2, 0.6, torch.ones(17))
    return HypernetworkCheckpoint(network_of(toy, backbone), "base", "hash", True, {}, known)


def test_old_descriptions_are_those_of_known_tasks_made_in_code(toy: ModuleType, sharp: Backbone) -> None:
    from shoal.tasks.procedural.catalogue import procedural_tasks

    first, second = procedural_tasks(size=8, test_size=0)[:2]
    start = checkpoint(toy, sharp, first.name, second.name, "of-other-data")
    assert old_descriptions(start, []) == [first.descriptions, second.descriptions]
    assert old_descriptions(start, [first]) == [second.descriptions]
    for other in (checkpoint(toy, sharp, "of-other-data"), None):
        with pytest.raises(UsageError, match="none is made in code; give --old-descriptions FILE"):
            old_descriptions(other, [])


def test_old_descriptions_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "old.txt"
    file.write_text("Write the word in capital letters.\n\nReverse the letters of the word.\n")
    assert [text[:7] for (text,) in old_descriptions(None, [], file)] == ["Write t", "Reverse"]
    for text, says in (("\n", "holds no description"), ("x\n", "shorter than 2 characters")):
        file.write_text(text)
        with pytest.raises(UsageError, match=says):
            old_descriptions(None, [], file)
