"""Measurements of one method on one task, and the folder that keeps finished ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shoal.errors import ShoalError, UsageError
from shoal.evaluation.benchmark.config import BenchmarkConfig
from shoal.evaluation.environment import commit
from shoal.evaluation.reports import Answer
from shoal.file_formats import read_json
from shoal.files import check_writable, write_file

IDENTITY_FILE, CELLS = "run.json", "cells"


@dataclass(frozen=True)
class Cell:
    """One method on one task.

    Attributes:
        method: of the table of methods.
        task: its name.
        failure: why nothing was measured; the other fields are then empty.
        note: what a reader must know of the adaptation.
        metrics: name of `shoal.evaluation.grading.CURVES` -> value, of those that belong to one cell.
        answers: to the test examples, scored.
        latencies: seconds of each request that was timed singly.
        losses: of every training step, in nats per token.
        base_accuracy: on general questions after adapting, in [0, 1].
        base_perplexity: of their right choices.
        target_accuracy: share of answers whose first line is right.
        seconds: that the whole cell took.
    """

    method: str
    task: str
    failure: str | None = None
    note: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    answers: tuple[Answer, ...] = ()
    latencies: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    base_accuracy: float | None = None
    base_perplexity: float | None = None
    target_accuracy: float | None = None
    seconds: float = 0.0

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Cell:
        """The cell that `asdict` made a record of.

        Raises:
            ShoalError: it is something else.
        """
        try:
            answers = tuple(Answer(**{**a, "references": tuple(a["references"])}) for a in record["answers"])
            lists = {name: tuple(record[name]) for name in ("latencies", "losses")}
            return cls(**{**record, "answers": answers, **lists})
        except (KeyError, TypeError, AttributeError) as error:
            raise ShoalError(f"this is no cell of a benchmark ({error!r}); delete its file") from None


class CellFolder:
    """The finished cells of one run; each is written when it is finished, whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def claim(self, config: BenchmarkConfig) -> None:
        """Make the folder that of this run, or see that it is.

        Raises:
            UsageError: it is another run's: other settings, or another commit.
            ShoalError: it cannot be written.
        """
        path = self.folder / IDENTITY_FILE
        wanted = config.model_dump(mode="json")
        identity: dict[str, Any] = {"settings": wanted, "commit": commit()}
        if not path.is_file():
            check_writable(self.folder)
            write_file(path, json.dumps(identity, indent=1) + "\n")
            return
        held = read_json(path)
        settings = held.get("settings") if isinstance(held.get("settings"), dict) else {}
        other = [n for n, value in wanted.items() if (settings or {}).get(n) != value]
        other += ["commit"] if held.get("commit") != identity["commit"] else []
        if other:
            raise UsageError(
                f"{self.folder} holds a benchmark with other {', '.join(other)}; name another directory"
            )
        check_writable(path)

    def read(self, method: str, task: str) -> Cell | None:
        """The kept measurement of a method on a task; None where there is none."""
        path = self._path(method, task)
        return Cell.from_json(read_json(path)) if path.is_file() else None

    def is_finished(self, method: str, task: str) -> bool:
        """True where it was measured; what failed is tried again."""
        cell = self.read(method, task)
        return cell is not None and cell.failure is None

    def write(self, cell: Cell) -> None:
        """Keep a finished cell.

        Raises:
            ShoalError: the disk is full, or the folder cannot be written.
        """
        write_file(self._path(cell.method, cell.task), json.dumps(asdict(cell)) + "\n")

    def _path(self, method: str, task: str) -> Path:
        digest = hashlib.sha256(task.encode()).hexdigest()[:8]
        return self.folder / CELLS / f"{method}-{digest}.json"
