"""Training one LoRA: it learns, what is cached or recomputed changes nothing, and no test example gets in."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.adapters.hooks import attach
from shoal.adapters.lora import LoRA
from shoal.config import LoraTrainingConfig
from shoal.errors import UsageError
from shoal.inference.forward import answer_losses, pad_sequences
from shoal.models.backbone import Backbone
from shoal.tasks.loading import LeakageError
from shoal.training.batches import tokenise
from shoal.training.loop import Interrupted, run
from shoal.training.lora import LoraObjective, set_for_training, train_lora

FAMILIES = ("llama", "gemma2", "gpt2", "gpt_neox", "opt", "phi", "qwen3_moe", "gpt_oss", "deepseek_v3")
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def config(**changes: Any) -> LoraTrainingConfig:
    return LoraTrainingConfig(**{"steps": 6, "batch_size": 4, "checkpoint_every": 3, **changes})


def started(targets: Any, seed: int = 0) -> LoRA:
    """An adapter that already changes something, so that both factors get gradients."""
    generator = torch.Generator().manual_seed(seed)
    lora = LoRA.identity(targets, 2, 4.0, generator=generator)
    moved = {
        n: f._replace(b=torch.randn(f.b.shape, generator=generator) / 8) for n, f in lora.factors.items()
    }
    return dataclasses.replace(lora, factors=moved)


def objective(toy: ModuleType, backbone: Backbone, layers: int | None, **changes: Any) -> LoraObjective:
    # Of a model with several experts in a layer, attention is trained.
    modules = ("q_proj", "v_proj") if backbone.shape.parameters else ("q_proj", "v_proj", "down_proj")
    targets = backbone.shape.select(modules, layers)
    corpus = tokenise(toy.toy_tasks(), backbone, 512)
    return LoraObjective(backbone, corpus, targets, started(targets), config(**changes))


def gradients(objective: LoraObjective, forward_pass: int = 0) -> tuple[float, list[Tensor]]:
    """(loss, gradient of every factor) of a pass; the backward pass runs after the adapter is detached."""
    loss = objective.loss(forward_pass).loss
    return float(loss.detach()), list(torch.autograd.grad(loss, list(objective.module)))


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_task_is_overfitted(toy: ModuleType, sharp: Backbone, tmp_path: Path) -> None:
    task = toy.toy_task("upper", ("apple", "banana", "cherry"))
    lora, summary = train_lora(
        sharp,
        [task],
        sharp.shape.targets,
        tmp_path,
        config(steps=60, batch_size=2, learning_rate=1e-2),
        rank=8,
        alpha=16.0,
        show_progress=False,
    )
    assert rows_of(tmp_path)[0]["loss"] > 5 and summary.final_loss < 0.1
    pairs = [(e.prompt, e.completion) for e in tokenise([task], sharp, 512).examples[0]]
    batch = pad_sequences(pairs, sharp.end_of_turn, sharp.device)
    with attach(sharp.model, lora):
        assert float(answer_losses(sharp, batch).mean()) < 0.1
    assert float(answer_losses(sharp, batch).mean()) > 5  # and the model is as it was


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cached_prefix_changes_nothing(
    family: str, toy: ModuleType, tiny_models: dict[str, Path]
) -> None:
    """Losses and gradients are those of the whole model, also where the cache is read, not filled."""
    backbone = toy.toy_backbone(tiny_models[family])
    ours = objective(toy, backbone, 1)
    for forward_pass in (0, 1, 0):
        loss, grads = gradients(ours, forward_pass)
        examples = ours._order.batch(forward_pass)
        pairs = [(e.prompt, e.completion) for e in examples]
        batch = pad_sequences(pairs, backbone.end_of_turn, backbone.device)
        with attach(backbone.model, ours._lora.current()):
            whole = answer_losses(backbone, batch).mean()
        torch.testing.assert_close(loss, float(whole.detach()), **CLOSE)
        expected = torch.autograd.grad(whole, list(ours.module))
        torch.testing.assert_close(grads, list(expected), **CLOSE)


@pytest.mark.parametrize("layers", [None, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_gives_the_same_gradients(
    family: str, layers: int | None, toy: ModuleType, tiny_models: dict[str, Path]
) -> None:
    backbone = toy.toy_backbone(tiny_models[family])
    with set_for_training(backbone):
        plain = gradients(objective(toy, backbone, layers))
        recomputed = gradients(objective(toy, backbone, layers, gradient_checkpointing=True))
    assert recomputed[0] == plain[0]
    assert all(torch.equal(a, b) for a, b in zip(recomputed[1], plain[1], strict=True))
    assert all(grad.abs().max() > 0 for grad in recomputed[1])


def test_checkpointing_is_exact_over_a_run(toy: ModuleType, backbone: Backbone, tmp_path: Path) -> None:
    results = [
        toy.run_lora(backbone, tmp_path / str(on), steps=6, batch_size=4, gradient_checkpointing=on)[0]
        for on in (False, True)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_training_is_a_function_of_its_seed(toy: ModuleType, backbone: Backbone, tmp_path: Path) -> None:
    runs = [
        toy.run_lora(backbone, tmp_path / str(number), steps=4, batch_size=4, seed=seed)[0]
        for number, seed in enumerate((0, 0, 1))
    ]
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


def test_accumulated_batches_are_one_larger_batch(toy: ModuleType, backbone: Backbone) -> None:
    """Mean over samples: n batches of b examples give the gradient of their n x b examples."""
    ours = objective(toy, backbone, None)
    parts = [gradients(ours, number) for number in range(3)]
    pairs = [(e.prompt, e.completion) for number in range(3) for e in ours._order.batch(number)]
    batch = pad_sequences(pairs, backbone.end_of_turn, backbone.device)
    with attach(backbone.model, ours._lora.current()):
        joined = answer_losses(backbone, batch).mean()
    expected = torch.autograd.grad(joined, list(ours.module))
    mean = [torch.stack(own).mean(0) for own in zip(*(grads for _, grads in parts), strict=True)]
    torch.testing.assert_close(mean, list(expected), **CLOSE)
    assert sum(loss for loss, _ in parts) / 3 == pytest.approx(float(joined.detach()), rel=1e-4)


def test_label_smoothing_acts(toy: ModuleType, backbone: Backbone) -> None:
    plain, _ = gradients(objective(toy, backbone, None))
    smooth, _ = gradients(objective(toy, backbone, None, label_smoothing=0.3))
    assert smooth != pytest.approx(plain, abs=1e-3)


def test_a_description_in_the_prompt_is_read(toy: ModuleType, backbone: Backbone, tmp_path: Path) -> None:
    tokens = [
        toy.run_lora(backbone, tmp_path / str(on), steps=1, batch_size=4, describe=on)[1].tokens
        for on in (False, True)
    ]
    assert tokens[1] > tokens[0] + 4 * len("Apply upper.\n\n") / 2


def test_going_on_from_an_adapter(toy: ModuleType, backbone: Backbone, tmp_path: Path) -> None:
    targets = backbone.shape.select(("q_proj",), None)
    start = started(targets)
    tasks = toy.toy_tasks(1)
    lora, _ = train_lora(
        backbone,
        tasks,
        targets,
        tmp_path / "run",
        config(learning_rate=1e-12),
        start=start,
        show_progress=False,
    )
    assert (lora.rank, lora.alpha) == (2, 4.0)
    for name, factors in lora.factors.items():
        torch.testing.assert_close(tuple(factors), tuple(start.factors[name]), atol=1e-8, rtol=0)
    other = started(targets, seed=1)
    with pytest.raises(UsageError, match="another run, with other data; use a new folder"):
        train_lora(backbone, tasks, targets, tmp_path / "run", config(learning_rate=1e-12), start=other)
    with pytest.raises(UsageError, match="adapts 3 modules, not the 21 targets; choose"):
        train_lora(
            backbone,
            tasks,
            backbone.shape.targets,
            tmp_path / "new",
            config(),
            start=start,
            show_progress=False,
        )


def test_alpha_and_data_are_part_of_a_run(toy: ModuleType, backbone: Backbone, tmp_path: Path) -> None:
    targets = backbone.shape.select(("q_proj",), None)
    arguments = (targets, tmp_path, config())
    train_lora(backbone, toy.toy_tasks(2), *arguments, rank=2, alpha=4.0, show_progress=False)
    with pytest.raises(UsageError, match="with other data"):
        train_lora(backbone, toy.toy_tasks(2), *arguments, rank=2, alpha=8.0, show_progress=False)
    with pytest.raises(UsageError, match="with other data"):
        train_lora(backbone, toy.toy_tasks(3), *arguments, rank=2, alpha=4.0, show_progress=False)


def test_evaluation_data_is_never_trained_on(toy: ModuleType, backbone: Backbone, tmp_path: Path) -> None:
    tasks = toy.toy_tasks()
    targets = backbone.shape.select(("q_proj",), 1)

    def train(train_tasks: Any, held_out: Any) -> None:
        train_lora(
            backbone, train_tasks, targets, tmp_path, config(), rank=2, held_out=held_out, show_progress=False
        )

    with pytest.raises(LeakageError, match="1 held-out tasks are also in training, the first is upper"):
        train(tasks, tasks[:1])
    renamed = dataclasses.replace(tasks[0], name="renamed")
    with pytest.raises(LeakageError, match="is evaluation data of task renamed"):
        train(tasks, [renamed])
    tested = dataclasses.replace(toy.toy_task("upper"), name="tested", train=(), test=tasks[0].train[:1])
    with pytest.raises(LeakageError, match="is evaluation data of task tested"):
        train([*tasks, tested], [])
    assert not tmp_path.exists() or list(tmp_path.iterdir()) == []


def test_nothing_to_train(toy: ModuleType, backbone: Backbone, tmp_path: Path) -> None:
    targets = backbone.shape.select(("q_proj",), 1)
    with pytest.raises(UsageError, match="at least one task, got none"):
        train_lora(backbone, [], targets, tmp_path, config())
    with pytest.raises(UsageError, match="at least one target module, got none"):
        train_lora(backbone, toy.toy_tasks(), [], tmp_path, config())
    with pytest.raises(UsageError, match=r"rank 33 is outside 1\.\."):
        train_lora(backbone, toy.toy_tasks(), targets, tmp_path, config(), rank=33)


def test_a_run_leaves_the_model_as_it_was(
    toy: ModuleType, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.arange(20)[None]
    before = backbone.model(ids).logits
    attention = backbone.model.config._attn_implementation
    weights = {n: p.clone() for n, p in backbone.model.named_parameters()}
    toy.run_lora(backbone, tmp_path / "run", steps=2, batch_size=2, gradient_checkpointing=True)

    def fail(*arguments: object, **named: object) -> None:
        raise Interrupted("stop")

    monkeypatch.setattr("shoal.training.lora.run", fail)
    with pytest.raises(Interrupted):
        toy.run_lora(backbone, tmp_path / "other", steps=2)
    assert backbone.model.config._attn_implementation == attention
    assert torch.equal(backbone.model(ids).logits, before)
    assert all(torch.equal(p, weights[n]) for n, p in backbone.model.named_parameters())


def test_factors_may_be_trained_alone(toy: ModuleType, backbone: Backbone, tmp_path: Path) -> None:
    """The objective is what a run needs, and gives the adapter at any time."""
    ours = objective(toy, backbone, 1)
    before = ours.lora()
    run(ours, config(), tmp_path, show_progress=False)
    assert ours.lora() != before
    assert all(f.a.dtype == torch.float32 and not f.a.requires_grad for f in ours.lora().factors.values())
