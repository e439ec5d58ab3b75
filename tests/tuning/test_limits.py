"""Limits that settings must keep, and the front of two aims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from shoal.errors import UsageError
from shoal.tuning.confirmation import confirm
from shoal.tuning.limits import Limit, broken, read_limit
from shoal.tuning.workloads import Division, Observed
from tests.tuning.test_study import begun
from tests.tuning.toy import ToyWorkload


class Heavy(ToyWorkload):
    """A toy whose runs have as many bytes as steps; the fewer, the worse."""

    def train(self, settings: Mapping[str, Any], division: Division, folder: Path, until: int) -> Observed:
        observed = super().train(settings, division, folder, until)
        return replace(observed, measured={"bytes": float(until)})


def test_limits_are_read_as_people_write_them() -> None:
    known = ("adapter_rank", "bytes", "general_kept")
    assert read_limit("adapter-rank <= 16", known) == Limit("adapter_rank", 16)
    assert read_limit("general_kept>=0.95", known) == Limit("general_kept", 0.95, at_least=True)
    limits = [Limit("bytes", 10), Limit("general_kept", 0.9, at_least=True)]
    assert broken(limits, {"bytes": 11, "general_kept": 0.95}) == limits[:1]
    assert broken(limits, {"general_kept": 0.5, "bytes": None}) == limits[1:]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("adapter_rank", "write NAME<=NUMBER"),
        ("adapter_rank<16", "write NAME<=NUMBER"),
        ("bytes<=many", "write NAME<=NUMBER"),
        ("test<=1", "test has no limit; choose from adapter_rank, bytes"),
    ],
)
def test_bad_limits_are_one_line(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_limit(text, ("adapter_rank", "bytes"))


def test_settings_beyond_a_limit_are_not_trained(tmp_path: Path) -> None:
    workload = ToyWorkload()
    study = begun(tmp_path, workload, limits=(Limit("learning_rate", 2e-3),), sampler="random")
    study.search()
    beyond = [t for t in study.optuna.trials if t.params.get("learning_rate", 0) > 2e-3]
    assert beyond and all(t.state == TrialState.PRUNED and t.user_attrs["tokens"] == 0 for t in beyond)
    assert all(t.user_attrs["over_limits"] == ["learning_rate<=0.002"] for t in beyond)
    assert all(row.user_attrs["settings"]["learning_rate"] <= 2e-3 for row in study.best(9))


def test_what_a_run_shows_can_be_limited(tmp_path: Path) -> None:
    study = begun(tmp_path, Heavy(), limits=(Limit("bytes", 40),), trials=8)
    study.search()
    assert confirm(study).candidates
    with pytest.raises(UsageError, match="the defaults break the limit bytes<=30: theirs is 40"):
        begun(tmp_path / "other", Heavy(), limits=(Limit("bytes", 30),)).search()


def test_a_limit_at_least_leaves_only_what_keeps_it(tmp_path: Path) -> None:
    study = begun(tmp_path, Heavy(), limits=(Limit("bytes", 20, at_least=True),), trials=6, pruner="none")
    study.search()
    assert any("over_limits" in t.user_attrs for t in study.optuna.trials)
    assert all(row.user_attrs["settings"]["steps"] >= 20 for row in study.best(9))


def test_two_aims_give_a_front(tmp_path: Path) -> None:
    study = begun(tmp_path, Heavy(), second="bytes", pruner="none", trials=8)
    study.search()
    front = confirm(study).front
    assert len(front) > 1
    for row, after in zip(front, front[1:], strict=False):
        assert row["loss"] < after["loss"] and row["bytes"] > after["bytes"]


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"second": "test", "pruner": "none"}, "second aim test: choose from bytes, seconds"),
        ({"second": "bytes"}, "pruner median compares one aim"),
        ({"second": "bytes", "pruner": "none", "sampler": "cmaes"}, "sampler cmaes has one aim"),
    ],
)
def test_two_aims_need_a_sampler_and_no_pruner(plan: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        begun(tmp_path, **plan)
