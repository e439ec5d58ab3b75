"""Rows of CSV and TSV as people and Excel write them.

Knows text, nothing of files and of what the columns mean.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterator

from shoal.errors import ShoalError, reason
from shoal.tasks.forms import Row

_DELIMITERS = "\t,;|"
_STATED = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)  # Excel's first line


def delimited_rows(source: object, text: str, *, tabs: bool) -> Iterator[Row]:
    """The rows after the first line, which names the columns.

    Tabs are written without quotes as often as with them: a file whose every line has the cells that the
    first one names is read as it is, unless that gives as many rows as with quotes.

    Args:
        source: of the text, for messages.
        text: whole.
        tabs: cells are parted by tabs; else by what the first line has most of.

    Raises:
        ShoalError: a line has other cells than the first one names, two of which may not be the same.
    """
    csv.field_size_limit(sys.maxsize)  # a cell may hold a document
    skipped = 0
    if stated := _STATED.match(text):
        text, skipped = text[stated.end() :], 1
    head = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = "\t" if tabs else stated[1] if stated else max(_DELIMITERS, key=head.count)
    if tabs and '"' in text and (plain := _unquoted(source, text)) is not None:
        yield from plain
        return
    yield from _rows(source, text, delimiter, skipped=skipped)


def _unquoted(source: object, text: str) -> list[Row] | None:
    """The rows of lines whose quotes are text; None where they hold cells together."""
    try:
        plain = list(_rows(source, text, "\t", quoted=False))
    except ShoalError:
        return None
    try:
        return None if len(list(_rows(source, text, "\t"))) == len(plain) else plain
    except ShoalError:
        return plain


def _rows(
    source: object, text: str, delimiter: str, *, skipped: int = 0, quoted: bool = True
) -> Iterator[Row]:
    lines = io.StringIO(text, newline="")
    reader = csv.reader(
        lines,
        delimiter=delimiter,
        strict=True,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
    )
    names: list[str] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not names:
                names = [cell.strip() for cell in cells]
                if len(set(names)) < len(names):
                    raise ShoalError(f"{source}: two columns have one name; the first line names the columns")
                continue
            if len(cells) != len(names):
                raise ShoalError(
                    f"{source} line {reader.line_num + skipped}: {len(cells)} cells, the first line names "
                    f"{len(names)} columns; quote cells that hold {delimiter!r} or line breaks"
                )
            yield Row(f"line {reader.line_num + skipped}", dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        raise ShoalError(
            f"{source} line {reader.line_num + skipped}: {reason(error)}; repair the line"
        ) from None
