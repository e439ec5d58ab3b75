"""Files of solved examples as people have them: one normaliser, and no text lost in silence."""

from __future__ import annotations

import csv
import gzip
import io
import json
import time
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from shoal.errors import ShoalError, UsageError
from shoal.tasks.files import load_jsonl
from shoal.tasks.forms import Columns, Row, understand
from shoal.tasks.loading import load_hub_dataset, load_tasks
from shoal.tasks.records import Example
from shoal.tasks.tables import read_table

ROWS = [{"input": f"Café {i}", "output": f"名 {i}"} for i in range(4)]
EXPECTED = {Example(row["input"], (row["output"],)) for row in ROWS}


def delimited(delimiter: str) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, ["input", "output"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return file.getvalue()


LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
ARRAY = json.dumps(ROWS, indent=1)
FILES: dict[str, tuple[str, bytes]] = {
    "json lines": ("a.jsonl", LINES.encode()),
    "windows line ends": ("a.jsonl", LINES.replace("\n", "\r\n").encode()),
    "a byte order mark": ("a.jsonl", LINES.encode("utf-8-sig")),
    "ndjson": ("a.ndjson", LINES.encode()),
    "an array": ("a.json", ARRAY.encode()),
    "an array called lines": ("a.jsonl", ARRAY.encode()),
    "an array in one line": ("a.jsonl", json.dumps(ROWS).encode()),
    "an object around": ("a.jsonl", json.dumps({"version": 1, "data": ROWS}).encode()),
    "csv": ("a.csv", delimited(",").encode()),
    "csv of excel": ("a.csv", delimited(";").encode("utf-8-sig")),
    "csv in utf-16": ("a.csv", delimited("\t").encode("utf-16")),
    "tsv": ("a.tsv", delimited("\t").encode()),
    "gzip": ("a.jsonl.gz", gzip.compress(LINES.encode())),
    "two gzips in one": (
        "a.jsonl.gz",
        gzip.compress(LINES[:40].encode()) + gzip.compress(LINES[40:].encode()),
    ),
    "csv in gzip": ("a.csv.gz", gzip.compress(delimited(",").encode())),
    "gzip without a name": ("a.jsonl", gzip.compress(LINES.encode())),
    "utf-16": ("a.jsonl", LINES.encode("utf-16")),
    "utf-16 without a mark": ("a.jsonl", LINES.encode("utf-16-le")),
    "utf-16 the other way": ("a.jsonl", LINES.encode("utf-16-be")),
    "utf-32": ("a.jsonl", LINES.encode("utf-32")),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file_holds_the_same_examples(kind: str, tmp_path: Path) -> None:
    name, content = FILES[kind]
    (tmp_path / name).write_bytes(content)
    task = load_tasks(tmp_path / name, definition="d", test_size=0).train[0]
    assert set(task.train) == EXPECTED and task.name == "a"


def test_parquet_is_read(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    assert set(load_jsonl(tmp_path / "a.parquet", definition="d", test_size=0).train) == EXPECTED


def turns(*said: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in said]


Q, A = ("user", "Hot?"), ("assistant", "No.")
# name -> (row, request, answers)
FORMS: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "input and outputs": ({"input": "a", "outputs": ["x", "y"]}, "a", ("x", "y")),
    "alpaca": ({"instruction": "Say it.", "input": "a", "output": "x"}, "Say it.\n\na", ("x",)),
    "alpaca without input": ({"instruction": "Say it.", "input": "", "output": "x"}, "Say it.", ("x",)),
    "alpaca with null": ({"instruction": "Say it.", "input": None, "output": "x"}, "Say it.", ("x",)),
    "alpaca with a system": (
        {"system": "Be kind.", "instruction": "Say it.", "input": "a", "output": "x"},
        "Be kind.\n\nSay it.\n\na",
        ("x",),
    ),
    "dolly": ({"instruction": "Who?", "context": "Ada.", "response": "Ada"}, "Who?\n\nAda.", ("Ada",)),
    "prompt and completion": ({"prompt": "a", "completion": "x"}, "a", ("x",)),
    "prompt and response": ({"prompt": "a", "response": "x"}, "a", ("x",)),
    "question and answer": ({"question": "a", "answer": "x"}, "a", ("x",)),
    "squad": (
        {"context": "Ada.", "question": "Who?", "answers": {"text": ["Ada", "Ada"], "answer_start": [0, 0]}},
        "Ada.\n\nWho?",
        ("Ada",),
    ),
    "text and label": ({"text": "a", "label": "x"}, "a", ("x",)),
    "flan": ({"inputs": "a", "targets": "x"}, "a", ("x",)),
    "capitals": ({"Text": "a", " Label ": "x"}, "a", ("x",)),
    "article": ({"article": "a", "highlights": "x"}, "a", ("x",)),
    "numbers beside": (
        {"input": "a", "output": "x", "id": 7, "score": 0.5, "n": "12", "none": None},
        "a",
        ("x",),
    ),
    "messages": ({"messages": turns(Q, A)}, "Hot?", ("No.",)),
    "messages with a system": (
        {"messages": turns(("system", "Be kind."), Q, A)},
        "Be kind.\n\nHot?",
        ("No.",),
    ),
    "the definition as system": ({"messages": turns(("system", "d "), Q, A)}, "Hot?", ("No.",)),
    "several turns": (
        {"messages": turns(Q, A, ("user", "And now?"), ("assistant", "Yes."))},
        "User: Hot?\n\nAssistant: No.\n\nUser: And now?",
        ("Yes.",),
    ),
    "parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hot?"}]}, *turns(A)]},
        "Hot?",
        ("No.",),
    ),
    "sharegpt": (
        {
            "conversations": [{"from": "human", "value": "Hot?"}, {"from": "gpt", "value": "No."}],
            "system": "Be.",
        },
        "Be.\n\nHot?",
        ("No.",),
    ),
    "conversational prompt": ({"prompt": turns(Q), "completion": turns(A)}, "Hot?", ("No.",)),
    "talk and a text": ({"prompt": turns(Q), "completion": "No."}, "Hot?", ("No.",)),
    "talk and two right answers": (
        {"prompt": turns(Q), "completion": ["No.", "Not."]},
        "Hot?",
        ("No.", "Not."),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_a_request_and_its_answers(form: str) -> None:
    row, request, answers = FORMS[form]
    assert understand([Row("line 1", row)], definition="D").examples == (Example(request, answers),)


DROPPED: dict[str, dict[str, Any]] = {
    "a hint": {"input": "a", "output": "x", "hint": "think"},
    "another text": {"text": "a", "label": "x", "title": "b"},
    "a history": {"instruction": "a", "output": "x", "history": [["q", "a"]]},
    "a nested text": {"input": "a", "output": "x", "meta": {"style": "formal"}},
    "a second answer": {"prompt": "a", "completion": "x", "response": "y"},
}


@pytest.mark.parametrize("kind", DROPPED)
def test_a_text_that_would_be_dropped_is_named(kind: str) -> None:
    row = DROPPED[kind]
    name = list(row)[-1]
    if kind == "a second answer":
        with pytest.raises(ShoalError, match="line 3: the fields are"):
            understand([Row("line 3", row)])
        return
    with pytest.raises(ShoalError, match=rf"line 3: the text of column '{name}', .*--ignore-column {name}"):
        understand([Row("line 3", row)])
    assert len(understand([Row("line 3", row)], columns=Columns(ignored=(name,))).examples) == 1


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no answer": ({"text": "a"}, "the columns are text; .*--input-column"),
    "the user last": ({"messages": turns(Q)}, "not the assistant's"),
    "two answers": ({"messages": turns(Q, A, A)}, "not the user's"),
    "no such role": ({"messages": turns(("tool", "x"), A)}, "the role 'tool'"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, *turns(A)]},
        "turns of text alone",
    ),
    "a tool call": (
        {"messages": [*turns(Q), {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
        "calls tools",
    ),
    "talk without an answer": ({"prompt": turns(Q), "completion": []}, "outputs"),
    "talk and two fields of answers": (
        {"prompt": turns(Q), "completion": "No.", "response": "Not."},
        "the fields are",
    ),
    "an instruction beside a talk": (
        {"instruction": "Translate.", "input": turns(Q), "output": "Non."},
        "instruction: 'Translate.' would be dropped beside the turns of input",
    ),
    "a question beside a talk": (
        {"context": turns(Q), "question": "12", "answer": "No."},
        "question: '12' would be dropped beside the turns of context",
    ),
    "an empty answer": ({"input": "a", "output": ""}, "output is empty; write the right answer"),
    "half a pair": ({"input": "a", "output": "\ud83d"}, "not valid Unicode"),
    "a number": ({"input": 5, "output": "x"}, "input: 5 is of type int"),
    "turns as a text": (
        {"messages": '[{"role": "user"}]'},
        "messages: .* is one text; write a list of turns",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_row_that_cannot_be_read_is_named_by_its_place(kind: str) -> None:
    row, message = WRONG[kind]
    with pytest.raises(ShoalError, match=f"the examples line 9: .*{message}") as caught:
        understand([Row("line 9", row)])
    assert "\n" not in str(caught.value)


def joined(columns: Columns, *rests: str) -> list[tuple[str, ...]]:
    """The answers of each example of rows with one request."""
    rows = [{"text": "a", "label": f"x{i}", "lang": rest} for i, rest in enumerate(rests)]
    return [e.outputs for e in understand([Row("line", row) for row in rows], columns=columns).examples]


def test_equal_requests_join_only_where_the_rest_agrees() -> None:
    columns = Columns(("text",), "label")
    assert joined(columns, "de", "de") == [("x0", "x1")]
    assert joined(columns, "de", "fr") == [("x0",), ("x1",)]


def test_ignored_columns_are_no_part_of_the_rest() -> None:
    assert joined(Columns(ignored=("lang",)), "de", "fr") == [("x0", "x1")]
    assert joined(Columns(("text",), "label", ignored=("lang",)), "de", "fr") == [("x0", "x1")]


def test_columns_can_be_named(tmp_path: Path) -> None:
    rows = [{"premise": f"p{i}", "hypothesis": "h", "verdict": "yes", "note": "n"} for i in range(3)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = Columns(("premise", "hypothesis"), "verdict")
    split = load_tasks(tmp_path / "a.jsonl", definition="d", test_size=0, columns=columns)
    assert {e.input for e in split.train[0].train} == {f"p{i}\n\nh" for i in range(3)}
    with pytest.raises(UsageError, match="column 'nothing': .* has premise, hypothesis"):
        load_tasks(tmp_path / "a.jsonl", definition="d", columns=Columns(("nothing",), "verdict"))


def test_hub_data_sets_go_through_the_same_forms(tmp_path: Path) -> None:
    rows = [{"instruction": f"Do {i}.", "input": "", "output": "done"} for i in range(3)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = load_hub_dataset(str(tmp_path), name="t", definition="d", test_size=0)
    assert {e.input for e in task.train} == {"Do 0.", "Do 1.", "Do 2."}
    (tmp_path / "train.jsonl").write_text(json.dumps({**rows[0], "topic": "art"}))
    with pytest.raises(ShoalError, match="column 'topic'"):
        load_hub_dataset(str(tmp_path), name="t", definition="d", test_size=0)


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "csv cut short": ("a.csv", b'input,output\n"a,b\n', "line 2"),
    "csv of other widths": ("a.csv", b"input,output\na,b,c\n", "line 2: 3 cells, the first line names 2"),
    "csv of one name twice": ("a.csv", b"input,input\na,b\n", "two columns have one name"),
    "csv of a head alone": ("a.csv", b"input,output\n", "0 examples"),
    "gzip cut short": ("a.jsonl.gz", gzip.compress(LINES.encode())[:-12], "no whole gzip file"),
    "an array cut short": ("a.json", ARRAY[:-5].encode(), "not valid JSON"),
    "an array of words": ("a.json", b'["a", "b"]', "entry 1: 'a' is not an object"),
    "an excel file": ("a.jsonl", b"PK\x03\x04rest", "ZIP or Excel"),
    "latin-1": ("a.csv", "input,output\ncafé,x\n".encode("latin-1"), "is not UTF-8"),
    "deep": ("a.jsonl", b"[" * 100_000, "not valid JSON"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_one_line(kind: str, tmp_path: Path) -> None:
    name, content, message = BROKEN[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ShoalError, match=message) as caught:
        load_jsonl(tmp_path / name, definition="d")
    assert "\n" not in str(caught.value)


def test_a_small_gzip_does_not_become_large(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b" " * 2**22))
    with pytest.raises(ShoalError, match="unpacks to more than 1000000 bytes"):
        read_table(tmp_path / "a.jsonl.gz", max_bytes=10**6)


def test_empty_members_of_a_gzip_are_read_in_linear_time(tmp_path: Path) -> None:
    def seconds(members: int) -> float:
        path = tmp_path / "a.jsonl.gz"
        path.write_bytes(gzip.compress(b"") * members + gzip.compress(LINES.encode()))
        started = time.process_time()
        assert len(read_table(path).rows) == 4
        return time.process_time() - started

    assert seconds(80_000) < 10 * seconds(16_000)  # 25 times where each member copies what follows it


@pytest.mark.parametrize(
    "columns",
    [
        pytest.param(
            {"input": ["a" * 10**6] * 300, "output": ["x"] * 300}, id="one long text again and again"
        ),
        pytest.param({"input": ["a" * 10**7], "output": ["x"]}, id="compressed"),
        pytest.param({"input": [None] * 10**5}, id="rows of nothing"),
    ],
)
def test_a_small_parquet_does_not_become_large(columns: dict[str, list], tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table(columns), path := tmp_path / "a.parquet", compression="zstd")
    assert path.stat().st_size < 10**5
    with pytest.raises(ShoalError, match="unpacks to more than 5000000 bytes"):
        read_table(path, max_bytes=5 * 10**6)


@pytest.mark.parametrize("value", [0, "", {"role": "user"}])
def test_values_in_lists_are_counted_before_they_are_unpacked(
    value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pyarrow.table({"input": [[value] * 10**6], "output": ["x"]})
    parquet.write_table(table, path := tmp_path / "a.parquet", compression="zstd")
    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", lambda *_: pytest.fail("it is unpacked"))
    with pytest.raises(ShoalError, match="unpacks to more than 5000000 bytes"):
        read_table(path, max_bytes=5 * 10**6)


def test_a_parquet_file_cut_short_is_one_line(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"input": ["a"], "output": ["x"]}), path := tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ShoalError, match="no whole Parquet file") as caught:
        read_table(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_definition_is_asked_for(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(ARRAY)
    with pytest.raises(UsageError, match="give the definition"):
        load_tasks(tmp_path / name)
