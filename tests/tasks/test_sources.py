"""One function for tasks of every source: paths, hub data sets, Super-NaturalInstructions, puzzles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal.errors import ShoalError, UsageError
from shoal.tasks.loading import load_task_json, load_tasks

TASK = {
    "name": "sums",
    "category": "maths",
    "source": ["here"],
    "license": ["MIT"],
    "definition": "Add.",
    "descriptions": ["Add the numbers."],
    "train": [{"input": "1 + 1", "outputs": ["2"]}],
    "test": [{"input": "2 + 2", "outputs": ["4"]}],
}


def write(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")
    return path


def test_a_task_file_is_one_training_task(tmp_path: Path) -> None:
    path = write(tmp_path / "sums.json", TASK)
    split = load_tasks(path)
    assert split.train == (load_task_json(path),) and not split.held_out


def test_a_folder_of_task_files_is_training_tasks(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write(tmp_path / f"{name}.json", {**TASK, "name": name})
    assert [task.name for task in load_tasks(str(tmp_path)).train] == ["a", "b"]


def test_a_directory_with_splits_keeps_them(tmp_path: Path) -> None:
    write(tmp_path / "splits.json", {"train": ["sums"], "validation": ["other"]})
    write(tmp_path / "tasks" / "sums.json", TASK)
    other = {**TASK, "name": "other", "train": [], "test": [{"input": "3 + 3", "outputs": ["6"]}]}
    write(tmp_path / "tasks" / "other.json", other)
    split = load_tasks(tmp_path)
    assert [task.name for task in (*split.train, *split.validation)] == ["sums", "other"]


def test_jsonl_takes_a_definition(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(f'{{"input": "{n}", "output": "{n}"}}\n' for n in range(8)), "utf-8")
    (task,) = load_tasks(path, definition="Repeat it.", test_size=2).train
    assert (task.name, task.definition, len(task.test)) == ("mine", "Repeat it.", 2)


def test_super_natural_instructions_are_a_folder_or_a_file(tmp_path: Path) -> None:
    record = {
        "Definition": ["Answer."],
        "Categories": ["QA"],
        "Source": ["here"],
        "Instances": [{"input": f"q{n}", "output": ["a"]} for n in range(6)],
    }
    for name in ("task002_b", "task001_a"):
        write(tmp_path / f"{name}.json", record)
    tasks = load_tasks(f"sni:{tmp_path}", test_size=2).train
    assert [(task.name, len(task.test)) for task in tasks] == [("task001_a", 2), ("task002_b", 2)]
    assert load_tasks(f"sni:{tmp_path / 'task001_a.json'}", test_size=2).train == tasks[:1]


def test_a_hub_data_set_names_its_columns(tmp_path: Path) -> None:
    rows = [{"text": f"review {n}", "label": "good" if n % 2 else "bad"} for n in range(8)]
    folder = tmp_path / "reviews"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    source = f"hub:{folder}?input=text&output=label"
    (task,) = load_tasks(source, definition="Judge.", test_size=2).train
    assert (task.name, task.definition, len(task.train), len(task.test)) == ("reviews", "Judge.", 6, 2)


def test_puzzles_take_the_options_of_their_generator() -> None:
    (task,) = load_tasks("gym:chain_sum?size=20&min_terms=2&max_terms=2", test_size=4).train
    assert task.name == "chain_sum" and len(task.test) == 4
    assert all(example.input.count("+") + example.input.count("- ") >= 1 for example in task.train)
    (named,) = load_tasks("gym:chain_sum?size=20", definition="Add.").train
    assert named.definition == "Add."


@pytest.mark.parametrize(
    ("source", "definition", "message"),
    [
        ("hub:", "d", "nothing follows hub:; give hub:ORG/NAME"),
        ("hub:a/b", None, "hub:a/b holds no instruction; give the definition"),
        ("hub:a/b?columns=x", "d", "unknown option columns; use input, output, ignore, config"),
        ("sni:nowhere", None, "nowhere: not a file"),
        ("sni:nowhere", "d", "holds its own definition; leave the other one out"),
        ("sni:nowhere?size=2", None, "unknown option size; there are none"),
        ("gym:chain_sums", None, "did you mean chain_sum"),
        ("gym:chain_sum?definition=x", None, "definition is no option of a generator"),
        ("mine.jsonl", None, "mine.jsonl holds no instruction; give the definition"),
        ("nowhere", "d", "nowhere holds its own definition; leave the other one out"),
        ("nowhere", None, "nowhere: not a directory"),
        ("ftp:nowhere", None, "ftp:nowhere: not a directory"),
    ],
)
def test_a_source_that_cannot_be_used_is_refused(source: str, definition: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_tasks(source, definition=definition)


def test_a_folder_without_super_natural_instructions(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"0 \*.json files; give a folder of task files"):
        load_tasks(f"sni:{tmp_path}")
    write(tmp_path / "task001_a.json", {"Definition": "x"})
    with pytest.raises(ShoalError, match="the field Categories is missing"):
        load_tasks(f"sni:{tmp_path}")
