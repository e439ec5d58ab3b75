"""Skills under either of their names: old ones find what bears the guide's, and the other way round."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.text_to_lora.skill_keywords import SKILLS
from shoal.transformer2.router import NONE, without_expert
from shoal.transformer2.skill_names import SYNONYMS, BySkill, known_name, skill_name, under_either_name


def test_every_synonym_stands_for_a_skill_of_the_guide() -> None:
    assert set(SYNONYMS.values()) <= set(SKILLS) and not SYNONYMS.keys() & set(SKILLS)
    assert {skill_name(skill) for skill in SKILLS} == set(SKILLS)


def test_a_name_is_its_own_before_it_is_a_synonym() -> None:
    assert known_name("routing", ["analysis", "routing"]) == "routing"
    assert known_name("routing", ["analysis", "mathematics"]) == "analysis"
    assert known_name("translation", ["languages"]) == "languages"
    assert known_name("debugging", ["languages"]) is None


def test_values_are_found_under_synonyms() -> None:
    for put, asked in (("code_generation", "code"), ("code", "code_generation")):
        found = BySkill({put: 1})
        assert found[asked] == found.get(asked) == 1 and asked in found and list(found) == [put]
    assert "debugging" not in found and found.get("debugging") is None and found.get("debugging", 2) == 2
    with pytest.raises(KeyError):
        found["debugging"]


def test_a_directory_is_found_under_a_synonym(tmp_path: Path) -> None:
    (tmp_path / "translation").mkdir()
    assert under_either_name(tmp_path / "languages") == tmp_path / "translation"
    assert under_either_name(tmp_path / "translation") == tmp_path / "translation"
    for unknown in (tmp_path / "code", tmp_path / "nowhere" / "languages"):
        assert under_either_name(unknown) == unknown


def test_what_is_told_without_an_expert() -> None:
    experts = BySkill({"translation": 1})
    assert without_expert(NONE, experts) is None and without_expert("languages", experts) is None
    told = without_expert("debugging", experts)
    assert told is not None and "debugging" in told and "base model answers" in told
