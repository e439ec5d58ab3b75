"""Studies: what is tried first, what a budget buys, and that a kill at any moment changes nothing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from shoal.errors import ShoalError, UsageError
from shoal.tuning.confirmation import Verdict, confirm
from shoal.tuning.plan import StudyPlan
from shoal.tuning.study import Study
from tests.tuning.toy import DEFAULTS, ToyWorkload, toy_space

STORAGES: dict[Path, InMemoryStorage] = {}  # one for every folder, as a file would be


class Killed(Exception):
    """Stands for the end of a process."""


def begun(folder: Path, workload: ToyWorkload | None = None, space: Any = None, **plan: Any) -> Study:
    return Study(
        workload or ToyWorkload(),
        space or toy_space(),
        StudyPlan(**{"name": "toy", "trials": 12, **plan}),
        STORAGES.setdefault(folder, InMemoryStorage()),
        folder,
        code="1",
    )


def finished(folder: Path, workload: ToyWorkload | None = None, **plan: Any) -> tuple[Study, Verdict]:
    study = begun(folder, workload, **plan)
    study.search()
    return study, confirm(study)


def rows_of(study: Study) -> list[tuple[Any, ...]]:
    return [
        (t.number, t.state.name, t.params, t.value, dict(t.intermediate_values), t.user_attrs["origin"])
        for t in study.optuna.trials
        if t.state != TrialState.WAITING
    ]


def test_a_study_finds_what_is_better_and_says_so(tmp_path: Path) -> None:
    study, verdict = finished(tmp_path)
    assert verdict.recommended is not None and 1.5e-3 < verdict.recommended["learning_rate"] < 2e-2
    best = verdict.candidates[0]
    assert best.gain.low is not None and best.gain.low > 0 and best.gain.mean > 0.2
    assert "recommended: learning_rate" in str(verdict) and "optimism" in str(verdict)
    assert sum(verdict.trials.values()) >= 12 and verdict.tokens > 0


def test_the_defaults_are_first_then_the_settings_that_were_given(tmp_path: Path) -> None:
    near = ({"learning_rate": 5e-3}, {"learning_rate": 5e-3}, {"learning_rate": 0.9})
    study = begun(tmp_path, first=near, trials=3)
    study.search()
    rows = study.optuna.trials
    assert rows[0].params == DEFAULTS and rows[0].user_attrs["origin"] == "defaults"
    assert rows[1].params == {**DEFAULTS, "learning_rate": 5e-3}
    assert [row.user_attrs["origin"] for row in rows[1:3]] == ["nearest task", "sampler"]


def test_defaults_outside_the_space_are_tried_all_the_same(tmp_path: Path) -> None:
    study = begun(tmp_path, space=toy_space({"learning_rate": {"low": 2e-3, "high": 1e-2}}), trials=3)
    study.search()
    first = study.optuna.trials[0]
    assert first.params == {} and first.user_attrs["settings"] == DEFAULTS and first.value is not None


def test_the_overhead_of_trials_and_of_confirmation_is_told(tmp_path: Path) -> None:
    study = begun(tmp_path, trials=4)
    before = study.runs.clock()
    study.search()
    verdict = confirm(study)
    noted = sum(row.user_attrs["overhead"] for row in study.optuna.trials if row.user_attrs)
    assert 0 < noted < verdict.overhead < study.runs.clock() - before
    assert "the tuner itself" in str(verdict)


def test_where_settings_do_not_matter_the_defaults_stay(tmp_path: Path) -> None:
    for seed in range(3):
        _, verdict = finished(tmp_path / str(seed), ToyWorkload(noise=0.1, slope=0), seed=seed, trials=6)
        assert verdict.recommended is None
    assert str(verdict).endswith("the defaults stay")


def test_losses_that_are_not_finite_are_pruned_trials(tmp_path: Path) -> None:
    study = begun(tmp_path, space=toy_space({"learning_rate": {"low": 4e-2, "high": 1e-1}}), trials=8)
    study.search()
    states = {t.state for t in study.optuna.trials}
    assert states == {TrialState.COMPLETE, TrialState.PRUNED}
    diverged = [t for t in study.optuna.trials if t.state == TrialState.PRUNED]
    assert all("is not finite" in t.user_attrs["diverged"] for t in diverged)


def test_a_study_of_failures_says_why(tmp_path: Path) -> None:
    def fail(until: int) -> None:
        raise ShoalError("the disk is full")

    study = begun(tmp_path, ToyWorkload(before=fail), trials=3)
    study.search()
    with pytest.raises(ShoalError, match="each of the 3 trials failed or diverged; .*the disk is full"):
        confirm(study)


def test_a_budget_becomes_tokens_and_is_kept(tmp_path: Path) -> None:
    study, verdict = finished(tmp_path, budget=60.0, trials=None)  # the toy reads 1000 tokens a second
    assert study.budget_tokens() == 60_000
    assert 30_000 < verdict.tokens <= 60_000


def test_a_budget_shorter_than_a_trial_is_refused_early(tmp_path: Path) -> None:
    workload = ToyWorkload()
    with pytest.raises(UsageError, match="--budget 2 s is shorter than one trial of about 4 s"):
        begun(tmp_path, workload, budget=2.0, trials=None).search()
    assert workload.trained == [(0, 8)]


@pytest.mark.parametrize(
    ("change", "named"), [("space", "space"), ("data", "data"), ("code", "code"), ("seed", "seed")]
)
def test_a_study_of_something_else_is_refused(change: str, named: str, tmp_path: Path) -> None:
    begun(tmp_path)
    space = toy_space({"learning_rate": [1e-3, 2e-3]}) if change == "space" else toy_space()
    with pytest.raises(UsageError, match=f"the study toy is of another {named}"):
        Study(
            ToyWorkload(noise=0.5 if change == "data" else 0.02),
            space,
            StudyPlan("toy", trials=3, seed=int(change == "seed")),
            STORAGES[tmp_path],
            tmp_path,
            code="2" if change == "code" else "1",
        )


def test_a_study_needs_an_end_and_names_that_are_known(tmp_path: Path) -> None:
    for plan, message in (
        ({"trials": None}, "needs an end; give --budget"),
        ({"sampler": "magic"}, "--sampler magic: choose from tpe, random"),
        ({"pruner": "magic"}, "--pruner magic: choose from none"),
    ):
        with pytest.raises(UsageError, match=message):
            begun(tmp_path, **plan)


@pytest.mark.parametrize("sampler", ["tpe", "qmc"])
def test_twenty_kills_change_nothing(sampler: str, tmp_path: Path) -> None:
    workload = ToyWorkload()
    whole, verdict = finished(tmp_path / "whole", workload, sampler=sampler)
    chance, kills, trained = random.Random(sampler), 0, []
    while True:
        left = [chance.randint(1, 6)] if kills < 20 else [10_000]

        def die(until: int, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise Killed

        parts = ToyWorkload(before=die)
        try:
            study, resumed = finished(tmp_path / "parts", parts, sampler=sampler)
            break
        except Killed:
            kills += 1
        finally:
            trained += parts.trained
    assert kills >= 10
    assert rows_of(study) == rows_of(whole)
    assert resumed.recommended == verdict.recommended and resumed.candidates == verdict.candidates
    assert sorted(trained) == sorted(workload.trained)  # no stretch twice


def test_longer_runs_go_on_from_shorter_ones(tmp_path: Path) -> None:
    workload = ToyWorkload()
    study, _ = finished(tmp_path, workload, trials=20, pruner="none")
    promoted = [t for t in study.optuna.trials if t.user_attrs.get("origin") == "promoted"]
    assert promoted
    for trial in promoted:
        has = trial.user_attrs["settings"]["steps"]
        assert 0 < trial.user_attrs["tokens"] < 100 * has  # its beginning was there


def test_pruned_trials_keep_their_mean_and_stop_after_a_look(tmp_path: Path) -> None:
    study = begun(tmp_path, trials=30, sampler="random")
    study.search()
    pruned = [t for t in study.optuna.trials if t.state == TrialState.PRUNED and t.intermediate_values]
    assert pruned
    for trial in pruned:
        assert trial.value == trial.user_attrs["pruned_mean"]
        assert max(trial.intermediate_values) < trial.user_attrs["settings"]["steps"]
