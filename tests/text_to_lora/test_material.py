"""Labels and inputs through the generator, and distillation without a hypernetwork."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shoal.adapters.files import load_adapter
from shoal.config import TextToLoRAConfig
from shoal.errors import ShoalError, UnavailableError, UsageError
from shoal.models.backbone import load_backbone
from shoal.text_to_lora import distillation
from shoal.text_to_lora.checkpoint import HypernetworkCheckpoint, save_hypernetwork
from shoal.text_to_lora.encoders.sentence import DEFAULT_ENCODER
from shoal.text_to_lora.familiarity import Familiarity
from shoal.text_to_lora.generator import TextToLoRA
from shoal.text_to_lora.sample_inputs import input_kinds
from shoal.text_to_lora.shipped import new_hypernetwork
from tests.text_to_lora.test_generator import DIM, SIZES, fake_encoder  # noqa: F401 (the fixture is autouse)

DESCRIPTION = "Classify the word as fruit, animal or tool."
INPUTS = ["apple", "dog", "hammer", "saw", "pear", "cat"]


@pytest.fixture(scope="module")
def checkpoint(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of random weights that calls itself trained."""
    backbone = load_backbone(str(tiny_llama), device="cpu", dtype=torch.float32)
    torch.manual_seed(0)
    network = new_hypernetwork(backbone.shape, SIZES, DIM).eval()
    folder = tmp_path_factory.mktemp("network")
    save_hypernetwork(
        HypernetworkCheckpoint(network, str(tiny_llama), DEFAULT_ENCODER, True, {"steps": 1}), folder / "c"
    )
    return folder / "c"


@pytest.fixture
def generator(tiny_llama: Path, checkpoint: Path) -> TextToLoRA:
    return TextToLoRA(str(tiny_llama), hypernetwork=checkpoint)


@pytest.fixture
def untrained(tiny_llama: Path) -> TextToLoRA:
    return TextToLoRA(str(tiny_llama), TextToLoRAConfig(adapter_rank=4, adapter_alpha=8))


def test_the_label_set_is_read_from_the_description(generator: TextToLoRA) -> None:
    label_set = generator.generate(DESCRIPTION).label_set
    assert label_set is not None
    assert (label_set.labels, label_set.source, label_set.priors) == (
        ("fruit", "animal", "tool"),
        "description",
        None,
    )
    assert generator.generate("Sort the words.").label_set is None


def test_given_labels_are_calibrated_on_content_free_texts(generator: TextToLoRA) -> None:
    label_set = generator.generate(DESCRIPTION, labels=["a", "b"]).label_set
    assert label_set.labels == ("a", "b") and len(label_set.priors) == 2
    assert label_set.calibrated_on == "content-free texts"


def test_an_empty_list_of_labels_leaves_answers_open(generator: TextToLoRA) -> None:
    assert generator.generate(DESCRIPTION, labels=[]).label_set is None


def test_inputs_calibrate_and_the_card_tells(generator: TextToLoRA, tmp_path: Path) -> None:
    adapter = generator.generate(DESCRIPTION, inputs=INPUTS)
    facts = adapter.hypernetwork["self_training"]
    assert (facts["steps"] > 0) is (facts["reason"] is None)
    assert facts["inputs"] == 6 and adapter.duration >= facts["seconds"] > 0
    assert adapter.label_set.calibrated_on == "6 inputs"
    adapter.save(tmp_path / "a")
    stored = load_adapter(tmp_path / "a")
    assert stored.card.label_set == adapter.label_set
    assert "Calibrated on 6 inputs" in (tmp_path / "a" / "README.md").read_text("utf-8")
    assert "self_training" not in generator.generate(DESCRIPTION).hypernetwork  # the cache is as it was


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_an_adapter_with_labels_still_loads_in_peft(
    generator: TextToLoRA, tiny_llama: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    generator.generate(DESCRIPTION, labels=["a", "b"]).save(tmp_path / "a")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path / "a")
    assert set(load_file(tmp_path / "a" / "adapter_model.safetensors")) and model.peft_config


def test_notes_are_those_of_the_finished_adapter(
    generator: TextToLoRA, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    far, emit = Familiarity({"plurals": 0.9}, 0.9, 0.25, True, False), generator.emitter.emit
    monkeypatch.setattr(
        generator.emitter, "emit", lambda *given: replace(emit(*given), familiarities=[far] * len(given[0]))
    )
    generator.generate(
        "Name the colour.", [("apple", "red"), ("grass", "green"), ("sea", "blue"), ("fog", "grey")]
    )
    assert not caplog.records
    for _ in range(2):
        generator.generate("Name the taste.")
    assert caplog.text.count("far from every training task") == 1


def test_a_closed_generator_trains_no_more(generator: TextToLoRA) -> None:
    generator.close()
    with pytest.raises(UnavailableError, match="training has ended"):
        generator.generate(DESCRIPTION, inputs=INPUTS)
    assert generator.generate(DESCRIPTION).trained


def test_inputs_beside_examples_of_open_answers_are_said_to_teach_nothing(
    generator: TextToLoRA, caplog
) -> None:
    pairs = [(word, word.upper()) for word in INPUTS]
    generator.generate("Write the word in capitals.", pairs, inputs=INPUTS)
    assert "open answers" in caplog.text


def test_inputs_of_open_answers_leave_the_adapter_alone(generator: TextToLoRA, caplog) -> None:
    adapter = generator.generate("Sort the words.", inputs=INPUTS)
    assert adapter.lora == generator.generate("Sort the words.").lora
    assert "open answers" in caplog.text


def test_long_inputs_are_left_out_and_a_few_short_ones_are_needed(generator: TextToLoRA, caplog) -> None:
    long = ["far too long " * 40 + text for text in INPUTS]
    facts = generator.generate(DESCRIPTION, inputs=[*INPUTS, *long]).hypernetwork["self_training"]
    assert facts["inputs"] == 6 and "left out 6 of 12 inputs of more than 256 tokens" in caplog.text
    with pytest.raises(UsageError, match="3 of 9 inputs have at most 256 tokens, at least 4 are needed"):
        generator.generate(DESCRIPTION, inputs=[*INPUTS[:3], *long])


def test_sample_inputs_stand_in_for_those_of_the_user(generator: TextToLoRA) -> None:
    adapter = generator.generate(DESCRIPTION, sample_inputs=True)
    kinds = {f"sample inputs ({kind.kind})" for kind in input_kinds()}
    assert adapter.hypernetwork["self_training"]["texts"] in kinds
    assert adapter.label_set.calibrated_on.startswith("16 sample inputs (")
    assert any("sample inputs (" in note for note in adapter.card().notes)


def test_sample_inputs_need_labels_and_no_inputs(generator: TextToLoRA) -> None:
    with pytest.raises(UsageError, match="'Sort the words.' names none for sure; name all answers"):
        generator.generate("Sort the words.", sample_inputs=True)
    with pytest.raises(UsageError, match="6 inputs and sample_inputs are given"):
        generator.generate(DESCRIPTION, inputs=INPUTS, sample_inputs=True)


def test_inputs_need_a_trained_hypernetwork_or_distillation(untrained: TextToLoRA, monkeypatch) -> None:
    monkeypatch.delattr(TextToLoRA, "_described")  # it is refused before any work
    with pytest.raises(UsageError, match="6 inputs have no adapter to train.*--distil"):
        untrained.generate(DESCRIPTION, inputs=INPUTS)


@pytest.mark.parametrize(("inputs", "labels"), [(["a"] * 9, None), ((), ["one"]), (INPUTS, ["a", "A"])])
def test_what_cannot_be_used_is_refused_before_any_work(
    generator: TextToLoRA, inputs, labels, monkeypatch
) -> None:
    monkeypatch.delattr(TextToLoRA, "_described")
    with pytest.raises(UsageError):
        generator.generate(DESCRIPTION, inputs=inputs, labels=labels)


def test_distillation_learns_open_answers_from_the_input_alone(untrained, monkeypatch) -> None:
    monkeypatch.setattr(distillation, "MAX_NEW_TOKENS", 4)
    adapter = untrained.distil("Say something about it.", INPUTS)
    facts = adapter.hypernetwork["distilled"]
    assert adapter.trained and adapter.label_set is None and facts["inputs"] == 6
    assert facts["loss_after"] < facts["loss_before"]


def test_distillation_saves_the_descriptions_tokens(untrained: TextToLoRA) -> None:
    facts = untrained.distil(DESCRIPTION, INPUTS).hypernetwork["distilled"]
    assert facts["prompt_tokens_saved"] == len(f"{DESCRIPTION}\n\n")  # a byte is a token


def test_a_distilled_adapter_says_how_it_was_made(untrained: TextToLoRA, tmp_path: Path) -> None:
    adapter = untrained.distil(DESCRIPTION, INPUTS, labels=["a", "b"])
    adapter.save(tmp_path / "a")
    card = json.loads((tmp_path / "a" / "shoal.json").read_text())["card"]
    assert card["generator"] == "context distillation" and card["label_set"]["labels"] == ["a", "b"]
    assert "prompt tokens are saved" in (tmp_path / "a" / "README.md").read_text("utf-8")


def test_distillation_needs_inputs_that_fit(untrained: TextToLoRA) -> None:
    with pytest.raises(UsageError, match="0 different inputs"):
        untrained.distil(DESCRIPTION, [])
    with pytest.raises(UsageError, match="0 of 6 inputs with the description have at most"):
        untrained.distil(DESCRIPTION, [text * 600 for text in INPUTS])


def test_the_identity_names_distillation(untrained: TextToLoRA) -> None:
    assert "--distil" in untrained.generate("Sort the words.").notes[0]


def test_distillation_needs_the_weights(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_llama / "config.json", tmp_path)
    with pytest.raises(ShoalError):
        TextToLoRA(str(tmp_path), SIZES).distil(DESCRIPTION, INPUTS)
