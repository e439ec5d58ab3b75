"""The command line in this process, the data of its tests, and what its trainings write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fixtures.cli import QUICK, QUICK_NETWORK, RULES, WORDS, HashEncoder, NoSkills, Shoal, in_process


@pytest.fixture
def shoal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shoal:
    """Runs `shoal` in this process, with stand-ins for the task encoder and for skill detection."""
    for module in ("shoal.text_to_lora.generator", "shoal.text_to_lora.recipe"):
        monkeypatch.setattr(f"{module}.TaskEncoder", HashEncoder)
    monkeypatch.setattr("shoal.text_to_lora.generator.SkillDetector", NoSkills)

    return in_process(monkeypatch, capsys)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks to train on, two to hold out."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "tasks").mkdir()
    for name, rule in RULES.items():
        examples = [{"input": word, "outputs": [rule(word)]} for word in WORDS]
        task = {
            "name": name,
            "category": "words",
            "source": ["this test"],
            "license": ["MIT"],
            "definition": f"Apply the rule {name} to the word.",
            "descriptions": [f"Apply the rule {name} to the word.", f"Answer with the {name} of the input."],
            "train": examples[:6],
            "test": examples[6:],
        }
        (folder / "tasks" / f"{name}.json").write_text(json.dumps(task))
    split = {"train": ["upper", "reverse"], "validation": ["first", "last"]}
    (folder / "splits.json").write_text(json.dumps(split))
    lines = [json.dumps({"input": word, "output": word.upper()}) for word in WORDS]
    (folder / "capitals.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def multi_task(shoal: Shoal, tiny_llama: Path, data: Path, tmp_path: Path) -> Path:
    out = tmp_path / "multi-task"
    ended = shoal("train", "multi-task", "--base", tiny_llama, "--tasks", data, "--out", out, *QUICK)
    assert ended.code == 0, ended.err
    return out


@pytest.fixture
def hypernetwork(shoal: Shoal, multi_task: Path, tiny_llama: Path, data: Path, tmp_path: Path) -> Path:
    out = tmp_path / "hypernetwork"
    where = ("--base", tiny_llama, "--tasks", data, "--start", multi_task, "--out", out)
    ended = shoal("train", "text-to-lora", *where, *QUICK_NETWORK, "--max-descriptions", 1, "--json")
    assert ended.code == 0, ended.err
    assert ended.record["steps"] == 2 and ended.record["tasks"] == 2
    return out


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of decompositions."""
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
