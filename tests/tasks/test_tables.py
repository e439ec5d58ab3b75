"""Tables as spreadsheets, dumps and exports write them: every cell kept, or one line that says why not."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from shoal.errors import ShoalError
from shoal.tasks.files import load_jsonl
from shoal.tasks.loading import load_tasks
from shoal.tasks.records import Example

HEAD = "input\toutput\n"
# name -> (text of a TSV, its examples)
TABBED: dict[str, tuple[str, dict[str, str]]] = {
    "quotes within": ('He said "hi" there\tx\nb\ty\n', {'He said "hi" there': "x", "b": "y"}),
    "a quote first": ('"Hi" he said\tx\nb\ty\n', {'"Hi" he said': "x", "b": "y"}),
    "a quote that never closes": ('"open\tx\nb\ty\n', {'"open': "x", "b": "y"}),
    "quotes of two rows": ('"Hi\tx\nb"\ty\n', {'"Hi': "x", 'b"': "y"}),
    "inches": ('5" pipe\tx\n', {'5" pipe': "x"}),
    "quoted tabs": ('"a\tb"\tx\nb\ty\n', {"a\tb": "x", "b": "y"}),
    "quoted line breaks": ('"a\nb"\tx\nb\ty\n', {"a\nb": "x", "b": "y"}),
    "all quoted": ('"a"\t"x ""y"""\n', {"a": 'x "y"'}),
}


def examples(path: Path) -> set[Example]:
    return set(load_tasks(path, definition="d", test_size=0).train[0].train)


@pytest.mark.parametrize("kind", TABBED)
def test_quotes_of_tab_separated_values_hold_cells_together_or_are_text(kind: str, tmp_path: Path) -> None:
    text, expected = TABBED[kind]
    (tmp_path / "a.tsv").write_text(HEAD + text)
    assert examples(tmp_path / "a.tsv") == {Example(i, (o,)) for i, o in expected.items()}


ROWS = [{"input": "a, b", "output": "x"}]
ONE = {Example("a, b", ("x",))}
READ: dict[str, tuple[str, bytes]] = {
    "Excel's separator": ("a.csv", b"sep=;\ninput;output\na, b;x\n"),
    "its separator after a mark": ("a.csv", "SEP=|\r\ninput|output\r\na, b|x\r\n".encode("utf-8-sig")),
    "another separator than the first line has most of": ("a.csv", b"sep=;\ninput;output;a,b,c\na, b;x;1\n"),
    "an index without a name": ("a.csv", b',input,output\n0,"a, b",x\n'),
    "old line ends": ("a.csv", b'input,output\r"a, b",x\r'),
    "an array in UTF-16": ("a.json", json.dumps(ROWS).encode("utf-16")),
    "an array in gzip": ("a.json.gz", gzip.compress(json.dumps(ROWS).encode())),
    "an array in gzip by no name": ("a.json", gzip.compress(json.dumps(ROWS).encode())),
    "lines called JSON": ("a.json", (json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[0]) + "\n").encode()),
    "an object called JSON": ("a.json", json.dumps({"version": "1", "data": ROWS}).encode()),
    "CSV in UTF-16 and gzip": ("a.csv.gz", gzip.compress('input,output\n"a, b",x\n'.encode("utf-16"))),
}


@pytest.mark.parametrize("kind", READ)
def test_what_a_table_is_is_seen_in_it(kind: str, tmp_path: Path) -> None:
    name, content = READ[kind]
    (tmp_path / name).write_bytes(content)
    assert examples(tmp_path / name) == ONE


def test_a_cell_may_hold_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("input,output\n" + "word " * 50_000 + ",x\n")
    assert {len(example.input) for example in examples(tmp_path / "a.csv")} == {250_000}


LINE = json.dumps(ROWS[0])
DROPPING: dict[str, tuple[str, bytes, str]] = {
    "a key twice": (
        "a.jsonl",
        LINE.encode() + b'\n{"input":"a","input":"b","output":"x"}',
        "line 2: .*'input'",
    ),
    "a key twice in an array": ("a.json", b'[{"input":"a","output":"x","output":"y"}]', "'output' twice"),
    "a key twice in a turn": ("a.json", b'{"data":[{"input":"a","input":"b"}]}', "'input' twice"),
    "two parts in one object": (
        "a.jsonl",
        json.dumps({"train": ROWS, "test": ROWS}).encode(),
        "rows are under 'train' and 'test'",
    ),
    "an xz file": ("a.jsonl", b"\xfd7zXZ\0rest", "an xz file; unpack it"),
    "a Zstandard file": ("a.jsonl", b"(\xb5/\xfdrest", "a Zstandard file; unpack it"),
    "a bzip2 file": ("a.csv", b"BZh91AY", "a bzip2 file; unpack it"),
}


@pytest.mark.parametrize("kind", DROPPING)
def test_what_would_be_dropped_or_misread_is_one_line(kind: str, tmp_path: Path) -> None:
    name, content, message = DROPPING[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ShoalError, match=message) as caught:
        load_jsonl(tmp_path / name, definition="d")
    assert "\n" not in str(caught.value)


TEXT = pyarrow.array(["a"])
COLUMNS: dict[str, tuple[list[tuple[str, pyarrow.Array]], str]] = {
    "one name twice": ([("input", TEXT), ("input", TEXT), ("output", TEXT)], "two columns have one name"),
    "bytes beside": (
        [("input", TEXT), ("output", TEXT), ("image", pyarrow.array([b"\x89PNG"]))],
        "'image'.* would be dropped",
    ),
    "bytes as input": ([("input", pyarrow.array([b"a"])), ("output", TEXT)], "input: b'a' is of type bytes"),
    "numbers as labels": ([("text", TEXT), ("label", pyarrow.array([1]))], r"label\[0\]: 1 is of type int"),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_of_parquet_that_would_be_dropped_are_named(kind: str, tmp_path: Path) -> None:
    columns, message = COLUMNS[kind]
    table = pyarrow.Table.from_arrays([values for _, values in columns], [name for name, _ in columns])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ShoalError, match=message):
        load_jsonl(tmp_path / "a.parquet", definition="d")
