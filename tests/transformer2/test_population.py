"""A population of experts: batched = looped, expected rewards are the sum over labels, and rewards rise."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.adapters.svf import ExpertVector
from shoal.adapters.svf_hooks import attach_expert
from shoal.config import ExpertTrainingConfig
from shoal.errors import UsageError
from shoal.inference.forward import answer_losses, pad_sequences
from shoal.inference.generate import generate_greedy
from shoal.models.backbone import Backbone
from shoal.tasks.answer_kinds import has_labels
from shoal.tasks.loading import Example, Task
from shoal.tasks.rewards import REWARDS
from shoal.training.batches import tokenise
from shoal.transformer2.population import ExpertPopulation
from shoal.transformer2.train import SingularValues, train_expert

OPEN = {"least_success": 0, "most_success": 1}


def last_bits(example: Example, answer: str) -> float:
    return sum(ord(character) % 8 for character in answer) / 28


def population(toy: ModuleType, backbone: Backbone, tasks: list[Task], reward: Any, **settings: Any) -> Any:
    config = ExpertTrainingConfig(objective="evolution", max_new_tokens=4, **{"batch_size": 6, **settings})
    corpus = tokenise(tasks, backbone, config.max_length, describe=True)
    tuned = SingularValues(backbone.model, toy.toy_basis(backbone))
    return ExpertPopulation(backbone, tuned, corpus, config, reward, "fingerprint")


def candidates_of(own: Any, count: int, spread: float = 0.5) -> Tensor:
    numbers = sum(p.numel() for p in own.module.parameters())
    return torch.randn(count, numbers, generator=torch.Generator().manual_seed(1)) * spread


def looped(own: Any, toy: ModuleType, backbone: Backbone, candidates: Tensor, value: Any) -> list[float]:
    """Mean of `value(example)` on the batch, one candidate at a time."""
    basis, results = toy.toy_basis(backbone), []
    for row in range(len(candidates)):
        parts = candidates[row].split([d.s.numel() for d in basis.values()])
        expert = ExpertVector({name: 1 + theta for name, theta in zip(basis, parts, strict=True)})
        with torch.no_grad(), attach_expert(backbone.model, basis, expert):
            examples = own._order.batch(0)
            results.append(sum(value(e) for e in examples) / len(examples))
    return results


@pytest.mark.parametrize("count", [4, 66])
def test_expected_rewards_are_sums_over_labels(count: int, toy: ModuleType, backbone: Backbone) -> None:
    task = toy.label_task()

    def reward(example: Example, answer: str) -> float:
        return 1.0 if answer in example.outputs else 0.3

    def value(example: Any) -> float:
        total = 0.0
        for text in ("f", "l"):
            pair = (example.prompt, backbone.encode_completion(text))
            loss = answer_losses(backbone, pad_sequences([pair], backbone.end_of_turn, backbone.device))
            total += reward(task.train[example.place], text) * float((-loss * len(pair[1])).exp())
        return total

    own = population(toy, backbone, [task], reward)
    candidates = candidates_of(own, count)
    tried = own.fitness(candidates, 0)
    assert tried.rewards == pytest.approx(looped(own, toy, backbone, candidates, value), rel=1e-3)
    assert len(set(tried.rewards)) == count and tried.tokens > 0
    assert own.fitness(candidates, 0) == tried != own.fitness(candidates, 1)


def test_greedy_answers_are_those_of_each_candidate(toy: ModuleType, sharp: Backbone) -> None:
    """Answers end at different lengths, so that rows leave the batch with their experts."""
    task = toy.toy_task("upper")

    def reward(example: Example, answer: str) -> float:
        return (sum(map(ord, answer)) % 97) / 97

    def value(example: Any) -> float:
        source = task.train[example.place]
        asked = task.described(source.input, example.place)
        return reward(source, generate_greedy(sharp, [asked], max_new_tokens=4)[0])

    with torch.no_grad():  # an end of turn that is often likely
        head = sharp.model.lm_head.weight
        head[sharp.end_of_turn] = 1.5 * head[head.norm(dim=1).argmax()]
    own = population(toy, sharp, [task], reward)
    candidates = candidates_of(own, 20, 1.0)
    assert own.fitness(candidates, 0).rewards == pytest.approx(looped(own, toy, sharp, candidates, value))


def test_which_tasks_have_labels(toy: ModuleType) -> None:
    assert has_labels(toy.label_task()) and not has_labels(toy.toy_task("upper"))
    one = dataclasses.replace(toy.label_task(), train=(Example("a", ("x",)),) * 4)
    assert not has_labels(one)


@pytest.mark.parametrize("kind", ["labels", "greedy"])
def test_rewards_rise(kind: str, toy: ModuleType, backbone: Backbone, tmp_path: Path) -> None:
    task = toy.label_task() if kind == "labels" else toy.toy_task("upper")
    reward = REWARDS["label"] if kind == "labels" else last_bits
    own = population(toy, backbone, [task], reward, batch_size=10)
    trained = train_expert(
        backbone,
        toy.toy_basis(backbone),
        [task],
        tmp_path / "run",
        ExpertTrainingConfig(
            objective="evolution", steps=60, batch_size=5, population=12, sigma=0.1, max_new_tokens=4, **OPEN
        ),
        reward=reward,
        show_progress=False,
    )
    found = torch.cat([trained.expert.z[name] - 1 for name in toy.toy_basis(backbone)])
    before, after = own.fitness(torch.stack([0 * found, found]), 0).rewards
    assert trained.summary.steps == 60
    assert after > (3 * before if kind == "labels" else before + 0.2), (before, after)


def test_a_base_that_earns_nothing_is_refused(toy: ModuleType, backbone: Backbone, tmp_path: Path) -> None:
    config = ExpertTrainingConfig(objective="evolution")
    train = functools.partial(train_expert, backbone, toy.toy_basis(backbone), show_progress=False)
    with pytest.raises(UsageError, match="earns 0.00 of 1"):
        train([toy.label_task()], tmp_path / "run", config)
    assert not (tmp_path / "run").exists()
