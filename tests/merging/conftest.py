"""Adapters that are good at one toy rule each, trained once for all tests of a process."""

from __future__ import annotations

from types import ModuleType

import pytest

from shoal.adapters.lora import LoRA
from shoal.config import LoraTrainingConfig
from shoal.models.backbone import Backbone
from shoal.training.lora import train_lora

RULES = ("upper", "double")
TRAINED: dict[str, LoRA] = {}


@pytest.fixture
def parents(toy: ModuleType, sharp: Backbone, tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoRA]:
    """One adapter a rule, trained once for all tests."""
    settings = {"steps": 16, "batch_size": 4, "learning_rate": 2e-2, "checkpoint_every": 16}
    for rule in RULES:
        if rule not in TRAINED:
            TRAINED[rule], _ = train_lora(
                sharp,
                [toy.toy_task(rule)],
                sharp.shape.select(("q_proj", "v_proj", "down_proj"), None),
                tmp_path_factory.mktemp(rule),
                LoraTrainingConfig(**settings),
                rank=4,
                alpha=8.0,
                show_progress=False,
            )
    return dict(TRAINED)
