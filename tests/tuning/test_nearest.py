"""Settings of the nearest recorded tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shoal.errors import ShoalError
from shoal.tuning.nearest import RecordedTask, nearest_settings, read_table

FAST, SLOW = {"learning_rate": 4e-3}, {"learning_rate": 1e-3}


class Words:
    """A vector that counts three words."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[1.0 * text.count(word) for word in ("sort", "name", "word")] for text in texts])


def recorded(name: str, description: str, best: dict[str, float]) -> RecordedTask:
    return RecordedTask(name, description, ((0.5, best), (0.9, {"learning_rate": 1.0})))


def test_the_nearest_tasks_come_first_and_their_settings_once() -> None:
    tasks = [recorded("a", "sort words", FAST), recorded("b", "name", SLOW), recorded("c", "sort", FAST)]
    assert nearest_settings("sort these", Words(), tasks) == [FAST]
    assert nearest_settings("name a word", Words(), tasks) == [SLOW, FAST]
    assert nearest_settings("name", Words(), []) == []


def test_a_record_is_read(tmp_path: Path) -> None:
    def cell(task: str, setting: dict[str, float], loss: float, seed: int = 0) -> dict[str, object]:
        return {
            "task": task,
            "setting": setting,
            "seed": seed,
            "losses": {"end 24": {"selection": [loss, loss]}},
        }

    cells = [cell("a", SLOW, 0.9), cell("a", FAST, 0.4), cell("a", SLOW, 0.1, seed=1)]
    cells.append({"task": "b", "setting": FAST, "seed": 0, "losses": {}})  # diverged
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"lengths": [12, 24], "descriptions": {"a": "A.", "b": "B."}, "cells": cells}))
    (task,) = read_table(path)
    assert (task.name, task.description, task.best) == ("a", "A.", FAST)


def test_a_damaged_record_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text("{}")
    with pytest.raises(ShoalError, match=r"table.json is damaged \(KeyError\); install shoal again"):
        read_table(tmp_path / "table.json")
