"""`shoal train expert`, `shoal train dispatch` and `shoal adapt`: the experts of Transformer²."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.adapters.svf_cache import decompose_model
from shoal.adapters.svf_files import load_expert
from shoal.models.backbone import load_backbone
from shoal.transformer2.model import mlp_modules
from tests.fixtures.cli import Shoal, assert_one_line


def test_train_expert(shoal: Shoal, tiny_llama: Path, data: Path, tmp_path: Path, cache: Path) -> None:
    out = tmp_path / "expert"
    where = ("train", "expert", "--base", tiny_llama, "--tasks", data, "--task", "upper", "--out", out)
    quick = ("--steps", 2, "--batch-size", 2, "--samples", 2, "--max-new-tokens", 2, "--expert-vector-dim", 4)
    assert_one_line(shoal(*where, *quick), 2, "--skill")
    for skill in ("none", " "):
        assert_one_line(shoal(*where, *quick, "--skill", skill), 2, "is no name for a router")
    told = (*where, *quick, "--skill", "shouting", "--json")
    assert_one_line(shoal(*told, "--adaptation-layers", "0,99"), 2, "names layer 99")
    assert_one_line(shoal(*told), 2, "earns 0.00 of 1", "easier or harder")
    ended = shoal(*told, "--least-success", 0)
    assert ended.code == 0, ended.err
    assert ended.record["steps"] == 2 and ended.record["base_success"] == 0
    backbone = load_backbone(str(tiny_llama))
    basis = decompose_model(backbone.model, mlp_modules(backbone.shape), components=4)
    stored = load_expert(out, basis)
    assert (stored.skill, stored.base_model) == ("shouting", str(tiny_llama))
    assert stored.provenance["tasks"] == ["upper"] and stored.provenance["config"]["samples"] == 2
    assert_one_line(shoal(*told, "--least-success", 0, "--start", out), 2, "--start")
    evolving = ("--objective", "evolution", "--population", 4, "--sigma", 0.1, "--least-success", 0)
    assert_one_line(shoal(*told, *evolving), 2, "another run, with other", "objective")
    ended = shoal(*told, *evolving, "--run", tmp_path / "evolved.run")
    assert ended.code == 0 and ended.record["steps"] == 2, ended.err
    assert load_expert(out, basis).provenance["config"]["population"] == 4


@pytest.fixture
def experts(shoal: Shoal, tiny_llama: Path, data: Path, tmp_path: Path, cache: Path) -> Path:
    """Two experts of the toy tasks, and a probe that chooses between them."""
    place = tmp_path / "experts"
    quick = ("--steps", 1, "--batch-size", 2, "--objective", "sft", "--expert-vector-dim", 4)
    for skill, task in (("shouting", "upper"), ("turning", "reverse")):
        where = ("--base", tiny_llama, "--tasks", data, "--task", task, "--out", place / skill)
        ended = shoal("train", "expert", *where, *quick, "--skill", skill, "--learning-rate", 0.5)
        assert ended.code == 0, ended.err
    told = (
        "--base",
        tiny_llama,
        "--tasks",
        data,
        "--experts",
        place,
        "--out",
        place / "dispatch",
        "--layers",
        1,
    )
    assert_one_line(shoal("train", "dispatch", *told), 2, "--others")
    assert_one_line(shoal("train", "dispatch", *told, "--others", "unknown"), 2, "unknown is not among")
    more = tmp_path / "wordings.yaml"
    wordings = ("--others", "first", "--wordings", more)
    assert_one_line(shoal("train", "dispatch", *told, *wordings), 2, "not a file")
    more.write_text("second: one text\n")
    assert_one_line(shoal("train", "dispatch", *told, *wordings), 2, "second is not a list of texts")
    more.write_text("reverse: [Say it backwards.]\n")
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"request": "hello"}\n')
    everyday = ("--everyday", asked)
    assert_one_line(shoal("train", "dispatch", *told, *wordings, *everyday), 2, "line 1 has no text under")
    asked.write_text('{"request": "hello", "skill": "none"}\n{"request": "HELLO", "skill": "shouting"}\n' * 3)
    ended = shoal("train", "dispatch", *told, *wordings, *everyday, "--requests", 8, "--json")
    assert ended.code == 0, ended.err
    assert ended.record["skills"] == ["shouting", "turning"] and 0 <= ended.record["accuracy"] <= 1
    return place


def test_experts_answer_and_are_mixed(shoal: Shoal, experts: Path, tiny_llama: Path, tmp_path: Path) -> None:
    base = ("--base", tiny_llama, "--max-new-tokens", 4, "--json")
    ended = shoal("ask", "apple", "--transformer2", "--experts", experts, *base)
    assert ended.code == 0, ended.err
    assert ended.record["skill"] in ("shouting", "turning", "none")
    assert ended.record["probabilities"].keys() == {"shouting", "turning", "none"}
    plain = shoal("ask", "apple", *base).record["answer"]
    still = shoal("ask", "apple", "--expert", experts / "turning", "--strength", 0, *base)
    assert still.record["answer"] == plain and still.record["skill"] == "turning"
    (experts / "turning").rename(experts / "code_generation")
    named = shoal("ask", "apple", "--expert", experts / "code", "--strength", 0, *base)
    assert named.record["answer"] == plain and named.record["skill"] == "turning", named.err

    shots = tmp_path / "shots.jsonl"
    shots.write_text(
        "".join(f'{{"input": "{w}", "output": "{w.upper()}"}}\n' for w in ("fig", "kale", "oat"))
    )
    out, lora = tmp_path / "mixture", tmp_path / "lora"
    told = ("adapt", "--base", tiny_llama, "--examples", shots, "--experts", experts, "--out", out)
    ended = shoal(*told, "--population", 4, "--iterations", 2, "--lora", lora, "--rank", 4, "--json")
    assert ended.code == 0, ended.err
    assert ended.record["loss"] <= ended.record["base_loss"] and ended.record["shots"] == 3
    assert sum(ended.record["mixture"].values()) == pytest.approx(1, abs=1e-3)
    assert (
        ended.record["lora_error"] == pytest.approx(0, abs=1e-3) and (lora / "adapter_config.json").is_file()
    )
    mixed = shoal("ask", "apple", "--expert", out, *base)
    assert mixed.code == 0, mixed.err
    as_adapter = shoal("ask", "apple", "--adapter", out, *base)
    assert as_adapter.record["answer"] == mixed.record["answer"], as_adapter.err
    assert_one_line(shoal(*told, "--describe", "shout", "--population", 1), 2, "--population")


def test_flags_of_experts_that_cannot_act(
    shoal: Shoal, tiny_llama: Path, tmp_path: Path, cache: Path
) -> None:
    ask = ("ask", "hello", "--base", tiny_llama)
    assert_one_line(shoal(*ask, "--transformer2", "--expert", tmp_path), 2, "--expert and --transformer2")
    assert_one_line(shoal(*ask, "--experts", tmp_path), 2, "--transformer2 chooses from")
    assert_one_line(shoal(*ask, "--strength", 0.5), 2, "--strength")
    assert_one_line(shoal(*ask, "--transformer2", "--experts", tmp_path), 2, "holds no experts")
    shots = tmp_path / "shots.jsonl"
    shots.write_text('{"input": "a", "output": "b"}\n')
    told = ("adapt", "--base", tiny_llama, "--examples", shots, "--out", tmp_path / "out")
    assert_one_line(shoal(*told), 2, "no experts are shipped")
