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

from shoal.errors import ShoalError, UsageError, reason
from shoal.tasks.forms import Columns, Row, understand
from shoal.tasks.records import Example, Task, describe, divide, remove_tested

logger = logging.getLogger(__name__)


def load_hub_dataset(
    dataset: str,
    *,
    name: str,
    definition: str,
    input_column: str | Sequence[str] = (),
    output_column: str | None = None,
    ignored: Sequence[str] = (),
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
        input_column: column of strings, or several, joined; none for those of a form (`shoal.tasks.forms`).
        output_column: column of strings, of lists of strings, or of class numbers; None for that of a form.
        ignored: columns of text that are left out on purpose.
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
            a text would be dropped, or no row is usable.
    """
    if max_rows < 1:
        raise UsageError(f"max_rows {max_rows}: must be at least 1; give a number of rows")
    inputs = (input_column,) if isinstance(input_column, str) else tuple(input_column)
    columns = Columns(inputs, output_column, tuple(ignored))
    parts = []
    for split in (train_split, test_split):
        if split is not None:
            rows = _named_rows(
                _open_split(dataset, config, revision, split), split, columns, label_names, max_rows
            )
            parts.append(_examples(rows, split, columns, definition))
    if len(parts) == 1:
        train, test = divide(parts[0], train_size=train_size, test_size=test_size, seed=seed, join=False)
    else:
        test, _ = divide(parts[1], train_size=test_size, test_size=0, seed=seed, join=False)
        train, _ = divide(
            remove_tested(parts[0], test), train_size=train_size, test_size=0, seed=seed, join=False
        )
    return Task(
        name=name,
        category="",
        definition=definition,
        descriptions=describe(definition, descriptions),
        train=train,
        test=test,
        source=(dataset if revision is None else f"{dataset}@{revision}",),
    )


def _open_split(dataset: str, config: str | None, revision: str | None, split: str) -> Any:
    """A streamed split of a data set.

    Raises:
        ShoalError: `datasets` is not installed, or the data set cannot be opened.
    """
    datasets = _library()
    try:
        return datasets.load_dataset(dataset, config, revision=revision, split=split, streaming=True)
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ShoalError(
            f"data set {dataset}, split {split}: cannot be opened ({reason(error)}); check its "
            "id, config and split, and the network"
        ) from None


def _split_rows(rows: Any, split: str, max_rows: int | None) -> Iterator[Mapping[str, Any]]:
    """The first rows of a streamed split (None: all); ShoalError where they cannot be read."""
    datasets = _library()
    try:
        yield from islice(rows, max_rows)
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ShoalError(
            f"split {split}: cannot be read ({reason(error)}); repair or re-download it"
        ) from None


def _named_rows(
    rows: Any, split: str, columns: Columns, label_names: Sequence[str] | None, max_rows: int
) -> list[Row]:
    """Rows with the names of classes in place of their numbers, and nothing in place of -1."""
    names = {name: getattr(feature, "names", None) for name, feature in (rows.features or {}).items()}
    if label_names is not None:
        names |= {name: label_names for name in ([columns.output] if columns.output else names)}
    found = []
    for number, row in enumerate(_split_rows(rows, split, max_rows), start=1):
        values = {name: _class_name(value, name, names.get(name)) for name, value in row.items()}
        found.append(Row(f"row {number}", values))
    return found


def _examples(rows: Sequence[Row], split: str, columns: Columns, definition: str) -> tuple[Example, ...]:
    """The usable examples of a split."""
    if not rows:
        raise ShoalError(f"split {split}: 0 rows; choose another split")
    known = understand(rows, columns=columns, definition=definition, source=f"split {split}", skip_empty=True)
    if known.skipped:
        logger.info(
            "split %s: left %d of %d rows out: empty cell or no class", split, known.skipped, known.rows
        )
    if not known.examples:
        raise ShoalError(
            f"split {split}: 0 of {known.rows} rows have an input and an output; choose another split or "
            "column"
        )
    return known.examples


def _class_name(value: Any, column: str, names: Sequence[str] | None) -> Any:
    if names is None or not isinstance(value, int) or isinstance(value, bool):
        return value
    if value == -1:
        return None
    if not 0 <= value < len(names):
        raise UsageError(
            f"column {column}: class {value} has no name; give label_names for 0 to {value} at least"
        )
    return names[value]


def _library() -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise ShoalError(
            f"datasets cannot be imported ({error}) and is needed for hub data sets; pip install datasets"
        ) from None
    return datasets
