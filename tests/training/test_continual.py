"""One adapter through a stream of tasks: what every method is where its measure is taken away."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from shoal.adapters.lora import LoRA, LoraFactors
from shoal.config import LoraTrainingConfig
from shoal.errors import UsageError
from shoal.models.backbone import Backbone
from shoal.tasks.records import Task
from shoal.training.batches import tokenise
from shoal.training.continual import METHODS, Stage, learn_stream, merged_in_time, with_orthonormal_a
from shoal.training.lora import LoraObjective
from shoal.training.penalties import ElasticPenalty, OrthogonalPenalty, fisher_information

WORDS = ("apple", "grape", "honey", "dates", "lemon", "mango", "peach", "melon", "olive")
CLOSE = {"atol": 1e-5, "rtol": 1e-4}
CONFIG = LoraTrainingConfig(steps=2, batch_size=4, learning_rate=1e-2)


@pytest.fixture(scope="module")
def tasks(toy: ModuleType) -> list[Task]:
    """Three rules on the same words; every example of the first two has as many tokens as any other."""
    return [toy.toy_task(rule, WORDS) for rule in ("upper", "reverse", "first")]


@pytest.fixture(scope="module")
def model(toy: ModuleType, tiny_llama: Path) -> Backbone:
    """The tiny Llama with larger logits; nothing changes it."""
    backbone = toy.toy_backbone(tiny_llama)
    with torch.no_grad():
        backbone.model.lm_head.weight.mul_(8)
    return backbone


@pytest.fixture(scope="module")
def start(toy: ModuleType, model: Backbone) -> LoRA:
    return toy.toy_adapters(model.shape.select(("q_proj", "v_proj"), 2), 1)[0]


@pytest.fixture(scope="module")
def plain(
    model: Backbone, tasks: list[Task], start: LoRA, tmp_path_factory: pytest.TempPathFactory
) -> list[Stage]:
    """The first two tasks, one after the other without measures."""
    return learnt(model, tasks[:2], start, tmp_path_factory.mktemp("plain"), "sequential")


def learnt(
    backbone: Backbone, tasks: Sequence[Task], start: LoRA, folder: Path, method: str, **settings: Any
) -> list[Stage]:
    targets = [t for t in backbone.shape.targets if t.name in start.factors]
    given = {"start": start, "show_progress": False, **settings}
    return list(learn_stream(backbone, tasks, targets, folder, CONFIG, method=method, **given))


def deltas(lora: LoRA) -> list[torch.Tensor]:
    return [lora.delta_weight(name) for name in lora.factors]


@pytest.mark.parametrize(
    ("method", "without"),
    [("ewc", {"strength": 0.0}), ("replay", {"keep": 0})],
)
def test_a_method_without_its_measure_is_sequential(
    model: Backbone,
    tasks: list[Task],
    start: LoRA,
    plain: list[Stage],
    tmp_path: Path,
    method: str,
    without: dict[str, Any],
) -> None:
    own, whole = (
        learnt(model, tasks[:2], start, tmp_path / name, method, **settings)
        for name, settings in (("without", without), ("with", {}))
    )
    assert [stage.lora == other.lora for stage, other in zip(plain, own, strict=True)] == [True, True]
    assert whole[0].lora == plain[0].lora and whole[1].lora != plain[1].lora


def test_replay_learns_from_kept_examples_of_every_old_task(
    model: Backbone, tasks: list[Task], start: LoRA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoal.training import continual

    seen = []

    def watched(backbone: Backbone, own: Sequence[Task], *args: Any, **settings: Any) -> Any:
        seen.append({task.name: task.train for task in own})
        return settings["start"], None

    monkeypatch.setattr(continual, "train_lora", watched)
    learnt(model, tasks, start, tmp_path, "replay", keep=3)
    assert [list(own) for own in seen] == [["upper"], ["reverse", "upper"], ["first", "upper", "reverse"]]
    assert len(seen[2]["upper"]) == 3 and len(seen[2]["first"]) == len(WORDS) - 1
    assert seen[1]["upper"] == seen[2]["upper"] and set(seen[2]["upper"]) < set(tasks[0].train)


def test_joint_training_sees_as_many_tokens(
    model: Backbone, tasks: list[Task], start: LoRA, plain: list[Stage], tmp_path: Path
) -> None:
    (joint,) = learnt(model, tasks[:2], start, tmp_path, "joint")
    assert joint.summary.tokens == sum(stage.summary.tokens for stage in plain) > 0


def test_regmean_of_one_task_is_that_task_and_of_two_the_same_in_any_order(
    model: Backbone, tasks: list[Task], start: LoRA, plain: list[Stage], tmp_path: Path
) -> None:
    one, other = (
        learnt(model, order, start, tmp_path / order[0].name, "regmean")
        for order in (tasks[:2], tasks[1::-1])
    )
    torch.testing.assert_close(deltas(one[0].lora), deltas(plain[0].lora), **CLOSE)
    torch.testing.assert_close(deltas(one[1].lora), deltas(other[1].lora), **CLOSE)
    assert (deltas(one[1].lora)[0] - deltas(plain[0].lora)[0]).abs().max() > 1e-3


def test_orthogonal_learning_leaves_old_tasks_factors_and_turns_the_new_away(
    model: Backbone, tasks: list[Task], start: LoRA, tmp_path: Path
) -> None:
    overlaps = []
    for strength in (0.0, 50.0):
        first, second = learnt(
            model, tasks[:2], start, tmp_path / str(strength), "orthogonal", strength=strength
        )
        rank = first.lora.rank
        overlap = 0.0
        for name, (a, b) in second.lora.factors.items():
            assert torch.equal(a[:rank], first.lora.factors[name].a)
            torch.testing.assert_close(b[:, :rank], first.lora.factors[name].b)
            overlap += float((a[rank:] @ a[start.rank : rank].T).square().sum())
        overlaps.append(overlap)
    assert second.lora.rank == 3 * start.rank and overlaps[1] < 0.7 * overlaps[0]


def test_slao_keeps_one_size_and_its_first_task_is_learnt_plainly(
    model: Backbone, tasks: list[Task], start: LoRA, plain: list[Stage], tmp_path: Path
) -> None:
    own = learnt(model, tasks[:2], start, tmp_path / "slao", "slao")
    assert own[0].lora == plain[0].lora and own[1].lora.rank == start.rank


def test_a_stream_that_was_stopped_goes_on(
    model: Backbone, tasks: list[Task], start: LoRA, tmp_path: Path
) -> None:
    whole = learnt(model, tasks[:2], start, tmp_path / "whole", "ewc")
    folder = tmp_path / "stopped"
    learnt(model, tasks[:1], start, folder, "ewc")
    for _ in range(2):  # the second time nothing is trained
        again = learnt(model, tasks[:2], start, folder, "ewc")
        assert [stage.lora == other.lora for stage, other in zip(whole, again, strict=True)] == [True] * 2
    rows = [json.loads(line) for line in (folder / "02-reverse" / "log.jsonl").read_text().splitlines()]
    assert len(rows) == CONFIG.steps and rows[0]["penalty"] == 0 < rows[-1]["penalty"]
    with pytest.raises(UsageError, match="is the checkpoint of another run, with other data"):
        learnt(model, tasks[:2], start, folder, "ewc", strength=7.0)


# The parts


def test_fisher_information_is_the_mean_squared_gradient(
    model: Backbone, tasks: list[Task], start: LoRA
) -> None:
    two = [Task("two", "words", "Two.", ("Two.",), tasks[0].train[i : i + 1], ()) for i in (0, 1)]
    both = Task("two", "words", "Two.", ("Two.",), tasks[0].train[:2], ())
    targets = [t for t in model.shape.targets if t.name in start.factors]
    squares = []
    for task in two:
        corpus = tokenise([task], model, 256)
        objective = LoraObjective(model, corpus, targets, start, CONFIG.model_copy(update={"batch_size": 1}))
        tokens = len(corpus.examples[0][0].completion)
        gradients = torch.autograd.grad(objective.loss(0).loss * tokens, list(objective.module))
        squares.append([gradient.square() for gradient in gradients])
    expected = [torch.stack(own).mean(0) for own in zip(*squares, strict=True)]
    found = [t for own in fisher_information(model, both, start, CONFIG).values() for t in own]
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-3)


def drawn(seed: int) -> LoRA:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 5, generator=generator), torch.randn(4, 2, generator=generator)
    return LoRA({"m": LoraFactors(a, b)}, 2.0)


def gradients(penalty: Any, lora: LoRA) -> list[torch.Tensor]:
    pair = LoraFactors(*(t.clone().requires_grad_() for t in lora.factors["m"]))
    loss = penalty(LoRA({"m": pair}, lora.alpha))
    found = torch.autograd.grad(loss, pair, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, pair, strict=True)]


def test_the_elastic_penalty_of_two_tasks_pulls_as_the_two_penalties_do() -> None:
    fishers = [{"m": LoraFactors(*(t.square() for t in drawn(seed).factors["m"]))} for seed in (1, 2)]
    one = ElasticPenalty(3.0).and_near(drawn(3), fishers[0])
    other = ElasticPenalty(3.0).and_near(drawn(4), fishers[1])
    both = one.and_near(drawn(4), fishers[1])
    pulls = [gradients(penalty, drawn(5)) for penalty in (one, other, both)]
    for first, second, sum_of in zip(*pulls, strict=True):
        torch.testing.assert_close(first + second, sum_of, **CLOSE)
    a, f, c = (own["m"].a for own in (drawn(5).factors, fishers[0], drawn(3).factors))
    torch.testing.assert_close(pulls[0][0], 3.0 * f * (a - c))
    assert float(one(drawn(3))) == 0 and one.fingerprint() != both.fingerprint()


def test_the_orthogonal_penalty_pulls_a_off_the_old_rows_alone() -> None:
    old = [drawn(1), drawn(2)]
    a, b = gradients(OrthogonalPenalty(0.5, old), drawn(3))
    rows = torch.cat([lora.factors["m"].a for lora in old])
    torch.testing.assert_close(a, 2 * 0.5 * drawn(3).factors["m"].a @ rows.T @ rows)
    assert not b.any()


def test_slao_starts_from_orthonormal_rows_that_span_the_last_ones() -> None:
    lora = drawn(1)
    a, b = with_orthonormal_a(lora).factors["m"]
    torch.testing.assert_close(a @ a.T, torch.eye(2), **CLOSE)
    before = lora.factors["m"].a
    torch.testing.assert_close(before @ a.T @ a, before, **CLOSE)
    assert torch.equal(b, lora.factors["m"].b) and bool(((before @ a.T).diagonal() > 0).all())


def test_slao_takes_the_newest_a_and_moves_b_by_a_share_that_falls() -> None:
    before, lora = drawn(1), drawn(2)
    assert merged_in_time(before, lora, 1) == lora
    a, b = merged_in_time(before, lora, 4).factors["m"]
    assert torch.equal(a, lora.factors["m"].a)
    torch.testing.assert_close(b, (before.factors["m"].b + lora.factors["m"].b) / 2)


# Bad input


@pytest.mark.parametrize(
    ("method", "settings", "says"),
    [
        ("magic", {}, "'magic' is no method of continual learning; choose from sequential"),
        ("replay", {"keep": -1}, "keep -1 examples of every old task: the least is 0"),
        ("ewc", {"strength": -1.0}, "strength -1 of ewc: it is a finite number from 0 on"),
        ("orthogonal", {"strength": float("nan")}, "strength nan of orthogonal"),
        ("ewc", {"strength": float("inf")}, "strength inf of ewc"),
        ("replay", {"strength": 1.0}, "strength 1 of replay: .* for ewc, orthogonal alone"),
    ],
)
def test_settings_that_cannot_be_used(
    model: Backbone,
    tasks: list[Task],
    start: LoRA,
    tmp_path: Path,
    method: str,
    settings: dict[str, Any],
    says: str,
) -> None:
    with pytest.raises(UsageError, match=says) as error:
        learnt(model, tasks, start, tmp_path / "runs", method, **settings)
    assert "\n" not in str(error.value) and not (tmp_path / "runs").exists()


def test_a_stream_needs_tasks_of_different_names(
    model: Backbone, tasks: list[Task], start: LoRA, tmp_path: Path
) -> None:
    for own, says in (([], "0 tasks with 0 names"), (tasks[:1] * 2, "2 tasks with 1 names")):
        with pytest.raises(UsageError, match=says):
            learnt(model, own, start, tmp_path, "sequential")


def test_every_method_names_its_source_and_what_it_needs() -> None:
    assert list(METHODS) == ["sequential", "replay", "ewc", "orthogonal", "slao", "regmean", "joint"]
    assert {name for name, own in METHODS.items() if own.old_data == "none"} == {
        *("sequential", "ewc", "orthogonal", "slao", "regmean")
    }
