"""`shoal evaluate`: rows of the base model, of adapters and of Text-to-LoRA on the same examples."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from shoal.text_to_lora.checkpoint import load_hypernetwork, save_hypernetwork
from shoal.text_to_lora.familiarity import KnownTasks
from tests.fixtures.cli import HashEncoder, Shoal, assert_one_line


def test_evaluate(
    shoal: Shoal, hypernetwork: Path, multi_task: Path, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("rouge_score")
    arguments = ["evaluate", "--base", tiny_llama, "--tasks", data, "--examples", 1, "--max-new-tokens", 2]
    arguments += ["--adapter", f"mine={multi_task}", "--hypernetwork", hypernetwork, "--out", tmp_path / "r"]
    ended = shoal(*arguments)
    assert ended.code == 0, ended.err
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    names = [result["name"] for result in report["results"]]
    assert names == [
        "echo",
        "base",
        "base + description",
        "base + 3 examples",
        "mine",
        "Text-to-LoRA",
        "Text-to-LoRA, another task's description",
        "Text-to-LoRA, gibberish",
        "Text-to-LoRA, no description",
    ]
    assert report["tasks"] == ["first", "last"] and "steering_margin" in report
    table = (tmp_path / "r" / "report.md").read_text()
    assert all(f"| {name} |" in table and f"| {name} |" in ended.out for name in names)


def test_evaluate_without_a_hypernetwork(shoal: Shoal, tiny_llama: Path, data: Path) -> None:
    pytest.importorskip("rouge_score")
    task = data / "tasks" / "last.json"
    ended = shoal(
        "evaluate", "--base", tiny_llama, "--tasks", task, "--examples", 1, "--max-new-tokens", 2, "--json"
    )
    assert ended.code == 0 and len(ended.record["results"]) == 4, ended.err


def test_an_adapter_of_another_model_is_said(
    shoal: Shoal, tiny_llama: Path, data: Path, multi_task: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = multi_task / "adapter_config.json"
    facts = {**json.loads(config.read_text()), "base_model_name_or_path": "acme/other"}
    config.write_text(json.dumps(facts))
    assert shoal("ask", "hi", "--base", tiny_llama, "--adapter", multi_task, "--max-new-tokens", 2).code == 0
    rows = ("--adapter", f"mine={multi_task}", "--examples", 1, "--max-new-tokens", 2, "--shots", 0)
    assert shoal("evaluate", "--base", tiny_llama, "--tasks", data, *rows).code == 0
    assert caplog.text.count("is for acme/other, and is put on") == 2


def test_evaluate_reads_every_adapter_before_it_scores(
    shoal: Shoal, tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.apps.cli.evaluate.load", None)  # loading the model would fail
    (tmp_path / "each").mkdir()
    where = ("evaluate", "--base", tiny_llama, "--tasks", data, "--adapter", f"mine={tmp_path / 'each'}")
    assert_one_line(shoal(*where), 2, "no directory")


def test_tasks_far_from_the_training_tasks_are_named(
    shoal: Shoal, hypernetwork: Path, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    checkpoint = load_hypernetwork(hypernetwork)
    sense = torch.cat([torch.zeros(HashEncoder.dim), torch.ones(1)])  # nothing is nonsense
    known = KnownTasks(("other",), torch.eye(1, HashEncoder.dim), near=0.0, far=0.01, sense=sense)
    far = tmp_path / "far"
    save_hypernetwork(dataclasses.replace(checkpoint, known_tasks=known), far, torch.bfloat16)
    quick = ("--examples", 1, "--max-new-tokens", 2, "--shots", 0)
    evaluate = ("evaluate", "--base", tiny_llama, "--tasks", data, "--hypernetwork", far, *quick)
    ended = shoal(*evaluate)
    assert ended.code == 0, ended.err
    assert "may help little: first, last. Give 4 or more solved examples" in ended.out
    assert shoal(*evaluate, "--json").record["notes"]["far_from_training"] == ["first", "last"]


@pytest.mark.parametrize("more", [("--adapter", "mine=none"), ("--labels",), ("--shots", "2")], ids="".join)
def test_a_curve_refuses_what_it_has_no_rows_for(more: tuple, shoal: Shoal, tmp_path: Path) -> None:
    where = ("--tasks", tmp_path / "none", "--out", tmp_path / "curve")
    ended = shoal("evaluate", *where, "--shots-curve", "0,4", *more)
    assert ended.code == 2 and f"{more[0]} has no rows in a curve" in ended.err


def test_a_curve_over_numbers_of_examples(
    shoal: Shoal, hypernetwork: Path, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("rouge_score")
    arguments = ["evaluate", "--base", tiny_llama, "--tasks", data, "--examples", 1, "--max-new-tokens", 2]
    arguments += ["--hypernetwork", hypernetwork, "--shots-curve", "0,4"]
    refused = shoal(*arguments)
    assert refused.code == 2 and "add --out DIR" in refused.err
    ended = shoal(*arguments, "--out", tmp_path / "curve")
    assert ended.code == 0, ended.err
    report = json.loads((tmp_path / "curve" / "report.json").read_text())
    assert report["counts"] == [0, 4] and report["tasks"] == ["first", "last"]
    assert "| Text-to-LoRA, refined |" in ended.out and (tmp_path / "curve.run").is_dir()
