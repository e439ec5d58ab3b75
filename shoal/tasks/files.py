"""One file, one task: JSON tasks, Super-NaturalInstructions files and rows of solved examples, checked.

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
from shoal.tasks.forms import Columns, Row, understand
from shoal.tasks.records import Example, Task, describe, divide, remove_tested
from shoal.tasks.tables import MAX_BYTES, read_table, read_text
from shoal.tasks.texts import check_task_name, check_text

logger = logging.getLogger(__name__)

TASK_FIELDS = ("name", "category", "source", "license", "definition", "descriptions", "train", "test")
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
    input_field: str | Sequence[str] = (),
    output_field: str | None = None,
    ignored: Sequence[str] = (),
    train_size: int | None = None,
    test_size: int = 60,
    seed: int = 0,
    max_bytes: int = MAX_BYTES,
) -> Task:
    """Read solved examples from JSON Lines or any other file of rows that `shoal.tasks.tables` reads.

    Columns are those of a form in `shoal.tasks.forms.FORMS`, or the named ones. The examples are divided as
    `shoal.tasks.records.divide` does; rows of one input whose other columns agree become one example for
    which each output is right. Blank lines are skipped. The task is named after the file, or `name`.

    Args:
        path: of the file.
        definition: the instruction that the examples follow.
        name: of the task.
        descriptions: what a user might type; without any, the definition.
        input_field: column of the request, or several, joined.
        output_field: column of the answer.
        ignored: columns of text that are left out on purpose.
        train_size: examples at most.
        test_size: examples at most.
        seed: of the division.
        max_bytes: largest file, also unpacked.

    Raises:
        UsageError: there is no such file or column, the name is not a task name, or a size is negative.
        ShoalError: a row is malformed (its line is given), there are none, or a text would be dropped.
    """
    path = Path(path)
    inputs = (input_field,) if isinstance(input_field, str) else tuple(input_field)
    columns = Columns(inputs, output_field, tuple(ignored))
    rows = read_table(path, max_bytes=max_bytes).rows
    examples = understand(rows, columns=columns, definition=definition, source=path).examples
    train, test = divide(examples, train_size=train_size, test_size=test_size, seed=seed, join=False)
    return Task(
        name=path.name.split(".")[0] if name is None else name,
        category="",
        definition=definition,
        descriptions=describe(definition, descriptions),
        train=train,
        test=test,
        source=(path.name,),
    )


def parse_example(line: str) -> Example:
    """The example in a line of JSON, an object of any form in `shoal.tasks.forms.FORMS`.

    Raises:
        UsageError: it is none.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{shorten(line, 40)} is not JSON ({error})") from None
    if not isinstance(row, dict):
        raise UsageError(f"{shorten(row)} is not an object; one with input and output is needed")
    try:
        return understand([Row("line", row)]).examples[0]
    except ShoalError as error:
        raise UsageError(str(error)) from None


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
            examples.append(_example(row))
        except UsageError as error:
            raise UsageError(f"{part}[{index}]: {error}") from None
    return tuple(examples)


def _example(row: object) -> Example:
    """The example in an object of a task file."""
    if not isinstance(row, dict):
        raise UsageError(f"{shorten(row)} is not an object; one with input and outputs is needed")
    if not {"input", "outputs"} <= row.keys():
        raise UsageError(f"the fields are {', '.join(row)}; input and outputs are needed, rename them")
    return Example(row["input"], strings(row["outputs"], "outputs"))


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
