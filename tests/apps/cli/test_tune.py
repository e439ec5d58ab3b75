"""`shoal tune`: a verdict with settings that `shoal train` takes, and bad input in one line."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import optuna
import pytest
import yaml
from filelock import FileLock

from shoal.adapters.files import load_adapter
from tests.fixtures.cli import HashEncoder, Shoal, assert_one_line

ANIMALS = ("cat", "dog", "cow", "hen", "pig", "fox")
SMALL = ("--adapter-rank", "2", "--adapter-alpha", "4", "--num-layers-to-adapt", "2")
FIXED = ("--batch-size", "4", "--target-modules", "q_proj,v_proj", *SMALL)


@pytest.fixture(autouse=True)
def _encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.text_to_lora.encoders.sentence.TaskEncoder", HashEncoder)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """Solved examples with 24 inputs."""
    rows = [f"{colour} {animal}" for colour in ("red", "blue", "green", "grey") for animal in ANIMALS]
    path = tmp_path / "words.jsonl"
    path.write_text("".join(json.dumps({"input": row, "output": row.upper()}) + "\n" for row in rows))
    return path


def arguments(kind: str, model: Path, words: Path, out: Path) -> tuple[object, ...]:
    data = ("--tasks", words, "--definition", "Write it in capitals.", "--test-size", 0, "--out", out)
    return ("tune", kind, "--base", model, *data)


def test_tune_lora_gives_a_verdict_and_settings(
    shoal: Shoal, tiny_llama: Path, words: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tuned"
    command = (*arguments("lora", tiny_llama, words, out), *FIXED, "--steps", 3, "--trials", 4)
    ended = shoal(*command, "--json")
    assert ended.code == 0, ended.err
    verdict = ended.record
    assert sum(verdict["trials"].values()) == 4 and len(verdict["candidates"]) == 2
    assert verdict["defaults_loss"] > 0 and verdict["tokens"] > 0
    again = shoal(*command)
    assert again.code == 0 and ("the defaults stay" in again.out or "recommended:" in again.out)
    study = optuna.load_study(study_name="tune lora", storage=verdict["storage"])
    first = study.trials[0].user_attrs
    assert {"settings", "seed", "tokens", "seconds", "adapter_sha256"} <= first.keys()
    assert {"space", "data", "code", "seed", "verdict"} <= study.user_attrs.keys()
    for source in ((out,), ("tune lora", "--storage", verdict["storage"])):
        best = tmp_path / "best.yaml"
        assert shoal("tune", "export", *source, "--out", best).code == 0
        trained = tmp_path / f"trained{len(source)}"
        train = ("train", "lora", "--base", tiny_llama, "--tasks", words, "--definition", "Capitals.")
        assert shoal(*train, "--config", best, "--out", trained).code == 0
        assert load_adapter(trained).lora.rank == 2


def test_tune_refine_goes_on_from_an_adapter(
    shoal: Shoal, tiny_llama: Path, words: Path, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    train = ("train", "lora", "--base", tiny_llama, "--tasks", words, "--definition", "Capitals.", *FIXED)
    assert shoal(*train, "--steps", 1, "--out", first).code == 0
    command = arguments("refine", tiny_llama, words, tmp_path / "tuned")
    assert_one_line(shoal(*command, "--trials", 2), 2, "--start is missing")
    ended = shoal(*command, "--trials", 2, "--start", first, "--steps", 2, "--json")
    assert ended.code == 0, ended.err
    assert yaml.safe_load((tmp_path / "tuned" / "best.yaml").read_text()).keys() <= {
        "batch_size",
        "learning_rate",
        "steps",
    }


def test_tune_expert(shoal: Shoal, tiny_llama: Path, words: Path, tmp_path: Path) -> None:
    command = arguments("expert", tiny_llama, words, tmp_path / "tuned")
    quick = ("--objective", "sft", "--steps", 2, "--batch-size", 4, "--max-new-tokens", 2, "--trials", 2)
    ended = shoal(*command, *quick, "--expert-vector-dim", 4, "--json")
    assert ended.code == 0, ended.err
    assert sum(ended.record["trials"].values()) == 2


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ((), ("needs an end", "--budget")),
        (("--budget", "soon"), ("--budget soon", "20m")),
        (("--budget", "0m"), ("--budget 0m",)),
        (("--trials", 2, "--sampler", "magic"), ("--sampler magic", "tpe")),
        (("--trials", 2, "--pruner", "magic"), ("--pruner magic", "median")),
        (("--trials", 2, "--limit", "adapter_rank<16"), ("limit adapter_rank<16", "write NAME<=NUMBER")),
        (("--trials", 2, "--limit", "test<=1"), ("test has no limit", "general_kept")),
        (("--trials", 2, "--second", "test"), ("second aim test", "bytes, seconds")),
        (("--trials", 2, "--second", "bytes", "--pruner", "median"), ("pruner median", "give none")),
        (("--trials", 2, "--metric", "test"), ("--metric test", "nll")),
        (("--trials", 2, "--storage", "study.db"), ("study.db is no URL", "sqlite:///")),
        (("--trials", 2, "--storage", "sqlite://"), ("forgets a study",)),
        (("--trials", 2, "--storage", "journal:"), ("names no file",)),
        (("--trials", 2, "--storage", "sqlite:////proc/none/study.db"), ("/proc/none",)),
        (("--trials", 2, "--storage", "nothing://host/x"), ("nothing://host/x cannot be",)),
        (("--trials", 2, "--minutes", 1), ("--minutes 1", "--steps")),
        (("--budget", "1s", "--steps", 100_000), ("shorter than one trial", "raise it")),
    ],
    ids=str,
)
def test_bad_input(
    more: tuple[object, ...],
    parts: tuple[str, ...],
    shoal: Shoal,
    tiny_llama: Path,
    words: Path,
    tmp_path: Path,
) -> None:
    if "--budget" in more and 100_000 in more:
        more = (*more[:-1], 400)
    ended = shoal(*arguments("lora", tiny_llama, words, tmp_path / "tuned"), *FIXED, *more)
    assert_one_line(ended, ended.code, *parts)
    assert ended.code in (1, 2)


def test_a_space_is_checked_before_any_work(shoal: Shoal, words: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    command = (*arguments("lora", tmp_path / "no model", words, tmp_path / "tuned"), "--trials", 2)
    for text, parts in (
        ("", ("0 fields",)),
        ("speed: [1]", ("names speed", "learning_rate")),
        ("learning_rate: {low: 1e-2, high: 1e-3}", ("low 0.01 is above high 0.001",)),
        ("batch_size: [4, 8]", ("batch_size is 4 by its flag",)),
    ):
        space.write_text(text)
        assert_one_line(shoal(*command, "--space", space, "--batch-size", 4), 2, *parts)


def test_too_few_examples(shoal: Shoal, tiny_llama: Path, words: Path, tmp_path: Path) -> None:
    words.write_text("".join(words.read_text().splitlines(keepends=True)[:15]))
    ended = shoal(*arguments("lora", tiny_llama, words, tmp_path / "tuned"), *SMALL, "--trials", 2)
    assert_one_line(ended, 2, "15 different training inputs, 16 are needed")


def test_a_study_of_other_data_is_refused(
    shoal: Shoal, tiny_llama: Path, words: Path, tmp_path: Path
) -> None:
    command = (*arguments("lora", tiny_llama, words, tmp_path / "tuned"), *FIXED, "--steps", 1, "--trials", 1)
    assert shoal(*command).code == 0
    words.write_text(words.read_text().replace("RED", "Red"))
    assert_one_line(shoal(*command), 2, "is of another data", "--study")


def test_sqlite_serves_one_process(shoal: Shoal, tiny_llama: Path, words: Path, tmp_path: Path) -> None:
    (tmp_path / "tuned.run").mkdir()
    with FileLock(tmp_path / "tuned.run" / ".lock"):
        ended = shoal(*arguments("lora", tiny_llama, words, tmp_path / "tuned"), *FIXED, "--trials", 1)
    assert_one_line(ended, 2, "serves one process", "--storage journal:FILE")


def test_a_storage_of_another_version(shoal: Shoal, tiny_llama: Path, words: Path, tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    optuna.create_study(storage=f"sqlite:///{path}")
    connection = sqlite3.connect(path)
    connection.execute("update alembic_version set version_num = 'v3.0.0.d'")
    connection.commit()
    connection.close()
    ended = shoal(
        *arguments("lora", tiny_llama, words, tmp_path / "tuned"),
        *("--trials", 1, "--storage", f"sqlite:///{path}"),
    )
    assert_one_line(ended, 1, "another version of Optuna", "optuna storage upgrade")


def test_a_study_without_a_verdict_is_not_exported(shoal: Shoal, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    optuna.create_study(storage=storage, study_name="half")
    best = ("--out", tmp_path / "best.yaml")
    assert_one_line(shoal("tune", "export", "half", "--storage", storage, *best), 2, "has no verdict yet")
    assert_one_line(
        shoal("tune", "export", "other", "--storage", storage, *best), 2, "no study other", "half"
    )
    assert_one_line(shoal("tune", "export", tmp_path, *best), 2, "holds no best.yaml")


def test_limits_and_a_second_aim(shoal: Shoal, tiny_llama: Path, words: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("adapter_rank: [1, 2, 4, 8]\nlearning_rate: [1e-3]")
    command = arguments("lora", tiny_llama, words, tmp_path / "tuned")
    free = ("--batch-size", 4, "--target-modules", "q_proj", "--num-layers-to-adapt", 1, "--steps", 1)
    more = ("--space", space, "--trials", 6, "--sampler", "random", "--second", "bytes", "--no-nearest")
    limits = ("--limit", "adapter_rank<=4", "--limit", "general_kept>=0")
    assert_one_line(shoal(*command, *free, *more, *limits), 2, "the defaults break the limit adapter_rank<=4")
    ended = shoal(
        *command, *free, *more, "--limit", "adapter_rank<=16", *limits[2:], "--study", "x", "--json"
    )
    assert ended.code == 0, ended.err
    assert ended.record["front"] and all(row["bytes"] > 0 for row in ended.record["front"])
