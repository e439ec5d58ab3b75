"""The command line as a whole: lists of what there is, and how commands end that fail."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.models.backbone import DEFAULT_MODEL
from tests.fixtures.cli import DESCRIPTION, QUICK, SMALL, Shoal, assert_one_line, untouched


def test_models(shoal: Shoal) -> None:
    record = shoal("models", "--json").record
    assert record["default"]["alias"] == DEFAULT_MODEL
    assert record["known_shapes"]["microsoft/DialoGPT-small"]["model_type"] == "gpt2"
    assert "self_attn.q_proj" in record["roles"]["q_proj"]
    assert DEFAULT_MODEL in shoal("models").out


@pytest.mark.slow  # loads the task encoder
def test_skills(shoal: Shoal) -> None:
    assert len(shoal("skills", "--json").record["skills"]) == 10
    found = shoal("skills", "Make this model excel at code generation and debugging", "--json").record
    assert found["skills"] == ["code_generation", "debugging"]


@pytest.fixture
def unwritable(tmp_path: Path) -> Iterator[Path]:
    """A folder in which nothing can be made, also by root."""
    folder = tmp_path / "sealed"
    if os.geteuid() == 0:
        folder.write_text("a file, where a folder is needed")
        yield folder
    else:
        folder.mkdir(mode=0o555)
        yield folder
        folder.chmod(0o755)


def test_an_unwritable_place(
    shoal: Shoal, unwritable: Path, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    out = unwritable / "out"
    assert_one_line(shoal("generate", DESCRIPTION, "--base", tiny_llama, "--out", out, *SMALL), 1, "sealed")
    where = ("--base", tiny_llama, "--tasks", data, "--out", out)
    assert_one_line(shoal("train", "multi-task", *where, *QUICK), 1, "sealed")
    assert_one_line(shoal("evaluate", *where), 1, "sealed")
    both = ("--gguf", tmp_path / "adapter.gguf", "--out", out)
    assert_one_line(shoal("generate", DESCRIPTION, "--base", tiny_llama, *both, *SMALL), 1, "sealed")
    assert untouched(tmp_path, {"sealed"})


def test_what_nobody_foresaw_is_one_line(shoal: Shoal, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("shoal.apps.cli.ask.load", broken)
    assert_one_line(shoal("ask", "hi"), 1, "unexpected ZeroDivisionError: division by zero", "--verbose")


def test_ctrl_c_anywhere_is_one_line(shoal: Shoal, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shoal.text_to_lora.generator.TextToLoRA", interrupted)
    assert_one_line(shoal("generate", DESCRIPTION), 1, "interrupted")
