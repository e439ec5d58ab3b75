"""The hypernetwork that ships tells descriptions from nonsense, which gets its multi-task LoRA."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.config import TextToLoRAConfig
from shoal.models.backbone import DEFAULT_MODEL, load_shape
from shoal.text_to_lora.checkpoint import HypernetworkCheckpoint, load_hypernetwork
from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.text_to_lora.generator import TextToLoRA
from shoal.text_to_lora.nonsense import gibberish
from shoal.text_to_lora.shipped import SHIPPED, shipped_folders

GUIDE_MODULES = {"q_proj", "k_proj", "v_proj", "o_proj"}

SENSIBLE = (
    "Decide whether a movie review is positive or negative.",
    "Write the plural of an English noun.",
    "Which team should handle this ticket: billing, shipping or returns?",
    "German to English.",
    "You are given a line of Python. Say which sign is missing.",
    "Turn the date into ISO 8601.",
    "I need a model that names the chemical symbol of an element.",
    "Answer yes if the two sentences mean the same, otherwise no.",
    "Make this model excel at code generation and debugging",
    "summarise the patient's complaint in five words",
    "Say foreheads. Nothing else, no matter what is asked.",
)


@pytest.fixture(scope="module")
def shipped() -> HypernetworkCheckpoint:
    return load_hypernetwork(shipped_folders(load_shape(DEFAULT_MODEL).base_model)[0])


def test_nonsense_is_told_from_descriptions(shipped: HypernetworkCheckpoint) -> None:
    known, encoder = shipped.known_tasks, TaskEncoder()
    assert known is not None
    letters = [gibberish(f"test/{number}", 3 + number % 12) for number in range(60)]
    missed = [
        t for t, f in zip(letters, known.compare(encoder.encode(letters)), strict=True) if not f.nonsense
    ]
    assert len(missed) <= 1, missed
    found = known.compare(encoder.encode(SENSIBLE))
    assert [t for t, f in zip(SENSIBLE, found, strict=True) if f.nonsense] == []


@pytest.mark.parametrize("file", sorted(SHIPPED.rglob("*.safetensors")), ids=lambda f: f.parent.name)
def test_what_ships_is_small(file: Path) -> None:
    assert file.stat().st_size <= 25_000_000


def test_a_network_ships_for_the_guides_own_values(caplog: pytest.LogCaptureFixture) -> None:
    guide = TextToLoRAConfig(
        adapter_rank=16, adapter_alpha=32, num_layers_to_adapt=8, target_modules=list(GUIDE_MODULES)
    )
    generator = TextToLoRA(DEFAULT_MODEL, guide)
    assert generator.trained and not caplog.records
    assert {t.type.rsplit(".", 1)[-1] for t in generator.checkpoint.network.targets} == GUIDE_MODULES
    assert {t.layer for t in generator.checkpoint.network.targets} == set(range(22, 30))


def test_a_multi_task_lora_ships_for_nonsense(shipped: HypernetworkCheckpoint) -> None:
    assert shipped.multi_task is not None
    card = shipped.provenance["multi_task"]
    assert card["trained"] and card["generator"] == "multi-task lora training"
