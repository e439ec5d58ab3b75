"""`shoal generate` and `shoal ask`: an adapter from a sentence, answers with it, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.adapters.files import load_adapter
from shoal.errors import ShoalError
from tests.fixtures.cli import DESCRIPTION, ROOT, SMALL, WORDS, Ended, Shoal, assert_one_line, untouched


def test_generate_then_ask(shoal: Shoal, hypernetwork: Path, tiny_llama: Path, tmp_path: Path) -> None:
    where = ("--base", tiny_llama, "--hypernetwork", hypernetwork)
    out, gguf = tmp_path / "adapter", tmp_path / "adapter.gguf"
    ended = shoal("generate", DESCRIPTION, *where, "--out", out, "--gguf", gguf, "--json")
    assert ended.code == 0, ended.err
    assert ended.record["hypernetwork"]["trained"] and ended.record["skills"] == {"debugging": 1.0}
    assert ended.record["written"] == {"gguf": str(gguf), "out": str(out)} and gguf.is_file()
    shown = shoal("generate", DESCRIPTION, *where).out
    for part in (
        DESCRIPTION,
        "debugging (100%)",
        "rank 2",
        "6 modules in 3 layers",
        "trained:      yes",
        " ms",
    ):
        assert part in shown
    asked = ("ask", "apple", "--max-new-tokens", 4, "--json")
    told = shoal(*asked, *where, "--describe", DESCRIPTION)
    kept = shoal(*asked, "--adapter", out)  # the adapter names its base model
    assert told.code == kept.code == 0, told.err + kept.err
    assert told.record["answer"] == kept.record["answer"]
    assert kept.record["base_model"] == str(tiny_llama)


def test_generate_with_examples(
    shoal: Shoal, hypernetwork: Path, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    where = ("--base", tiny_llama, "--hypernetwork", hypernetwork)
    ended = shoal("generate", DESCRIPTION, *where, "--examples", data / "capitals.jsonl", "--json")
    assert ended.code == 0, ended.err
    assert ended.record["hypernetwork"]["few_shot"]["examples"] == len(WORDS) - len(WORDS) // 4
    inputs = tmp_path / "inputs.txt"
    inputs.write_text("ant\nbear\ncrow\ndeer\n")
    more = ("--examples", data / "capitals.jsonl", "--inputs", inputs, "--suggest", 2)
    ended = shoal("generate", DESCRIPTION, *where, *more)
    assert ended.code == 0, ended.err
    assert "more solved examples promise" in ended.out and "label next:" in ended.out
    ended = shoal("ask", "apple", *where, "--describe", DESCRIPTION, *more[:2], "--no-refine", "--json")
    assert ended.code == 0 and "few_shot" not in ended.record["hypernetwork"], ended.err
    assert_one_line(shoal("ask", "apple", *where, "--describe", "Shout.", "--no-refine"), 2, "--examples")
    few = tmp_path / "few.jsonl"
    few.write_text('{"input": "a", "output": "A"}\n')
    assert_one_line(
        shoal("generate", DESCRIPTION, *where, "--examples", few),
        2,
        "few.jsonl: 1 different inputs in 1 examples are too few",
    )
    assert_one_line(shoal("generate", DESCRIPTION, *where, "--examples", tmp_path / "no"), 2, "no")


def test_ask_reads_standard_input(shoal: Shoal, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("apple"))
    ended = shoal("ask", "-", "--base", tiny_llama, "--max-new-tokens", 2, "--json")
    assert ended.code == 0 and ended.record["request"] == "apple", ended.err
    monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
    assert_one_line(shoal("ask", "-", "--base", tiny_llama), 2, "blank")


def test_generate_says_how_to_train(
    shoal: Shoal,
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("shoal.text_to_lora.identity._said", set())
    ended = shoal("generate", DESCRIPTION, "--base", tiny_llama, "--out", tmp_path / "a", *SMALL)
    assert ended.code == 0
    assert "trained:      no" in ended.out and caplog.text.count("shoal train text-to-lora") == 1
    card = load_adapter(tmp_path / "a").card
    assert card is not None and not card.trained


@pytest.mark.parametrize(
    ("description", "says"),
    [
        ("", "description"),
        ("a", "'a'"),
        ("word " * 10_000, "512"),
        ("Schreibe das gegebene Wort bitte immer ganz in Großbuchstaben auf.", "English"),
    ],
)
def test_bad_descriptions(
    shoal: Shoal, tiny_llama: Path, tmp_path: Path, description: str, says: str
) -> None:
    ended = shoal("generate", description, "--base", tiny_llama, "--out", tmp_path / "out", *SMALL)
    assert_one_line(ended, 2, says)
    assert untouched(tmp_path, set())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--adapter-rank", 0), "--adapter-rank 0"),
        (("--adapter-rank", 4096), "4096"),
        (("--target-modules", "nose_proj"), "nose_proj"),
        (("--num-layers-to-adapt", 99), "99"),
    ],
)
def test_bad_sizes(shoal: Shoal, tiny_llama: Path, tmp_path: Path, arguments: tuple, says: str) -> None:
    sizes = ("--num-layers-to-adapt", "none", *arguments)
    ended = shoal("generate", DESCRIPTION, "--base", tiny_llama, "--out", tmp_path / "out", *sizes)
    assert_one_line(ended, 2, says)
    assert untouched(tmp_path, set())


def test_a_missing_model(shoal: Shoal, tmp_path: Path) -> None:
    ended = shoal("ask", "apple", "--base", tmp_path / "nowhere")
    assert_one_line(ended, 2, "nowhere")


def test_a_half_downloaded_model(shoal: Shoal, tiny_llama: Path, tmp_path: Path) -> None:
    for file in tiny_llama.iterdir():
        content = file.read_bytes()
        whole = file.suffix != ".safetensors"
        (tmp_path / file.name).write_bytes(content if whole else content[: len(content) // 2])
    assert_one_line(shoal("ask", "apple", "--base", tmp_path), 1)
    out = tmp_path / "out"
    assert_one_line(shoal("generate", DESCRIPTION, "--base", tmp_path, "--out", out), 1, "half downloaded")
    assert not out.exists()


def test_a_truncated_hypernetwork(shoal: Shoal, hypernetwork: Path, tiny_llama: Path, tmp_path: Path) -> None:
    weights = hypernetwork / "hypernetwork.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    out = tmp_path / "out"
    ended = shoal("generate", DESCRIPTION, "--base", tiny_llama, "--hypernetwork", hypernetwork, "--out", out)
    assert_one_line(ended, 1, "hypernetwork.safetensors")
    assert not out.exists()


def test_a_hypernetwork_of_another_model(shoal: Shoal, hypernetwork: Path) -> None:
    ended = shoal("generate", DESCRIPTION, "--base", "gpt2", "--hypernetwork", hypernetwork)
    assert_one_line(ended, 2, "gpt2")


def test_a_truncated_adapter(shoal: Shoal, multi_task: Path) -> None:
    weights = multi_task / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert_one_line(shoal("ask", "apple", "--adapter", multi_task), 1, "adapter_model.safetensors")


def test_a_place_in_use_leaves_no_gguf(shoal: Shoal, tiny_llama: Path, tmp_path: Path) -> None:
    out, gguf = tmp_path / "mine", tmp_path / "adapter.gguf"
    out.mkdir()
    (out / "thesis.txt").write_text("the only copy")
    where = ("--base", tiny_llama, "--out", out, "--gguf", gguf, *SMALL)
    assert_one_line(shoal("generate", DESCRIPTION, *where), 2, "thesis.txt")
    assert untouched(tmp_path, {"mine"})


def test_an_adapter_that_cannot_be_written_takes_its_gguf_along(
    shoal: Shoal, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise ShoalError("cannot write: the disk is full")

    monkeypatch.setattr("shoal.text_to_lora.generated_adapter.save_adapter", full)
    where = ("--base", tiny_llama, "--out", tmp_path / "a", "--gguf", tmp_path / "a.gguf", *SMALL)
    assert_one_line(shoal("generate", DESCRIPTION, *where), 1, "the disk is full")
    assert untouched(tmp_path, set())


def test_a_device_on_which_nothing_is_computed(shoal: Shoal, tiny_llama: Path) -> None:
    ended = shoal("ask", "hi", "--base", tiny_llama, "--device", "meta")
    assert_one_line(ended, 2, "device 'meta' cannot be used here")


@pytest.mark.slow
def test_the_default_model_from_a_shell(tmp_path: Path) -> None:
    def run(*arguments: str) -> Ended:
        command = [sys.executable, "-m", "shoal.apps.cli.main", *arguments]
        path = {**os.environ, "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=path)
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    made = run("generate", "Decide whether a movie review is positive or negative.", "--out", "a", "--json")
    assert made.code == 0 and made.record["written"] == {"out": "a"}, made.err
    asked = run("ask", "A film that nobody needed.", "--adapter", "a", "--max-new-tokens", "8", "--json")
    assert asked.code == 0 and asked.record["answer"], asked.err

    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": None}))
    again = run("ask", "A film that nobody needed.", "--adapter", "a", "--max-new-tokens", "8", "--json")
    assert again.record["answer"] == asked.record["answer"]
    assert "names no base model" in again.err and "names no base model" not in asked.err


def test_bad_files_are_refused_before_anything_is_loaded(
    shoal: Shoal, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.text_to_lora.generator.TextToLoRA", None)  # using it would fail
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"input": "a"}\n')
    generate = ("generate", DESCRIPTION, "--base", tiny_llama)
    assert_one_line(shoal(*generate, "--examples", bad), 1, "bad.jsonl", "output")
    assert_one_line(shoal(*generate, "--examples", tmp_path / "none"), 2, "none")
    assert_one_line(shoal(*generate, "--out", bad), 2, "is a file")
    assert_one_line(shoal(*generate, "--device", "toaster"), 2, "toaster")
    ask = ("ask", "apple", "--base", tiny_llama, "--describe", DESCRIPTION)
    assert_one_line(shoal(*ask, "--examples", bad), 1, "bad.jsonl", "output")
    assert_one_line(shoal("ask", "apple", "--examples", bad), 2, "give --describe")


def test_a_generated_adapter_leads_to_examples(
    shoal: Shoal, hypernetwork: Path, tiny_llama: Path, data: Path
) -> None:
    generate = ("generate", DESCRIPTION, "--base", tiny_llama, "--hypernetwork", hypernetwork)
    alone = shoal(*generate)
    assert (
        "better:       a sentence is a quick look; 4 to 16 solved examples help: --examples FILE" in alone.out
    )
    refined = shoal(*generate, "--examples", data / "capitals.jsonl")
    assert refined.code == 0, refined.err
    assert "better:" not in refined.out
    labelled = shoal("generate", "Is this review positive or negative?", *generate[2:])
    assert "--inputs FILE, or --sample-inputs" in labelled.out and "--sample-inputs" not in alone.out


def test_notes_of_a_generated_adapter_are_said_once(
    shoal: Shoal,
    hypernetwork: Path,
    tiny_llama: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    far = "The description is far from every training task."
    monkeypatch.setattr(
        "shoal.text_to_lora.generated_adapter.GeneratedAdapter.notes", property(lambda adapter: (far,))
    )
    where = ("--base", tiny_llama, "--hypernetwork", hypernetwork)
    ended = shoal("generate", DESCRIPTION, *where)
    assert caplog.text.count(far) == 1 and far not in ended.out
    caplog.clear()
    assert shoal("ask", "apple", *where, "--describe", DESCRIPTION).code == 0
    assert caplog.text.count(far) == 1
    assert shoal("generate", DESCRIPTION, *where, "--json").record["notes"] == [far]


def test_help_states_no_default_of_another_network(shoal: Shoal) -> None:
    printed = " ".join(shoal("generate", "--help").out.split())
    assert "LoRA rank [as the hypernetwork has]" in printed
    assert "LoRA rank [16]" in " ".join(shoal("train", "lora", "--help").out.split())
