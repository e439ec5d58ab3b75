"""Inputs without answers: what a user has of a task before anyone solved it.

Knows texts and files, nothing of models.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Sequence
from pathlib import Path

from shoal.errors import ShoalError, UsageError, check_unicode, shorten
from shoal.tasks.files import load_task_json
from shoal.tasks.tables import read_text
from shoal.tasks.texts import normalise

log = logging.getLogger(__name__)

MIN_INPUTS, MAX_INPUTS = 4, 64  # different ones that are needed, and that are used
MAX_FILE_BYTES = 64 * 2**20
MAX_INPUT_CHARACTERS = 20_000
FIELDS = ("input", "text", "prompt")


def check_inputs(inputs: Sequence[str], *, most: int = MAX_INPUTS) -> tuple[str, ...]:
    """The different inputs, at most `most`, drawn evenly where there are more.

    Their language does not matter: an input is never read as a description is.

    Raises:
        UsageError: they are one string, one of them is no string, blank or too long, or fewer than
            `MIN_INPUTS` differ.
    """
    if isinstance(inputs, str):
        raise UsageError(f"inputs {shorten(inputs)} is one string; give a list of at least {MIN_INPUTS}")
    for text in inputs:
        if not isinstance(text, str) or not text.strip() or len(text) > MAX_INPUT_CHARACTERS:
            raise UsageError(
                f"input {shorten(text)} must be a string of 1 to {MAX_INPUT_CHARACTERS} characters, one of "
                "them visible; correct it or leave it out"
            )
        check_unicode(text, "input")
    different = list({normalise(text): text for text in inputs}.values())
    if len(different) < MIN_INPUTS:
        raise UsageError(
            f"{len(different)} different inputs ({len(inputs)} given) are too few to learn from, the least "
            f"is {MIN_INPUTS}; give more, or none"
        )
    if len(different) > most:
        log.info("%d of %d different inputs are used, drawn at random", most, len(different))
        different = random.Random(0).sample(different, most)
    return tuple(different)


def read_inputs(path: str | Path) -> list[str]:
    """The inputs in a file: one per line, or with the ending `.jsonl` one JSON string or object per line.

    Of an object its `input` counts, else its `text` or `prompt`. Blank lines are skipped.

    Raises:
        UsageError: there is no such file.
        ShoalError: it is empty, larger than `MAX_FILE_BYTES`, not UTF-8, or a line is malformed (its number
            is given).
    """
    path = Path(path)
    if path.is_file() and (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise ShoalError(
            f"{path}: {size} bytes, the limit is {MAX_FILE_BYTES}; only {MAX_INPUTS} inputs are used, take "
            "some out"
        )
    lines = read_text(path).split("\n")
    rows = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise ShoalError(f"{path}: 0 inputs; at least {MIN_INPUTS} lines are needed, add some")
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        return [line.strip() for _, line in rows]
    inputs = []
    for number, line in rows:
        try:
            inputs.append(parse_input(line))
        except UsageError as error:
            raise ShoalError(f"{path} line {number}: {error}") from None
    return inputs


def parse_input(line: str) -> str:
    """The input in a line of JSON: a string, or of an object its `input`, else its `text` or `prompt`.

    Raises:
        UsageError: it is not JSON, or holds none, or one that is not Unicode.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{shorten(line, 40)} is not JSON ({error}); repair the line") from None
    if isinstance(row, dict):
        row = next((row[field] for field in FIELDS if field in row), None)
    if not isinstance(row, str) or not row.strip():
        raise UsageError(
            f"{shorten(line, 40)} has no input; a string is needed, alone or as {' or '.join(FIELDS)}"
        )
    check_unicode(row, "input")
    return row


def inputs_by_name(
    given: Sequence[str], names: Sequence[str], *, least: int = MIN_INPUTS
) -> dict[str, tuple[str, ...]]:
    """Checked inputs for every name, from `FILE` for all of them or `NAME=FILE` for each.

    A file is of inputs, as `read_inputs` takes it, or of a task (`.json`), whose training examples have them.

    Raises:
        UsageError: a name without inputs, a file for an unknown name, or fewer than `least` different inputs.
        ShoalError: as `read_inputs`.
    """
    files: dict[str, str] = {}
    for text in given:
        name, equals, file = text.partition("=")
        if not equals:
            files |= dict.fromkeys(names, text)
        elif name not in names:
            raise UsageError(f"inputs {shorten(text)}: no adapter is named {name}; use {', '.join(names)}")
        else:
            files[name] = file
    missing = next((name for name in names if name not in files), None)
    if missing is not None:
        raise UsageError(f"{missing} has no inputs; give FILE for all adapters, or {missing}=FILE")
    found = {name: check_inputs(_inputs_of(files[name])) for name in names}
    for name, inputs in found.items():
        if len(inputs) < least:
            raise UsageError(
                f"{files[name]} has {len(inputs)} different inputs, the least is {least}; add some"
            )
    return found


def _inputs_of(file: str) -> list[str]:
    """The inputs in a file, of a task file those of its training examples."""
    if file.endswith(".json"):
        return [example.input for example in load_task_json(file).train]
    return read_inputs(file)
