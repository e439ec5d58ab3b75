"""`shoal ask` in a format."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from shoal.adapters.card import AdapterCard
from shoal.adapters.files import save_adapter
from shoal.adapters.lora import LoRA
from shoal.adapters.output_format import OutputFormat
from shoal.models.shapes import load_shape
from tests.fixtures.cli import Shoal, assert_one_line


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({"enum": ["left", 12]}))
    return path


def test_a_choice_a_regex_and_a_schema_hold_the_answer(shoal: Shoal, tiny_llama: Path, schema: Path) -> None:
    ask = ("ask", "Which?", "--base", tiny_llama, "--max-new-tokens", 12, "--json")
    assert shoal(*ask, "--choice", "left,right").record["answer"] in ("left", "right")
    assert len(shoal(*ask, "--regex", "[0-9]{3}").record["answer"]) == 3
    assert json.loads(shoal(*ask, "--json-schema", schema).record["answer"]) in ("left", 12)


@pytest.mark.parametrize("wanted", [OutputFormat.regex("[0-9]{3}"), None])
def test_the_format_that_an_adapter_suggests(
    wanted: OutputFormat | None, shoal: Shoal, tiny_llama: Path, tmp_path: Path
) -> None:
    shape = load_shape(str(tiny_llama))
    lora = LoRA.identity(shape.targets, 2, 4.0, generator=torch.Generator().manual_seed(0))
    card = AdapterCard(generator="test", trained=True, suggested_format=wanted)
    save_adapter(tmp_path / "numbers", lora, shape=shape, card=card)
    ask = ("ask", "Which?", "--base", tiny_llama, "--adapter", tmp_path / "numbers", "--max-new-tokens", 12)
    asked = shoal(*ask, "--json", "--format", "suggested")
    if wanted is None:
        assert_one_line(asked, 2, "suggests no format")
    else:
        assert re.fullmatch("[0-9]{3}", asked.record["answer"])


def test_a_bad_format_is_one_line(shoal: Shoal, tiny_llama: Path, schema: Path) -> None:
    ask = ("ask", "Which?", "--base", tiny_llama)
    for options, named in (
        (("--choice", "a,b", "--regex", "a"), "--choice and --regex"),
        (("--labels", "a,b", "--choice", "a"), "--labels and --choice"),
        (("--regex", "(?=a)"), "look-around"),
        (("--choice", "a,a"), "twice"),
        (("--json-schema", schema.with_name("none.json")), "none.json"),
    ):
        asked = shoal(*ask, *options)
        assert_one_line(asked, asked.code or 2, named)
