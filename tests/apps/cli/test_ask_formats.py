"""`shoal ask` in a format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
