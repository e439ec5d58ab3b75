"""Logits that overflow, and text that is not Unicode: one error, whatever asks the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shoal.adapters.card import LabelSet
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.config import LoraTrainingConfig
from shoal.errors import ShoalError, UsageError
from shoal.inference.engine.core import Engine
from shoal.inference.engine.records import Request
from shoal.inference.generate import generate_greedy, sample_tokens
from shoal.inference.labels import choose_labels
from shoal.inference.sampling import Sampling
from shoal.inference.scoring import reference_losses
from shoal.models.backbone import Backbone, load_backbone
from shoal.tasks.loading import Task
from shoal.tasks.records import Example
from shoal.training.loop import Diverged
from shoal.training.lora import train_lora


@pytest.fixture
def overflowing(tiny_llama: Path) -> Backbone:
    """A model in float16 whose logits are larger than that can hold."""
    backbone = load_backbone(str(tiny_llama), device="cpu", dtype=torch.float16)
    with torch.no_grad():
        backbone.model.model.norm.weight.fill_(6e4)
    return backbone


def answered_by_the_engine(backbone: Backbone) -> None:
    engine = Engine(backbone)
    engine.submit(Request(backbone.encode_prompt("go"), max_tokens=2, sampling=Sampling(0.0)))
    while engine.busy:
        for event in engine.step():
            if event.error is not None:
                raise event.error


WAYS: dict[str, Callable[[Backbone], object]] = {
    "greedy": lambda b: generate_greedy(b, ["go"], max_new_tokens=2),
    "sampled": lambda b: sample_tokens(b, [b.encode_prompt("go")], generator=torch.Generator()),
    "engine": answered_by_the_engine,
    "labels": lambda b: choose_labels(b, [b.encode_prompt("go")], LabelSet(labels=("yes", "no"))),
    "losses": lambda b: reference_losses(b, ["go"], ["there"]),
}


@pytest.mark.parametrize("way", WAYS)
def test_logits_that_overflow_are_one_error_that_names_the_dtype(way: str, overflowing: Backbone) -> None:
    with pytest.raises(ShoalError, match=r"not finite in float16; take bfloat16 or float32") as caught:
        WAYS[way](overflowing)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("way", WAYS)
def test_weights_that_are_no_numbers_are_to_be_checked(way: str, tiny_llama: Path) -> None:
    backbone = load_backbone(str(tiny_llama), device="cpu", dtype=torch.float32)
    with torch.no_grad():
        backbone.model.model.norm.weight[0] = float("nan")
    with pytest.raises(ShoalError, match=r"not finite in float32; check the adapter and the weights"):
        WAYS[way](backbone)


def test_factors_whose_product_overflows_are_the_same_error(tiny_llama: Path) -> None:
    backbone = load_backbone(str(tiny_llama), device="cpu", dtype=torch.float32)
    lora = LoRA.identity(backbone.shape.targets, 2, 4.0, generator=torch.Generator().manual_seed(0))
    huge = {name: LoraFactors(f.a * 1e30, torch.full_like(f.b, 1e30)) for name, f in lora.factors.items()}
    with pytest.raises(ShoalError, match="not finite in float32"):
        generate_greedy(backbone, ["go"], LoRA(huge, lora.alpha), max_new_tokens=2)


def test_a_training_that_overflows_in_float16_diverges_in_one_line(
    overflowing: Backbone, tmp_path: Path
) -> None:
    examples = tuple(Example(f"word {i}", (f"w{i}",)) for i in range(8))
    task = Task("t", "words", "Do it.", ("Do it.",), examples[:7], examples[7:])
    config = LoraTrainingConfig(steps=2, batch_size=4)
    with pytest.raises(Diverged, match="of step 1 is not finite") as caught:
        train_lora(
            overflowing, [task], overflowing.shape.targets, tmp_path / "run", config, show_progress=False
        )
    assert "\n" not in str(caught.value)


HALF = "half \ud83d pair"
TEXTS: dict[str, Callable[[Backbone], object]] = {
    "prompt": lambda b: b.encode_prompt(HALF),
    "chat": lambda b: b.encode_chats(
        [[{"role": "system", "content": HALF}, {"role": "user", "content": "x"}]]
    ),
    "completion": lambda b: b.encode_completion(HALF),
    "text": lambda b: b.encode_text("\udcff"),
}


@pytest.mark.parametrize("way", TEXTS)
def test_text_that_is_not_unicode_is_refused(way: str, tiny_llama: Path) -> None:
    backbone = load_backbone(str(tiny_llama), device="cpu")
    with pytest.raises(UsageError, match="not valid Unicode at character"):
        TEXTS[way](backbone)
