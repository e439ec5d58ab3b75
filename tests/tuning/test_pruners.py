"""Pruners: the same word however often they are asked, Hyperband's brackets, Wilcoxon's test by example."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import Trial, TrialState

from shoal.tuning.pruners import begin_pruning, ends_early, is_worse, pruner_of
from tests.tuning.test_study import begun, rows_of


@pytest.mark.parametrize("pruner", ["hyperband", "wilcoxon"])
def test_it_ends_trials_early_and_tells_their_mean(pruner: str, tmp_path: Path) -> None:
    study = begun(tmp_path, trials=14, sampler="random", pruner=pruner)
    study.search()
    pruned = [t for t in study.optuna.trials if t.state == TrialState.PRUNED and t.intermediate_values]
    assert pruned and all(t.value == t.user_attrs["pruned_mean"] for t in pruned)
    assert any(t.state == TrialState.COMPLETE and t.number > 3 for t in study.optuna.trials)


def test_a_study_of_hyperband_depends_on_its_name_alone(tmp_path: Path) -> None:
    first, same, other = (
        begun(tmp_path / str(number), trials=8, pruner="hyperband", name=name)
        for number, name in enumerate(("a", "a", "b"))
    )
    for study in (first, same, other):
        study.search()
    assert rows_of(first) == rows_of(same) and rows_of(first) != rows_of(other)


def test_a_bracket_is_known_before_anything_was_pruned() -> None:
    study = optuna.create_study(study_name="a", pruner=pruner_of("hyperband", longest=40))
    begin_pruning(study)
    assert len(study.pruner._pruners) == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize("pruner", ["median", "halving", "hyperband"])
def test_asked_again_after_a_kill_it_says_the_same(pruner: str) -> None:
    study = optuna.create_study(study_name="a", pruner=pruner_of(pruner, longest=40))
    begin_pruning(study)
    ended = 0
    for number in range(16):  # each is worse than the one before
        trial = study.ask()
        trial.report(number, 20)
        ends = ends_early(study, trial, 20)
        # Its rungs were noted before the kill.
        assert ends_early(study, Trial(study, trial._trial_id), 20) == ends
        ended += ends
        study.tell(trial, number)
    assert ended


def test_a_run_is_worse_where_its_examples_are() -> None:
    best = [1.0, 2.0, 3.0, 1.5, 2.5, 0.5, 1.2, 2.2]
    assert is_worse([loss + 0.1 for loss in best], best)
    assert not is_worse([loss - 0.1 for loss in best], best)
    assert not is_worse([loss + 0.1 * (-1) ** i for i, loss in enumerate(best)], best)
