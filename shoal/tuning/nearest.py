"""Settings from the sentence: those that were best on the recorded tasks whose descriptions are nearest.

The record, `table.json`, is written by `benchmarks/tuning_table.py`. After Pineda Arango et al. (Quick-Tune,
arXiv 2306.03828) and arXiv 2411.01195, where transfer alone was better than tuning on the task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from torch import Tensor
from torch.nn import functional as F

from shoal.errors import ShoalError

TABLE = Path(__file__).with_name("table.json")
NEAREST = 2  # tasks


class Encoder(Protocol):
    """Reads descriptions."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """(texts, width), float32."""


@dataclass(frozen=True)
class RecordedTask:
    """A task whose settings were tried.

    Attributes:
        name: of the task.
        description: its first one.
        losses: mean loss on selection and the settings, one for each that was tried, of the whole length.
    """

    name: str
    description: str
    losses: tuple[tuple[float, Mapping[str, Any]], ...]

    @property
    def best(self) -> Mapping[str, Any]:
        """The settings with the least loss."""
        return min(self.losses, key=lambda row: row[0])[1]


def read_table(path: Path = TABLE) -> list[RecordedTask]:
    """The tasks of a record with what was tried on them; runs that diverged are left out.

    Raises:
        ShoalError: it is damaged.
    """
    try:
        record = json.loads(path.read_text("utf-8"))
        end = f"end {record['lengths'][-1]}"
        tried: dict[str, list[tuple[float, Mapping[str, Any]]]] = {
            name: [] for name in record["descriptions"]
        }
        for cell in record["cells"]:
            if cell["seed"] == 0 and end in cell["losses"]:
                loss = fmean(cell["losses"][end]["selection"])
                tried[cell["task"]].append((loss, _as_settings(cell["setting"])))
        return [
            RecordedTask(name, record["descriptions"][name], tuple(rows))
            for name, rows in tried.items()
            if rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShoalError(f"{path} is damaged ({type(error).__name__}); install shoal again") from None


def _as_settings(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Lists as the tuples that settings have."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}


def nearest_settings(
    description: str, encoder: Encoder, tasks: Sequence[RecordedTask], count: int = NEAREST
) -> list[Mapping[str, Any]]:
    """The best known settings of the nearest tasks, nearest first, each once."""
    if not tasks:
        return []
    vectors = F.normalize(encoder.encode([description, *(task.description for task in tasks)]), dim=-1)
    likeness = (vectors[1:] @ vectors[0]).tolist()
    order = sorted(range(len(tasks)), key=lambda i: -likeness[i])
    found: list[Mapping[str, Any]] = []
    for place in order[:count]:
        if tasks[place].best not in found:
            found.append(tasks[place].best)
    return found
