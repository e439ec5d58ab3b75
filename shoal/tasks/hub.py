"""Tasks from tables: data sets of the Hugging Face hub and local folders, through the library `datasets`.

The library is imported where it is used, and streams: only the rows that are read are downloaded. No code of
a data set is run, because `datasets` 4 and later cannot. Knows nothing of tokens, prompts or models.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from types import ModuleType
from typing import Any

from shoal.errors import ShoalError, UsageError, reason, shorten
from shoal.tasks.records import Example, Task, describe, divide, remove_tested

logger = logging.getLogger(__name__)


def load_hub_dataset(
    dataset: str,
    *,
    name: str,
    definition: str,
    input_column: str,
    output_column: str,
    descriptions: Sequence[str] = (),
    config: str | None = None,
    revision: str | None = None,
    train_split: str = "train",
    test_split: str | None = None,
    label_names: Sequence[str] | None = None,
    max_rows: int = 20_000,
    train_size: int | None = 600,
    test_size: int = 60,
    seed: int = 0,
) -> Task:
    """Read a data set of the Hugging Face hub, or a local folder of CSV, JSON, JSONL, Parquet or text files.

    Rows with an empty cell or the class -1 (unlabelled) are left out and counted in the log, and training
    examples whose input is among the test inputs are left out.

    Args:
        dataset: hub id (`owner/name`) or folder.
        name: the task's name.
        definition: the full instruction.
        input_column: column of strings.
        output_column: column of strings, of lists of strings, or of class numbers.
        descriptions: what a user might type; without any, the definition.
        config: configuration (subset) of the data set.
        revision: branch, tag or commit on the hub; a commit makes the task reproducible.
        train_split: where training examples are taken from.
        test_split: where test examples are taken from; without one, `train_split` is divided.
        label_names: the text for each class number; by default the data set's own names.
        max_rows: rows read from the start of each split; no more are downloaded.
        train_size: examples at most, as in `shoal.tasks.records.divide`.
        test_size: examples at most, as there.
        seed: of the hash that chooses them, as there.

    Raises:
        UsageError: there is no such column, a class has no name, a size is out of range, or a name is wrong.
        ShoalError: `datasets` is not installed, the data set cannot be reached or read, a cell is not text,
            or no row is usable.
    """
    if max_rows < 1:
        raise UsageError(f"max_rows {max_rows}: must be at least 1; give a number of rows")
    columns = (input_column, output_column)
    parts = [
        _hub_examples(
            _open_hub_split(dataset, config, revision, split), split, columns, label_names, max_rows
        )
        for split in (train_split, test_split)
        if split is not None
    ]
    if len(parts) == 1:
        train, test = divide(parts[0], train_size=train_size, test_size=test_size, seed=seed)
    else:
        test, _ = divide(parts[1], train_size=test_size, test_size=0, seed=seed)
        train, _ = divide(remove_tested(parts[0], test), train_size=train_size, test_size=0, seed=seed)
    return Task(
        name=name,
        category="",
        definition=definition,
        descriptions=describe(definition, descriptions),
        train=train,
        test=test,
        source=(dataset if revision is None else f"{dataset}@{revision}",),
    )


def _open_hub_split(dataset: str, config: str | None, revision: str | None, split: str) -> Any:
    datasets = _library()
    try:
        return datasets.load_dataset(dataset, config, revision=revision, split=split, streaming=True)
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ShoalError(
            f"data set {dataset}, split {split}: cannot be opened ({reason(error)}); check its id, config "
            "and split, and the network"
        ) from None


def _hub_examples(
    rows: Any, split: str, columns: tuple[str, str], label_names: Sequence[str] | None, max_rows: int
) -> list[Example]:
    """The usable examples among the first `max_rows` rows of a streamed split."""
    input_column, output_column = columns
    if label_names is None:
        label_names = getattr((rows.features or {}).get(output_column), "names", None)
    examples = []
    total = 0
    for row in _first_rows(rows, split, max_rows):
        total += 1
        for column in columns:
            if column not in row:
                raise UsageError(
                    f"column {shorten(column)}: split {split} has {', '.join(row)}; name one of these"
                )
        questions = _cell_texts(row[input_column], input_column)
        outputs = _cell_texts(row[output_column], output_column, label_names)
        if len(questions) == 1 and outputs:
            examples.append(Example(questions[0], outputs))
    if len(examples) < total:
        logger.info(
            "split %s: left %d of %d rows out: empty cell or no class", split, total - len(examples), total
        )
    if not examples:
        raise ShoalError(
            f"split {split}: 0 of {total} rows have an input and an output; choose another split or column"
        )
    return examples


def _first_rows(rows: Any, split: str, max_rows: int) -> Iterator[Mapping[str, Any]]:
    datasets = _library()
    try:
        yield from islice(rows, max_rows)
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ShoalError(
            f"split {split}: cannot be read ({reason(error)}); repair or re-download it"
        ) from None


def _cell_texts(value: Any, column: str, label_names: Sequence[str] | None = None) -> tuple[str, ...]:
    """The visible strings of a cell; none for an empty cell and for the class -1."""
    if value is None or value == -1:
        return ()
    if isinstance(value, int) and not isinstance(value, bool) and label_names is not None:
        if not 0 <= value < len(label_names):
            raise UsageError(
                f"column {column}: class {value} has no name; give label_names for 0 to {value} at least"
            )
        value = label_names[value]
    texts = value if isinstance(value, list) else [value]
    for text in texts:
        if not isinstance(text, str):
            raise ShoalError(
                f"column {column}: {shorten(text)} is of type {type(text).__name__}; it must be a string or, "
                "with label_names, a class number; choose another column"
            )
    return tuple(text for text in texts if text.strip())


def _library() -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise ShoalError(
            f"datasets cannot be imported ({error}) and is needed for hub data sets; pip install datasets"
        ) from None
    return datasets
