"""Training experts: the sampled gradient is the exact one in the mean, rewards rise, bad tasks are told."""

from __future__ import annotations

import dataclasses
import itertools
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
from shoal.inference.generate import generate_greedy, sample_tokens
from shoal.models.backbone import Backbone
from shoal.tasks.loading import Example, LeakageError
from shoal.tasks.rewards import REWARDS
from shoal.training.batches import tokenise
from shoal.transformer2.train import ExpertObjective, SingularValues, leave_one_out, train_expert

OPEN = {"least_success": 0, "most_success": 1}


def objective(toy: ModuleType, backbone: Backbone, reward: Any = REWARDS["label"], **settings: Any) -> Any:
    config = ExpertTrainingConfig(**{"batch_size": 4, "max_new_tokens": 2, **settings})
    corpus = tokenise([toy.label_task()], backbone, config.max_length, describe=True)
    tuned = SingularValues(backbone.model, toy.toy_basis(backbone))
    return ExpertObjective(backbone, tuned, corpus, config, reward)


def gradient(own: ExpertObjective, forward_pass: int = 0) -> Tensor:
    own.module.zero_grad()
    own.loss(forward_pass).loss.backward()
    return torch.cat([theta.grad for theta in own.module])


def test_others_are_the_baseline() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.5], [0.3, 0.3, 0.3]])
    expected = torch.tensor([[0.75, -0.75, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(leave_one_out(rewards), expected)


def test_sampled_answers_are_kept_as_they_came(backbone: Backbone) -> None:
    prompts = backbone.encode_prompts(["one", "a longer request"])

    def sample(seed: int, temperature: float) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return sample_tokens(
            backbone, prompts, generator=generator, temperature=temperature, max_new_tokens=5
        )

    assert sample(0, 1.0) == sample(0, 1.0) != sample(1, 1.0)
    cold = [[t for t in ids if t != backbone.end_of_turn] for ids in sample(0, 1e-4)]
    greedy = generate_greedy(backbone, ["one", "a longer request"], max_new_tokens=5)
    assert [backbone.decode(ids) for ids in cold] == greedy
    for ids in sample(2, 50.0):
        assert 1 <= len(ids) <= 5 and backbone.end_of_turn not in ids[:-1]


def test_sampling_follows_the_distribution(backbone: Backbone) -> None:
    prompt = backbone.encode_prompt("x")
    generator = torch.Generator().manual_seed(0)
    drawn = sample_tokens(backbone, [prompt] * 4000, generator=generator, max_new_tokens=1)
    counts = torch.bincount(
        torch.tensor([ids[0] for ids in drawn]), minlength=backbone.model.config.vocab_size
    )
    with torch.no_grad():
        likely = backbone.model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    assert float((counts / 4000 - likely).abs().max()) < 4 * float((likely.max() / 4000).sqrt())


def test_the_sampled_gradient_is_the_exact_one_in_the_mean(toy: ModuleType, backbone: Backbone) -> None:
    """Two answers of one token make a closed set of the whole vocabulary's mass that earns anything."""
    wanted = backbone.encode_completion("a")[0]

    def reward(example: Example, answer: str) -> float:
        return float(answer == backbone.decode([wanted]))

    sampled = objective(toy, backbone, reward, kl_weight=0.0, samples=64, max_new_tokens=1)
    rounds = []
    for number in range(60):
        torch.manual_seed(number)
        rounds.append(gradient(sampled))
    mean, error = torch.stack(rounds).mean(0), torch.stack(rounds).std(0) / len(rounds) ** 0.5

    exact = objective(toy, backbone, reward, kl_weight=0.0)
    batch = exact._order.batch(0)
    rows = pad_sequences([(e.prompt, (wanted,)) for e in batch], backbone.end_of_turn, backbone.device)
    with exact._tuned.attached():
        (-(-answer_losses(backbone, rows)).exp().sum() / len(batch)).backward()
    expected = torch.cat([theta.grad for theta in exact.module])
    assert float(expected.norm()) > 0
    cosine = torch.nn.functional.cosine_similarity(mean, expected, dim=0)
    noise = float(error.norm() / expected.norm())
    assert float((mean - expected).norm() / expected.norm()) < 2 * noise and noise < 1
    assert float(cosine) > 0.5


def test_the_expected_reward_is_the_sum_over_labels(toy: ModuleType, backbone: Backbone) -> None:
    own = objective(toy, backbone, objective="expected_reward", kl_weight=0.0)
    result, examples = own.loss(0), own._order.batch(0)
    total = 0.0
    for example in examples:
        source = toy.label_task().train[example.place]
        pair = (example.prompt, backbone.encode_completion(source.outputs[0]))
        loss = answer_losses(backbone, pad_sequences([pair], backbone.end_of_turn, backbone.device))
        total += float((-loss * len(pair[1])).exp())
    assert float(result.loss.detach()) == pytest.approx(-total / len(examples), rel=1e-4)
    assert result.metrics["reward"] == pytest.approx(total / len(examples), rel=1e-4)


def test_divergence_is_zero_at_the_base_and_grows(toy: ModuleType, backbone: Backbone) -> None:
    own = objective(toy, backbone, objective="expected_reward", kl_weight=1.0)
    assert own.loss(0).metrics["kl"] == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for theta in own.module:
            theta += 0.5
    assert own.loss(0).metrics["kl"] > 1e-3


def test_groups_without_variance_teach_nothing(toy: ModuleType, backbone: Backbone) -> None:
    own = objective(toy, backbone, reward=lambda example, answer: 0.5)
    assert float(gradient(own).abs().sum()) == 0
    assert own.loss(0).metrics == {"reward": 0.5, "useful": 0.0, "kl": 0.0}


@pytest.mark.parametrize("kind", ["rloo", "expected_reward", "sft"])
def test_training_raises_what_it_is_after(
    kind: str, toy: ModuleType, backbone: Backbone, tmp_path: Path
) -> None:
    task = toy.label_task()

    def letters(example: Example, answer: str) -> float:
        return sum("a" <= character <= "z" for character in answer) / 3

    def score(expert: ExpertVector | None) -> float:
        generator = torch.Generator().manual_seed(0)
        prompts = backbone.encode_prompts([task.described(e.input) for e in task.train] * 20)
        basis = toy.toy_basis(backbone)
        with attach_expert(backbone.model, basis, expert or ExpertVector.identity(basis)):
            if kind == "rloo":
                drawn = sample_tokens(backbone, prompts, generator=generator, max_new_tokens=3)
                return sum(letters(task.train[0], backbone.decode(ids)) for ids in drawn) / len(drawn)
            pairs = [
                (p, backbone.encode_completion(e.outputs[0]))
                for p, e in zip(prompts, task.train, strict=False)
            ]
            rows = pad_sequences(pairs, backbone.end_of_turn, backbone.device)
            return -float(answer_losses(backbone, rows).detach().mean())

    settings = {"steps": 120, "batch_size": 4, "learning_rate": 0.1, "objective": kind, "max_new_tokens": 3}
    trained = train_expert(
        backbone,
        toy.toy_basis(backbone),
        [task],
        tmp_path / "run",
        ExpertTrainingConfig(**OPEN, **settings, kl_weight=0.0, samples=6),
        reward=letters if kind == "rloo" else None,
        show_progress=False,
    )
    assert trained.summary.steps == 120 and 0 <= trained.base_success <= 1
    assert score(trained.expert) > score(None) + (0.1 if kind == "rloo" else 0.2)


def test_tasks_that_cannot_teach_are_refused(toy: ModuleType, backbone: Backbone, tmp_path: Path) -> None:
    basis, task, numbers = toy.toy_basis(backbone), toy.label_task(), itertools.count()

    def refused(error: type[Exception], says: str, **changes: Any) -> None:
        given = {"basis": basis, "tasks": [task], "held_out": (), **changes}
        config = ExpertTrainingConfig(**given.pop("settings", {}))
        folder = tmp_path / str(next(numbers))
        with pytest.raises(error, match=says):
            train_expert(backbone, folder=folder, config=config, show_progress=False, **given)
        assert not folder.exists()

    refused(UsageError, "earns 0.00 of 1 .* outside 0.05 to 0.95")
    refused(UsageError, "earns 1.00 of 1", reward=lambda example, answer: 1.0)
    refused(UsageError, "tasks, got 0", tasks=[])
    refused(UsageError, "weights, got 0", basis={})
    refused(LeakageError, "half", held_out=[task])
    many = dataclasses.replace(task, train=tuple(Example(f"w{i}", (f"l{i}",)) for i in range(40)))
    refused(
        UsageError, "40 different answers", tasks=[many], settings={"objective": "expected_reward", **OPEN}
    )
    one = dataclasses.replace(task, train=tuple(Example(f"w{i}", ("same",)) for i in range(4)))
    refused(UsageError, "1 different answers", tasks=[one], settings={"objective": "expected_reward", **OPEN})
