"""One file, one task: JSON tasks, Super-NaturalInstructions files and JSONL, read and checked.

A source without parts of its own is divided by a hash of the input: the same file gives the same division on
every machine, and an input never falls on both sides.

Super-NaturalInstructions: Wang et al. 2022, arXiv:2204.07705, section 3. Knows nothing of tokens, prompts or
models.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal.errors import ShoalError, UsageError, shorten
from shoal.tasks.records import (
    Example,
    Task,
    check_task_name,
    check_text,
    describe,
    divide,
    remove_tested,
)

logger = logging.getLogger(__name__)

TASK_FIELDS = ("name", "category", "source", "license", "definition", "descriptions", "train", "test")
OUTPUT_FIELDS = ("output", "outputs")  # of JSONL: one of them
SUPER_NI_FIELDS = ("Definition", "Categories", "Source", "Instances")


def load_task_json(path: str | Path) -> Task:
    """Read one task, an object with `TASK_FIELDS`; an example is `{"input": str, "outputs": [str, ...]}`.

    Training examples whose input is among the test inputs are left out and counted in the log.

    Raises:
        UsageError: there is no such file.
        ShoalError: it is not JSON, a field is missing, or a value is of the wrong type, empty or blank.
    """
    path = Path(path)
    record = read_object(path, TASK_FIELDS)
    try:
        train, test = (_examples(record, part) for part in ("train", "test"))
        return Task(
            name=check_task_name(record["name"]),
            category=_string(record["category"], "category"),
            definition=record["definition"],
            descriptions=strings(record["descriptions"], "descriptions"),
            train=_without_tested(train, test, record["name"]),
            test=test,
            source=strings(record["source"], "source"),
            license=strings(record["license"], "license"),
        )
    except UsageError as error:
        raise ShoalError(f"{path}: {error}") from None


def load_super_natural_instructions(
    path: str | Path,
    *,
    descriptions: Sequence[str] = (),
    train_size: int | None = 600,
    test_size: int = 60,
    seed: int = 0,
) -> Task:
    """Read a task file of the public Super-NaturalInstructions repository, named after the file.

    Its instances are divided as `shoal.tasks.records.divide` does. Instances with a blank input or no visible
    output are left out and counted in the log. Without `descriptions` the definition is the only one. The
    positive and negative examples of the file are not read.

    Raises:
        UsageError: there is no such file, the file's name is not a task name, or a size is negative.
        ShoalError: it is malformed, or no instance is usable.
    """
    path = Path(path)
    name = check_task_name(path.stem)
    record = read_object(path, SUPER_NI_FIELDS)
    try:
        definition = check_text("\n".join(strings(record["Definition"], "Definition")), "Definition")
        categories = strings(record["Categories"], "Categories")
        source = strings(record["Source"], "Source") + strings(record.get("URL", []), "URL")
        license_names = strings(record.get("Instance License", []), "Instance License")
        examples = _instances(record["Instances"], name)
    except UsageError as error:
        raise ShoalError(f"{path}: {error}") from None
    train, test = divide(examples, train_size=train_size, test_size=test_size, seed=seed)
    return Task(
        name=name,
        category=categories[0] if categories else "",
        definition=definition,
        descriptions=describe(definition, descriptions),
        train=train,
        test=test,
        source=source,
        license=license_names,
    )


def load_jsonl(
    path: str | Path,
    *,
    definition: str,
    name: str | None = None,
    descriptions: Sequence[str] = (),
    input_field: str = "input",
    output_field: str | None = None,
    train_size: int | None = None,
    test_size: int = 60,
    seed: int = 0,
) -> Task:
    """Read examples from a file with one JSON object a line, such as `{"input": "2 + 2", "output": "4"}`.

    The outputs are a string or a list of strings in `output_field`, by default in `output` or in `outputs`.
    The examples are divided as `shoal.tasks.records.divide` does; lines of one input become one example for
    which each output is right. Blank lines are skipped. The task is named after the file, or `name`.

    Raises:
        UsageError: there is no such file, the name is not a task name, or a size is negative.
        ShoalError: a line is malformed (its number is given), or there are none.
    """
    path = Path(path)
    fields = OUTPUT_FIELDS if output_field is None else (output_field,)
    examples = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            examples.append(parse_example(line, input_field, fields))
        except UsageError as error:
            raise ShoalError(f"{path} line {number}: {error}; repair the line") from None
    if not examples:
        raise ShoalError(f"{path}: 0 examples; at least 1 line is needed, add one")
    train, test = divide(examples, train_size=train_size, test_size=test_size, seed=seed)
    return Task(
        name=path.stem if name is None else name,
        category="",
        definition=definition,
        descriptions=describe(definition, descriptions),
        train=train,
        test=test,
        source=(path.name,),
    )


def parse_example(
    line: str, input_field: str = "input", output_fields: Sequence[str] = OUTPUT_FIELDS
) -> Example:
    """The example in a line of JSON: an object with an input, and one or a list of outputs.

    Raises:
        UsageError: it is none.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{shorten(line, 40)} is not JSON ({error})") from None
    return _example(row, input_field, output_fields)


def _without_tested(train: Iterable[Example], test: Iterable[Example], name: str) -> tuple[Example, ...]:
    train = tuple(train)
    kept = remove_tested(train, test)
    if len(kept) < len(train):
        logger.info(
            "task %s: took %d train examples out: their inputs are in test", name, len(train) - len(kept)
        )
    return kept


def read_object(path: Path, fields: Sequence[str]) -> Mapping[str, Any]:
    """The JSON object in a file; it has at least `fields`.

    Raises:
        UsageError: there is no such file.
        ShoalError: it cannot be read, is not a JSON object, or a field is missing.
    """
    text = read_text(path)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ShoalError(f"{path}: not valid JSON ({error}); repair the file") from None
    if not isinstance(record, dict):
        raise ShoalError(
            f"{path}: holds a JSON {type(record).__name__}; an object with {', '.join(fields)} is needed"
        )
    missing = [field for field in fields if field not in record]
    if missing:
        raise ShoalError(f"{path}: the field {missing[0]} is missing; {', '.join(fields)} are needed, add it")
    return record


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        UsageError: there is no such file.
        ShoalError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise UsageError(f"{path}: not a file; check the path") from None
    except UnicodeDecodeError as error:
        raise ShoalError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise ShoalError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None


def _string(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise UsageError(
            f"{field}: {shorten(value)} is of type {type(value).__name__}; it must be a string, quote it"
        )
    return value


def strings(value: object, field: str) -> tuple[str, ...]:
    """A string, or a list of strings, as a tuple.

    Raises:
        UsageError: it is neither.
    """
    values = value if isinstance(value, list) else [value]
    return tuple(_string(each, f"{field}[{index}]") for index, each in enumerate(values))


def _examples(record: Mapping[str, Any], part: str) -> tuple[Example, ...]:
    rows = record[part]
    if not isinstance(rows, list):
        raise UsageError(
            f"{part}: {shorten(rows)} is of type {type(rows).__name__}; it must be a list of examples"
        )
    examples = []
    for index, row in enumerate(rows):
        try:
            examples.append(_example(row, "input", ("outputs",)))
        except UsageError as error:
            raise UsageError(f"{part}[{index}]: {error}") from None
    return tuple(examples)


def _example(row: object, input_field: str, output_fields: Sequence[str]) -> Example:
    """The example in a JSON object that has exactly one of `output_fields`."""
    if not isinstance(row, dict):
        raise UsageError(
            f"{shorten(row)} is not an object; one with {input_field} and {output_fields[0]} is needed"
        )
    given = [field for field in output_fields if field in row]
    if input_field not in row or len(given) != 1:
        raise UsageError(
            f"the fields are {', '.join(row)}; {input_field} and one of {', '.join(output_fields)} are "
            "needed, rename them"
        )
    return Example(row[input_field], strings(row[given[0]], given[0]))


def _instances(rows: object, name: str) -> list[Example]:
    if not isinstance(rows, list):
        raise UsageError(
            f"Instances: {shorten(rows)} is of type {type(rows).__name__}; it must be a list of instances"
        )
    examples = []
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or not {"input", "output"} <= row.keys():
            raise UsageError(
                f"Instances[{index}]: {shorten(row)} is not an object with input and output; repair it"
            )
        question = _string(row["input"], f"Instances[{index}].input")
        outputs = tuple(text for text in strings(row["output"], f"Instances[{index}].output") if text.strip())
        if question.strip() and outputs:
            examples.append(Example(question, outputs))
    if len(examples) < len(rows):
        logger.info("task %s: left %d instances out: blank input or output", name, len(rows) - len(examples))
    if not examples:
        raise UsageError(
            f"Instances: 0 of {len(rows)} have an input and an output; at least 1 is needed, add some"
        )
    return examples
