"""Tuning of a LoRA: what decides a run, what is shared, and that `test` is never read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.config import LoraTrainingConfig, TextToLoRAConfig
from shoal.errors import UsageError
from shoal.tasks.loading import Example, Task
from shoal.training.lora import train_lora
from shoal.tuning.lora import LoraWorkload
from shoal.tuning.workloads import Division, Runs
from tests.fixtures.toy import toy_backbone, toy_task

WORDS = tuple(
    f"{a}{b}" for a in ("red", "blue", "green", "grey") for b in ("cat", "dog", "cow", "hen", "pig", "fox")
)


def task(words: tuple[str, ...] = WORDS) -> Task:
    return toy_task("upper", words)


def workload(model: Path, own: Task | None = None, **changes: Any) -> LoraWorkload:
    training = {"steps": 8, "batch_size": 4, "learning_rate": 3e-3, **changes.pop("training", {})}
    sizes = TextToLoRAConfig(adapter_rank=2, adapter_alpha=4, num_layers_to_adapt=2)
    return LoraWorkload(toy_backbone(model), own or task(), LoraTrainingConfig(**training), sizes, **changes)


def test_a_trial_ends_as_the_command_does(tiny_llama: Path, tmp_path: Path) -> None:
    own = workload(tiny_llama)
    settings = dict(own.defaults)
    runs = Runs(own, tmp_path / "runs")
    for look in own.looks(settings):
        observed = runs.observe(settings, Division(0, 5), look, 0)
    backbone, whole = toy_backbone(tiny_llama), replace(task(), test=())
    fit, _ = own._examples.divided(0)
    inputs = {e.input for e in own._examples.shown(fit.examples[0])}
    fitted = replace(whole, train=tuple(e for e in own._examples.task.train if e.input in inputs))
    config = own._config(settings).model_copy(update={"seed": 5})
    targets = backbone.shape.select(tuple(settings["target_modules"]), 2)
    lora, summary = train_lora(
        backbone, [fitted], targets, tmp_path / "alone", config, rank=2, alpha=4.0, show_progress=False
    )
    assert observed.sha256 == lora.fingerprint() and observed.tokens == summary.tokens


def test_losses_are_those_of_examples_that_were_not_trained_on(tiny_llama: Path, tmp_path: Path) -> None:
    own = workload(tiny_llama)
    fit, asked = own._examples.divided(0)
    assert not {e.index for e in fit.examples[0]} & {e.index for e in asked}
    assert len(asked) == 6 and len(fit.examples[0]) + len(asked) == len(task().train)
    other = own._examples.divided(1)[1]
    assert {e.index for e in other} != {e.index for e in asked}


def test_the_test_list_changes_nothing(tiny_llama: Path) -> None:
    swapped = replace(task(), test=(Example("other", ("OTHER",)),))
    assert workload(tiny_llama).fingerprint() == workload(tiny_llama, swapped).fingerprint()


def test_lengths_share_their_stable_part(tiny_llama: Path, tmp_path: Path) -> None:
    own = workload(tiny_llama, lengths=(5, 10))
    short, long = own.whole({"steps": 5}), own.whole({"steps": 10})
    assert (own.looks(short), own.looks(long)) == ([4, 5], [4, 8, 10])
    assert own.shared(short, 4) == own.shared(long, 4) and own.shared(short, 5) != own.shared(long, 5)
    runs = Runs(own, tmp_path)
    for look in own.looks(short):
        runs.observe(short, Division(0, 0), look, 0)
    for look in own.looks(long):
        runs.observe(long, Division(0, 0), look, 1)
    first, second = (runs.tokens_of(s, Division(0, 0), n)[0] for n, s in enumerate((short, long)))
    fresh = Runs(workload(tiny_llama, lengths=(5, 10)), tmp_path / "fresh")
    for look in own.looks(long):
        alone = fresh.observe(long, Division(0, 0), look, 0)
    assert alone.sha256 == runs.observe(long, Division(0, 0), 10, 1).sha256
    assert 0 < second < alone.tokens and first > 0


def test_alpha_follows_the_rank(tiny_llama: Path) -> None:
    whole = workload(tiny_llama).whole({"adapter_rank": 8})
    assert (whole["adapter_rank"], whole["adapter_alpha"]) == (8, 16.0)


@pytest.mark.parametrize("metric", ["rouge_l", "exact_match"])
def test_answers_can_judge(metric: str, tiny_llama: Path, tmp_path: Path) -> None:
    own = workload(tiny_llama, metric=metric, max_new_tokens=4, training={"steps": 1})
    observed = own.train(dict(own.defaults), Division(0, 0), tmp_path, 1)
    assert len(observed.losses) == 6 and all(0 <= loss <= 1 for loss in observed.losses)


def test_a_start_is_gone_on_from(tiny_llama: Path, tmp_path: Path) -> None:
    backbone = toy_backbone(tiny_llama)
    targets = backbone.shape.select(("q_proj",), 2)
    config = LoraTrainingConfig(steps=2)
    start, _ = train_lora(
        backbone, [task()], targets, tmp_path / "first", config, rank=2, show_progress=False
    )
    own = workload(tiny_llama, start=start)
    assert "adapter_rank" not in own.defaults
    fresh = own.train(own.whole({"learning_rate": 1e-9, "steps": 1}), Division(0, 0), tmp_path / "run", 1)
    expected = own._losses(own._examples.divided(0)[1], start)
    assert torch.allclose(torch.tensor(fresh.losses), torch.tensor(expected), atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"own": toy_task("upper", WORDS[:12])}, "upper has 11 different training inputs, 16 are needed"),
        ({"training": {"minutes": 2}}, "--minutes 2: trials have steps"),
        ({"metric": "test"}, "--metric test: choose from nll, rouge_l, exact_match"),
    ],
    ids=["few", "minutes", "metric"],
)
def test_bad_input_is_one_line(changes: dict[str, Any], message: str, tiny_llama: Path) -> None:
    with pytest.raises(UsageError, match=message):
        workload(tiny_llama, **changes)
