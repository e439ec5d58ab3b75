"""The directory of a library: damage, writers at once, full disks, kills, and every input that is refused."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.errors import ConflictError, ShoalError, UnavailableError, UsageError
from shoal.file_errors import failures_named
from shoal.library import store as stores
from shoal.library.library import Library
from shoal.library.store import Store
from shoal.library.versions import Step, Version
from shoal.models.backbone import Backbone
from shoal.tasks.records import Example, LeakageError
from tests.fixtures.library import learn, new_library, open_library, sentence, solved

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tests" / "fixtures" / "library.py"


@pytest.fixture
def folder(library: Library, tmp_path: Path) -> Path:
    return tmp_path / "library"


def one_line(error: pytest.ExceptionInfo[Exception]) -> None:
    assert "\n" not in str(error.value)


def assert_whole(folder: Path) -> Version:
    """Every version that can be restored has all its files; the current one."""
    store = Store(folder)
    current = store.versions()[-1]
    for name, digest in current.skills.items():
        store.skill(name, digest).check_files()
    return current


# Names, examples and sentences


@pytest.mark.parametrize("name", ["", "Big", "a/b", "..", "-a", "a" * 65, "none"])
def test_names_are_those_of_adapters(library: Library, name: str) -> None:
    with pytest.raises(UsageError) as error:
        learn(library, name, examples=solved("lower"))
    one_line(error)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"examples": solved("lower", count=7)}, "7 different inputs.*too few to learn a skill from.*is 8"),
        ({"examples": [Example("same", ("a",))] * 20}, "1 different inputs"),
        ({"keep": 65}, "keep 65 exemplars: 0 to 64"),
        ({"keep": -1}, "keep -1 exemplars"),
        ({"bound": -1.0}, "bound -1 points is outside"),
        ({"allow_loss": ["upper"]}, "no skill 'upper'; it has capitals, digits"),
        ({"description": "x"}, "shorter than 2 characters"),
    ],
)
def test_settings_that_cannot_be_used(library: Library, changes: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        learn(library, "lower", **changes)
    one_line(error)
    assert library.version.number == 3


def test_examples_that_an_older_skill_is_tested_on(library: Library) -> None:
    own = [*solved("lower"), *library.skills["digits"].exemplars]
    with pytest.raises(LeakageError, match="is evaluation data of task digits"):
        learn(library, "lower", examples=own)


def test_answers_that_contradict_an_older_skill(library: Library) -> None:
    other = [Example(example.input, ("other",)) for example in library.skills["digits"].exemplars]
    with pytest.raises(UsageError, match="contradict the skill digits.*--allow-loss digits"):
        learn(library, "lower", examples=[*solved("lower"), *other])


# What is damaged


def test_a_library_of_another_base(folder: Path, sharp_llama: Backbone) -> None:
    other = replace(sharp_llama, shape=replace(sharp_llama.shape, base_model="another"))
    with pytest.raises(UsageError, match="the library is for .*, not another"):
        open_library(folder, other)


def test_no_library_and_one_too_many(folder: Path, sharp_llama: Backbone, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no library; `shoal learn` makes one"):
        Store(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is a library already"):
        new_library(folder, sharp_llama)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds thesis.txt"):
        new_library(tmp_path / "full", sharp_llama)


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "other"])
def test_a_damaged_manifest(folder: Path, damage: str) -> None:
    path = folder / "versions" / "0003.json"
    text = path.read_text()
    changed = {
        "cut": text[: len(text) // 2],
        "changed": text.replace("digits", "dugits"),
        "empty": "",
        "other": (folder / "versions" / "0002.json").read_text(),
    }
    path.write_text(changed[damage])
    with pytest.raises(ShoalError, match="0003.json") as error:
        Library.open(folder)
    one_line(error)
    path.unlink()
    assert Library.open(folder).version.number == 2


def test_a_manifest_that_is_missing_between_others(folder: Path) -> None:
    (folder / "versions" / "0002.json").unlink()
    with pytest.raises(ShoalError, match="0002.json is missing and later versions are there"):
        Library.open(folder).rollback(1)


@pytest.mark.parametrize("name", ["sums.safetensors", "adapter_model.safetensors"])
def test_files_of_another_skill(library: Library, name: str) -> None:
    one, other = (library.skills[n].folder / name for n in ("digits", "capitals"))
    one.write_bytes(other.read_bytes())
    with pytest.raises(ShoalError, match="does not match the skill digits: it was changed") as error:
        library.check()
    one_line(error)


def test_sums_of_no_skill_that_were_changed(folder: Path, sharp_llama: Backbone) -> None:
    path = folder / "none.safetensors"
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    with pytest.raises(ShoalError, match="does not match library.json"):
        open_library(folder, sharp_llama).ask(["0077112"])


def test_facts_that_were_changed(folder: Path) -> None:
    path = next(folder.glob("skills/digits/*/skill.json"))
    path.write_text(path.read_text().replace("refined", "trained"))
    with pytest.raises(ShoalError, match="skill.json was changed"):
        Library.open(folder)


def test_exemplars_that_were_deleted_by_hand(library: Library) -> None:
    (library.skills["digits"].folder / "exemplars.jsonl").unlink()
    (answer,) = library.ask(["0077112"])
    assert answer.decision.skill == "digits"
    with pytest.raises(ShoalError, match="exemplars.jsonl is gone; learn digits again"):
        learn(library, "lower")
    library.forget("digits")
    assert list(library.skills) == ["capitals"]


# Steps that are refused


def test_versions_that_cannot_be_restored(library: Library, folder: Path) -> None:
    with pytest.raises(UsageError, match="no version 9; choose 1 to 3"):
        library.rollback(9)
    library.forget("digits")
    with pytest.raises(UsageError, match="version 3 had the skill digits, which was forgotten in version 4"):
        library.rollback(3)
    assert library.rollback(1).number == 5 and not library.skills
    assert_whole(folder)


def test_skills_that_are_not_there(library: Library) -> None:
    for step in (library.forget, library.adapter, lambda name: library.ask(["x"], skill=name)):
        with pytest.raises(UsageError, match="no skill 'upper'; it has capitals, digits"):
            step("upper")
    with pytest.raises(UsageError, match="leave the other out"):
        library.decide(["x"], skill="digits", describe=sentence("digits"))
    with pytest.raises(UsageError, match="at least 1 is needed"):
        library.ask([])


def test_one_skill_is_not_consolidated(library: Library) -> None:
    with pytest.raises(UsageError, match="least 2 must be from 0 to 1"):
        library.consolidate(least=2)
    library.forget("digits")
    with pytest.raises(UsageError, match="2 skills or more are consolidated, the library has 1, capitals"):
        library.consolidate()


def test_the_second_writer_is_refused(library: Library, folder: Path) -> None:
    with Store(folder).writing():
        for step in (
            lambda: learn(library, "lower"),
            lambda: library.rollback(2),
            lambda: library.forget("digits"),
        ):
            with pytest.raises(
                ConflictError, match="is written by another process; wait until it ends"
            ) as error:
                step()
            one_line(error)
        assert library.ask(["0077112"])[0].decision.skill == "digits"  # readers go on
    library.rollback(2)


# Whole or absent


@pytest.mark.parametrize("fails", ["add", "commit"])
def test_a_full_disk_leaves_the_library_as_it_was(
    library: Library, folder: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def full(path: Path, *_: object) -> None:
        with failures_named(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stores, {"add": "move_directory", "commit": "write_file"}[fails], full)
    with pytest.raises(UnavailableError, match="the disk is full; free some space"):
        learn(library, "lower")
    monkeypatch.undo()
    assert assert_whole(folder).number == 3
    learn(library, "lower")
    assert assert_whole(folder).number == 4


def test_a_disk_that_is_full(learnt: Path, sharp_llama: Backbone, small_disk: Path) -> None:
    shutil.copytree(learnt, small_disk / "library")
    library = open_library(small_disk / "library", sharp_llama)
    with (small_disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
        while True:
            filler.write(bytes(1024))
    with pytest.raises(UnavailableError, match="the disk is full"):
        learn(library, "lower")
    (small_disk / "filler").unlink()
    assert assert_whole(small_disk / "library").number == 3


def test_leftovers_of_a_killed_step_are_swept_by_the_next_writer(library: Library, folder: Path) -> None:
    orphan = folder / "skills" / "lower" / "0123456789ab"
    orphan.mkdir(parents=True)
    (orphan / "skill.json").write_text("{}")
    (folder / "staging" / "x").mkdir(parents=True)
    (folder / "skills" / ".digits.0123.tmp").mkdir()
    library.rollback(2)
    assert {path.name for path in (folder / "skills").iterdir()} == {"digits", "capitals"}
    assert not (folder / "staging").exists()
    assert_whole(folder)


def test_a_skill_that_was_forgotten_by_a_killed_step_goes_too(library: Library, folder: Path) -> None:
    current, store = library.version, Store(folder)
    skills = {"capitals": current.skills["capitals"]}
    asked = {"capitals": current.asked["capitals"]}
    step = Step(kind="forget", skill="digits")
    store.commit(Version(number=4, step=step, skills=skills, asked=asked))
    with store.writing():
        assert not (folder / "skills" / "digits").exists()


def test_a_library_at_which_a_writer_is_killed_is_whole(tiny_llama: Path, folder: Path) -> None:
    kill_writers(tiny_llama, folder, 5)


@pytest.mark.slow
def test_a_library_at_which_many_writers_are_killed_is_whole(tiny_llama: Path, folder: Path) -> None:
    kill_writers(tiny_llama, folder, 50)


def kill_writers(model: Path, folder: Path, kills: int) -> None:
    """Kill processes that learn and forget a skill, each at a random moment; every library left is whole."""
    old = Store(folder).current().skills
    chance, numbers = random.Random(0), []
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), str(model), str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        seconds = json.loads(server.stdout.readline())["seconds"]  # that learning and forgetting take
        for _ in range(kills):
            server.stdin.write("go\n")
            server.stdin.flush()
            process = int(server.stdout.readline())
            try:
                time.sleep(chance.uniform(0, 1.5 * seconds))
                os.kill(process, signal.SIGKILL)
            finally:
                assert server.stdout.readline() == "ended\n"
            current = assert_whole(folder)
            assert old.items() <= current.skills.items() and current.skills.keys() <= {*old, "lower"}
            numbers.append(current.number)
        server.stdin.close()
        assert server.wait(60) == 0
    assert numbers == sorted(numbers)
    with Store(folder).writing():
        live = {path.parent.name for path in (folder / "skills").glob("*/*")}
    assert live <= {*old, "lower"} and not (folder / "staging").exists()
