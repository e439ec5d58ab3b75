"""A parent that stands for the whole: the search starts from it where it keeps more than even weights."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from shoal.adapters.lora import LoRA
from shoal.errors import UsageError
from shoal.merging.config import MergeSearchConfig
from shoal.merging.search import FoundMerge, evolve_merge
from shoal.models.backbone import Backbone


@pytest.mark.parametrize(("strength", "started"), [(1.0, "whole"), (-1.0, None)])
def test_a_search_starts_from_a_prior_that_keeps_more(
    strength: float,
    started: str | None,
    toy: ModuleType,
    sharp: Backbone,
    parents: dict[str, LoRA],
    tmp_path: Path,
) -> None:
    whole = parents["upper"] * strength
    known = {"whole": whole, "part": parents["upper"] * 0.1, "other": parents["upper"] * 0.05}
    found = searched(known, [toy.toy_task("upper")], sharp, tmp_path, ["whole"])
    assert found.merged.report["started_from"] == started
    said = "started from whole" if started else "started from even weights"
    assert any(said in note for note in found.merged.card.notes)
    weights = {name: own[0] for name, own in found.merged.report["weights"].items()}
    assert (weights["whole"] > 3 * abs(weights["part"])) == (started is not None)


def test_a_prior_is_a_parent(
    toy: ModuleType, sharp: Backbone, parents: dict[str, LoRA], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="the prior 'nobody' is no parent; choose from upper, double"):
        searched(parents, [toy.toy_task("upper")], sharp, tmp_path, ["nobody"])


def searched(
    parents: dict[str, LoRA], tasks: Any, sharp: Backbone, folder: Path, prior: list[str]
) -> FoundMerge:
    config = MergeSearchConfig(steps=1, batch_size=4, population=4, layer_groups=1, sigma=0.02)
    return evolve_merge(sharp, parents, tasks, folder, config, prior=prior, show_progress=False)
