"""Self-training on a tiny random model: calibration goes into the LoRA, and the guards hold."""

import pytest
import torch

from shoal.adapters.card import LabelSet
from shoal.adapters.lora import LoRA
from shoal.inference.labels import label_log_likelihoods, label_priors
from shoal.models.backbone import Backbone, load_backbone
from shoal.text_to_lora import self_training
from shoal.text_to_lora.self_training import cohens_kappa, information, self_train

INPUTS = [f"{word} number {n}" for n in range(2) for word in ("apple", "a much longer input", "zz", "Q?")]
DESCRIPTION = "Answer yes, nop or may."
LABELS = LabelSet(labels=("yes", "nop", "may"))


@pytest.fixture(scope="module")
def backbone(tiny_llama) -> Backbone:
    return load_backbone(str(tiny_llama), device="cpu")


@pytest.fixture(scope="module")
def lora(backbone) -> LoRA:
    return LoRA.identity(backbone.shape.targets, 4, 8.0, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def trusting(monkeypatch) -> None:
    """Random models explain little: let any pseudo-labels through."""
    monkeypatch.setattr(self_training, "LEAST_INFORMATION", -1.0)
    monkeypatch.setattr(self_training, "MOST_OF_ONE", 1.0)
    monkeypatch.setattr(self_training, "LEARNING_RATE", 3e-2)


def test_plain_answers_come_nearer_to_the_calibrated_ones(backbone, lora, trusting) -> None:
    found = self_train(backbone, lora, LABELS, INPUTS, description=DESCRIPTION, steps=24)
    assert found.steps > 0 and found.reason is None
    assert found.agreement_after > found.agreement_before
    assert found.lora != lora


def test_the_priors_are_those_of_the_adapter_that_is_kept(backbone, lora, trusting) -> None:
    found = self_train(backbone, lora, LABELS, INPUTS, description=DESCRIPTION, steps=24)
    scores = label_log_likelihoods(backbone, backbone.encode_prompts(INPUTS), LABELS.labels, found.lora)
    assert found.label_set.priors == pytest.approx(label_priors(scores), abs=1e-2)
    assert found.label_set.calibrated_on == "8 inputs"


def test_no_steps_calibrate_only(backbone, lora) -> None:
    found = self_train(backbone, lora, LABELS, INPUTS, description=DESCRIPTION, steps=0)
    assert found.lora is lora and found.steps == 0 and found.label_set.priors


def test_answers_that_do_not_depend_on_the_input_teach_nothing(backbone, lora, monkeypatch) -> None:
    monkeypatch.setattr(self_training, "LEAST_INFORMATION", 1.1)
    monkeypatch.setattr(self_training, "LEAST_KAPPA", 1.1)
    monkeypatch.setattr(self_training, "MOST_OF_ONE", 1.0)
    found = self_train(backbone, lora, LABELS, INPUTS, description=DESCRIPTION)
    assert found.lora is lora and found.kappa is not None and "hardly depend" in found.reason


def test_faint_answers_that_the_prompted_model_confirms_are_learnt(backbone, lora, monkeypatch) -> None:
    monkeypatch.setattr(self_training, "LEAST_INFORMATION", 1.1)
    monkeypatch.setattr(self_training, "MOST_OF_ONE", 1.0)
    monkeypatch.setattr(self_training, "LEAST_KAPPA", -1.0)
    found = self_train(backbone, lora, LABELS, INPUTS, description=DESCRIPTION, steps=1)
    assert found.kappa is not None and "no nearer" in (found.reason or "no nearer")


def test_one_label_for_nearly_all_teaches_nothing(backbone, lora, monkeypatch) -> None:
    monkeypatch.setattr(self_training, "MOST_OF_ONE", 0.2)
    found = self_train(backbone, lora, LABELS, INPUTS, description=DESCRIPTION)
    assert found.lora is lora and "one label" in found.reason


def test_training_that_helps_nothing_is_undone(backbone, lora, trusting, monkeypatch) -> None:
    monkeypatch.setattr(self_training, "LEARNING_RATE", 0.0)
    found = self_train(backbone, lora, LABELS, INPUTS, description=DESCRIPTION)
    assert (
        found.lora is lora and found.agreement_after == found.agreement_before and "no nearer" in found.reason
    )


def test_information_is_none_for_constant_answers_and_whole_for_sure_different_ones() -> None:
    assert information(torch.zeros(4, 3)) == pytest.approx(0, abs=1e-6)
    assert information(100 * torch.eye(3)) == pytest.approx(1, abs=1e-6)


def test_kappa_is_agreement_beyond_chance() -> None:
    assert cohens_kappa([0, 1, 0, 1], [0, 1, 0, 1], 2) == 1
    assert cohens_kappa([0, 0, 1, 1], [0, 1, 0, 1], 2) == 0
    assert cohens_kappa([0, 0], [0, 0], 2) == 0
