"""Logits that overflow, and text that is not Unicode: one error, whatever asks the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shoal.adapters.card import LabelSet
from shoal.errors import ShoalError, UsageError
from shoal.inference.engine.core import Engine
from shoal.inference.engine.records import Request
from shoal.inference.generate import generate_greedy, sample_tokens
from shoal.inference.labels import choose_labels
from shoal.inference.sampling import Sampling
from shoal.inference.scoring import reference_losses
from shoal.models.backbone import Backbone, load_backbone


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
