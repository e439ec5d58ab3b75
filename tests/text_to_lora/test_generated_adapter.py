"""What a generated adapter says of itself: on its card, and to whoever is about to use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal.adapters.lora import LoRA
from shoal.models.shapes import load_shape
from shoal.text_to_lora.generated_adapter import GeneratedAdapter, familiarity_note
from shoal.text_to_lora.skills import SkillDetection

FAR = {"nearest_tasks": {"plurals": 0.412, "dates": 0.6}, "distance": 0.412, "confidence": 0.25, "far": True}


@pytest.mark.parametrize(
    ("confidence", "nonsense", "said"),
    [
        (0.25, False, "The nearest training task is plurals, at distance 0.41: confidence 0.25."),
        (0.0, True, "The description reads as nonsense: this is the adapter that such descriptions share."),
    ],
)
def test_the_note_says_how_near_or_that_it_is_nonsense(confidence: float, nonsense: bool, said: str) -> None:
    assert familiarity_note({**FAR, "confidence": confidence, "nonsense": nonsense}) == said


def adapter_with(base: Path, **facts: Any) -> GeneratedAdapter:
    shape = load_shape(str(base))
    lora = LoRA.identity(shape.select(("q_proj",), 1), 2, 4.0)
    return GeneratedAdapter("Sort the words.", lora, SkillDetection((), {}), facts, 0.1, shape)


def test_an_identity_says_that_it_changes_nothing_and_what_trains_it(tiny_llama: Path) -> None:
    (note,) = adapter_with(tiny_llama, trained=False, how_to_train="shoal train it").notes
    assert note.startswith(f"This adapter changes nothing: no hypernetwork is trained for {tiny_llama}")
    assert note.endswith("Train one with: shoal train it")


def test_a_description_far_from_the_training_tasks_asks_for_examples(tiny_llama: Path) -> None:
    (note,) = adapter_with(tiny_llama, trained=True, nonsense=False, **FAR).notes
    assert note == (
        "The description is far from every training task (the nearest is plurals, confidence 0.25), so the "
        "adapter may help little. Give 4 or more solved examples of the task."
    )


def test_what_the_base_model_cannot_do_is_said(tiny_llama: Path) -> None:
    (note,) = adapter_with(tiny_llama, trained=True, nonsense=False, hard=0.12, **FAR).notes
    assert note == (
        "The nearest training task is plurals, and even a LoRA trained on it answers badly there (ROUGE-L "
        "0.12 of 1): this base model can hardly do such tasks. Take a larger base model."
    )


def test_nonsense_asks_for_a_sentence(tiny_llama: Path) -> None:
    (note,) = adapter_with(tiny_llama, trained=True, nonsense=True, **FAR).notes
    assert "reads as nonsense" in note and note.endswith("Say in a sentence what the model shall do.")


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {**FAR, "nonsense": False, "far": False},
        {**FAR, "nonsense": False, "few_shot": {"examples": 6}},
    ],
    ids=["tasks not known", "near", "refined on examples"],
)
def test_there_is_no_note_where_nothing_is_to_be_done(tiny_llama: Path, facts: dict[str, Any]) -> None:
    assert adapter_with(tiny_llama, trained=True, **facts).notes == ()
