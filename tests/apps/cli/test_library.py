"""`shoal learn`, `shoal library` and `shoal ask --library`: learnt, listed, asked, undone, and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal.adapters.files import load_adapter
from shoal.text_to_lora.sample_inputs import InputKind
from tests.fixtures.cli import HashEncoder, Shoal, assert_one_line
from tests.fixtures.library import OTHERS, sentence, solved


@pytest.fixture(autouse=True)
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handful of texts that need no skill, and the hash encoder for sentences."""
    kinds = tuple(InputKind(kind, kind, tuple(texts)) for kind, texts in OTHERS.items())
    monkeypatch.setattr("shoal.library.learning.input_kinds", lambda: kinds)
    monkeypatch.setattr("shoal.library.models.Models.encoder", HashEncoder())


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Solved examples of three skills."""
    found = {}
    for name in ("digits", "capitals", "lower"):
        found[name] = tmp_path / f"{name}.jsonl"
        rows = [json.dumps({"input": e.input, "output": e.outputs[0]}) for e in solved(name)]
        found[name].write_text("\n".join(rows))
    return found


def test_a_library_from_its_first_skill_to_its_last(
    shoal: Shoal, tiny_llama: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    library = ("--library", tmp_path / "library")
    for version, name in ((2, "digits"), (3, "capitals")):
        base = ("--base", tiny_llama) if version == 2 else ()
        given = ("--examples", files[name], "--describe", sentence(name))
        ended = shoal("learn", name, *given, *library, *base, "--json")
        assert ended.code == 0, ended.err
        record = ended.record
        assert (record["version"], record["skill"], record["exemplars"]) == (version, name, 3)
    listed = shoal("library", "list", *library, "--json").record
    assert [row["skill"] for row in listed["skills"]] == ["capitals", "digits"]
    shown = shoal("library", "show", *library)
    assert "learn    capitals" in shown.out and "BWT" in shown.out
    checked = shoal("library", "check", *library, "--json").record
    assert checked["lost"] == [] and len(checked["skills"]) == 2
    for way in (("--skill", "digits"), ("--describe", sentence("digits"))):
        asked = shoal("ask", "0077", *library, *way, "--max-new-tokens", 2, "--json")
        assert asked.code == 0 and asked.record["skill"] == "digits", asked.err
    out = tmp_path / "one"
    merged = shoal("library", "consolidate", *library, "--rank", 4, "--least", 0, "--out", out, "--json")
    assert merged.code == 0, merged.err
    assert set(merged.record["retention"]) == {"digits", "capitals"}
    assert load_adapter(out).lora.rank <= 4 and (out / "report.json").is_file()
    assert shoal("library", "rollback", 2, *library, "--json").record["skills"] == ["digits"]
    forgotten = shoal("library", "forget", "digits", *library, "--json")
    assert forgotten.record == {"version": 5, "forgotten": "digits", "skills": []}
    assert_one_line(shoal("library", "rollback", 3, *library), 2, "forgotten in version 5")
    assert_one_line(shoal("library", "consolidate", *library, "--out", out), 2, "the library has none")


def test_what_is_refused_before_anything_is_loaded(
    shoal: Shoal, files: dict[str, Path], tmp_path: Path
) -> None:
    library = ("--library", tmp_path / "library")
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(files["digits"].read_text().splitlines()[:7]))
    good = ("--examples", files["digits"], "--describe", sentence("digits"))
    assert_one_line(shoal("learn", "Digits", *good, *library), 2, "is no adapter name")
    short = shoal("learn", "digits", "--examples", few, "--describe", sentence("digits"), *library)
    assert_one_line(short, 2, "7 different inputs", "the least is 8")
    assert_one_line(shoal("learn", "digits", *good, *library, "--keep", 65), 2, "keep 65 exemplars")
    for step in (("list",), ("show",), ("check",), ("rollback", 1), ("forget", "digits")):
        assert_one_line(shoal("library", *step, *library), 2, "is no library")
    assert_one_line(shoal("ask", "x", *library), 2, "library", "is no directory")
    assert_one_line(shoal("ask", "x", "--skill", "digits"), 2, "--skill names a skill of --library")
    both = ("--skill", "digits", "--describe", sentence("digits"))
    assert_one_line(shoal("ask", "x", *library, *both), 2, "leave the other out")
    assert_one_line(shoal("ask", "x", *library, "--transformer2"), 2, "--library and --transformer2")
    assert_one_line(shoal("ask", "x", *library, "--labels", "a,b"), 2, "--labels is not for --library")
    assert not (tmp_path / "library").exists()
