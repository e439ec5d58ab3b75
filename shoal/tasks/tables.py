"""Rows of a file: JSON Lines, a JSON array, CSV, TSV or Parquet, in gzip, UTF-8 or UTF-16.

Content decides, and the ending where content does not. Knows nothing of what the columns mean.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.errors import ShoalError, UsageError, reason, shorten
from shoal.tasks.delimited import delimited_rows
from shoal.tasks.forms import Row
from shoal.tasks.turns import are_turns

ENDINGS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".gz")  # of files that hold rows, not a task
MAX_BYTES = 2**30  # of a file, and of what a compressed one unpacks to
ROW_BYTES = 100  # that every row of a Parquet file counts for, beside its text
VALUE_BYTES = 8  # that every value in a list counts for
BATCH_ROWS = 1000  # of a Parquet file that are unpacked at once, at most
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_FOREIGN = {
    b"PK\x03\x04": "a ZIP or Excel file; unpack it or save it as CSV",
    b"(\xb5/\xfd": "a Zstandard file; unpack it",
    b"BZh": "a bzip2 file; unpack it",
    b"\xfd7zXZ": "an xz file; unpack it",
}
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_WRAPPERS = ("data", "rows", "examples", "instances", "train")  # keys under which one object holds all rows


@dataclass(frozen=True)
class Table:
    """The rows of a file.

    Attributes:
        form: of the file, for people.
        rows: at least one.
    """

    form: str
    rows: tuple[Row, ...]


def holds_rows(path: Path) -> bool:
    """True for a file of rows, by its ending, or of `.json` by its content, where that is no task."""
    if path.suffix.lower() in ENDINGS:
        return True
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    try:
        text = read_text(path).strip()
        return text.startswith("[") or _is_of_rows(json.loads(text))
    except (ShoalError, RecursionError):  # which is said when it is read
        return False
    except ValueError:
        return _is_object(text.split("\n", 1)[0])  # a line for each row


def _is_of_rows(whole: object) -> bool:
    """True for an object that holds rows under one key, and no instruction."""
    return (
        isinstance(whole, dict)
        and "definition" not in map(str.casefold, whole)
        and any(are_turns(whole.get(key)) for key in _WRAPPERS)
    )


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def read_table(path: Path, *, max_bytes: int = MAX_BYTES) -> Table:
    """The rows of a file.

    Args:
        path: of the file.
        max_bytes: largest size, also unpacked.

    Raises:
        UsageError: there is no such file.
        ShoalError: it is too large, broken (the line is given), of no form that is read, or without rows.
    """
    content = _content(path, max_bytes)
    if foreign := next((what for magic, what in _FOREIGN.items() if content.startswith(magic)), None):
        raise ShoalError(f"{path}: {foreign}; JSON Lines, JSON, CSV, TSV and Parquet are read")
    if content.startswith(_PARQUET):
        table = Table("Parquet", tuple(_parquet_rows(path, content, max_bytes)))
    else:
        table = _text_table(path, decode(content, path))
    if not table.rows:
        raise ShoalError(f"{path}: 0 examples; at least 1 line is needed, add one")
    return table


def read_text(path: Path, *, max_bytes: int = MAX_BYTES) -> str:
    """The text of a UTF-8 or UTF-16 file, also in gzip, without a byte order mark.

    Raises:
        UsageError: there is no such file.
        ShoalError: it cannot be read, is too large, or is not UTF-8.
    """
    return decode(_content(path, max_bytes), path)


def decode(content: bytes, source: object) -> str:
    """The text of some bytes; errors as `read_text`."""
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), None)
    if encoding is None:  # UTF-16 without a mark has a zero in every other byte of ASCII
        head = content[:400]
        odd, even = head[1::2].count(0), head[::2].count(0)
        wide = "utf-16-le" if 4 * odd > len(head) else "utf-16-be" if 4 * even > len(head) else None
        encoding = wide or "utf-8"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ShoalError(
            f"{source}: byte {error.start} is not {encoding.removesuffix('-sig').upper()}; save the file as "
            "UTF-8"
        ) from None


def _content(path: Path, max_bytes: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise ShoalError(f"{path}: {size} bytes, the limit is {max_bytes}; take rows out")
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise UsageError(f"{path}: not a file; check the path") from None
    except OSError as error:
        raise ShoalError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    return _unzipped(content, path, max_bytes) if content.startswith(_GZIP) else content


def _unzipped(content: bytes, path: Path, max_bytes: int) -> bytes:
    """All members of a gzip file, of which no more is unpacked than may be."""
    parts, size = [], 0
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            while part := file.read(2**20):
                parts.append(part)
                size += len(part)
                if size > max_bytes:
                    raise ShoalError(
                        f"{path}: unpacks to more than {max_bytes} bytes, the limit; take rows out"
                    )
    except (OSError, EOFError, zlib.error) as error:
        raise ShoalError(f"{path}: no whole gzip file ({reason(error)}); pack it again") from None
    return b"".join(parts)


def _text_table(path: Path, text: str) -> Table:
    ending = next((s for s in reversed(path.suffixes) if s.lower() != ".gz"), "").lower()
    begin = text.lstrip()[:1]
    if ending in (".csv", ".tsv"):
        return Table(ending[1:].upper(), tuple(delimited_rows(path, text, tabs=ending == ".tsv")))
    if begin == "[" and (rows := _array_rows(path, text)) is not None:
        return Table("a JSON array", rows)
    if begin == "{" and (rows := _wrapped_rows(path, text)) is not None:
        return Table("a JSON object of rows", rows)
    return Table("JSON Lines", tuple(_line_rows(path, text)))


def _line_rows(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = _object(json.loads(line, object_pairs_hook=_once))
            except (ValueError, RecursionError) as error:
                why = (
                    str(error)
                    if isinstance(error, UsageError)
                    else f"{shorten(line, 40)} is not JSON ({error})"
                )
                raise ShoalError(f"{path} line {number}: {why}; repair the line") from None
            yield Row(f"line {number}", row)


def _array_rows(path: Path, text: str) -> tuple[Row, ...] | None:
    """The rows of a whole JSON array; None where lines hold arrays."""
    try:
        entries = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        if "\n" in text.strip() and text.lstrip().split("\n")[0].rstrip().endswith("]"):
            return None
        raise ShoalError(f"{path}: not valid JSON ({reason(error)}); repair the file") from None
    rows = []
    for number, entry in enumerate(entries, start=1):
        try:
            rows.append(Row(f"entry {number}", _object(entry)))
        except UsageError as error:
            raise ShoalError(f"{path} entry {number}: {error}; repair it") from None
    return tuple(rows)


def _wrapped_rows(path: Path, text: str) -> tuple[Row, ...] | None:
    """The rows of one object that holds them all under one key; None where each line is an object."""
    try:
        whole = json.loads(text, object_pairs_hook=_once)
    except UsageError as error:
        raise ShoalError(f"{path}: {error}; repair it") from None
    except (ValueError, RecursionError):
        return None
    if not isinstance(whole, dict):
        return None
    lists = [key for key, value in whole.items() if are_turns(value)]
    if len(lists) > 1 and any(key in _WRAPPERS for key in lists):
        raise ShoalError(f"{path}: rows are under {' and '.join(map(shorten, lists))}; keep one of these")
    if lists and lists[0] in _WRAPPERS:
        return tuple(Row(f"entry {number}", entry) for number, entry in enumerate(whole[lists[0]], start=1))
    return (Row("line 1", whole),)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ: of two equal ones the first would be dropped."""
    if len(found := dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"an object has {shorten(twice)} twice; keep one")
    return found


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{shorten(value)} is not an object; one with input and output is needed")
    return value


def _parquet_rows(path: Path, content: bytes, max_bytes: int) -> Iterator[Row]:
    """The rows of a Parquet file, of which no more is unpacked than may be."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ShoalError(
            f"{path}: pyarrow cannot be imported ({error}) and is needed for Parquet; pip install datasets"
        ) from None
    too_large = ShoalError(f"{path}: unpacks to more than {max_bytes} bytes, the limit; take rows out")
    size, number = 0, 0
    try:
        with parquet.ParquetFile(io.BytesIO(content)) as file:
            if len(set(names := file.schema_arrow.names)) < len(names):
                raise ShoalError(f"{path}: two columns have one name; rename one")
            for batch in file.iter_batches(_rows_at_once(file.metadata, max_bytes, too_large)):
                for values in batch.to_pylist():
                    number += 1
                    size += ROW_BYTES + sum(map(_text_size, values.values()))
                    if size > max_bytes:
                        raise too_large
                    yield Row(f"row {number}", values)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ShoalError(
            f"{path}: no whole Parquet file ({reason(error)}); repair or re-download it"
        ) from None


def _rows_at_once(footer: Any, max_bytes: int, too_large: ShoalError) -> int:
    """Rows of a batch: if each held all of the largest column, which a dictionary allows, they still fit."""
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    if footer.num_rows * ROW_BYTES > max_bytes or sum(group.total_byte_size for group in groups) > max_bytes:
        raise too_large
    columns = [(group, group.column(number)) for group in groups for number in range(group.num_columns)]
    # A single row may hold any number of values in its lists, which are all unpacked with it.
    in_lists = sum(max(0, column.num_values - group.num_rows) for group, column in columns)
    if in_lists * VALUE_BYTES > max_bytes:
        raise too_large
    largest = max((column.total_uncompressed_size for _, column in columns), default=0)
    return min(BATCH_ROWS, max(1, max_bytes // max(1, largest)))


def _text_size(value: object) -> int:
    """Characters and bytes in a value."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_text_size, value.values()))
    return sum(map(_text_size, value)) if isinstance(value, list) else 8
