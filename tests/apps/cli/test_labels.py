"""Labels and inputs on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal.adapters.files import load_adapter
from shoal.errors import ShoalError
from tests.fixtures.cli import Shoal, assert_one_line

DESCRIPTION = "Classify the word as fruit, animal or tool."


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    path = tmp_path / "inputs.txt"
    path.write_text("apple\ndog\nhammer\nsaw\npear\n")
    return path


def test_an_adapter_keeps_its_labels_and_answers_with_one(
    shoal: Shoal,
    tiny_llama: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "adapter"
    made = shoal("generate", DESCRIPTION, "--base", tiny_llama, "--labels", "a,b", "--out", out, "--json")
    assert made.code == 0, made.err
    assert made.record["label_set"]["labels"] == ["a", "b"] and len(made.record["label_set"]["priors"]) == 2
    asked = shoal("ask", "pear", "--adapter", out, "--json")
    assert asked.code == 0, asked.err
    assert asked.record["answer"] in ("a", "b") and sum(asked.record["labels"].values()) == pytest.approx(1)
    free = shoal("ask", "pear", "--adapter", out, "--labels", "none", "--max-new-tokens", 2, "--json")
    assert free.code == 0 and free.record["labels"] is None


def test_labels_answer_by_likelihood_where_the_encoder_is_missing(
    shoal: Shoal, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing() -> None:
        raise ShoalError("no encoder here")

    monkeypatch.setattr("shoal.text_to_lora.encoders.sentence.TaskEncoder", missing)
    asked = shoal("ask", "pear", "--base", tiny_llama, "--labels", "a,b", "--json")
    assert asked.code == 0 and asked.record["answer"] in ("a", "b")
    assert "by likelihood alone: no encoder here" in caplog.text


def test_labels_come_from_the_description_unless_said_otherwise(shoal: Shoal, tiny_llama: Path) -> None:
    read = shoal("generate", DESCRIPTION, "--base", tiny_llama, "--json")
    assert read.record["label_set"]["labels"] == ["fruit", "animal", "tool"], read.err
    opened = shoal("generate", DESCRIPTION, "--base", tiny_llama, "--labels", "none", "--json")
    assert opened.record["label_set"] is None


def test_distil_writes_a_trained_adapter(
    shoal: Shoal, tiny_llama: Path, inputs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "adapter"
    where = ("generate", DESCRIPTION, "--base", tiny_llama, "--distil", "--adapter-rank", 4)
    ended = shoal(*where, "--inputs", inputs, "--out", out)
    assert ended.code == 0 and "prompt tokens are saved" in ended.out, ended.err
    card = load_adapter(out).card
    assert card is not None and card.trained and card.label_set is not None
    assert json.loads((out / "shoal.json").read_text())["card"]["generator"] == "context distillation"


def test_what_cannot_be_used_is_one_line(
    shoal: Shoal, tiny_llama: Path, inputs: Path, tmp_path: Path
) -> None:
    where = ("generate", DESCRIPTION, "--base", tiny_llama)
    assert_one_line(shoal(*where, "--distil"), 2, "--inputs")
    assert_one_line(shoal(*where, "--labels", "one"), 2, "1 labels")
    assert_one_line(shoal(*where, "--labels", "a,A"), 2, "twice")
    assert_one_line(shoal(*where, "--inputs", tmp_path / "none.txt"), 2, "not a file")
    assert_one_line(shoal(*where, "--inputs", inputs), 2, "no adapter to train", "--distil")
    inputs.write_text("same\n" * 20)
    assert_one_line(shoal(*where, "--inputs", inputs, "--distil"), 2, "1 different")
