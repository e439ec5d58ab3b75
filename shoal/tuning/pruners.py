"""Which trials end early: Optuna's pruners by name, asked so that a kill between two writes changes nothing.

Hyperband's bracket of a trial is a hash of the study's name and the trial's number, so a study has a name.
Wilcoxon's test compares example by example, at one look, with the best trial so far.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import optuna
from optuna import pruners
from optuna.trial import Trial, TrialState, create_trial

from shoal.errors import UsageError

WARM_PRUNING = 4  # trials that the median does not end
SHORTEST, REDUCTION = 8, 2  # of Hyperband: a run's length over that of its first rung; see its paper for both
WILCOXON, P_VALUE, LEAST_EXAMPLES = "wilcoxon", 0.05, 4
_RUNG, _ASKED = "completed_rung_", "rungs_before"

PRUNERS: Mapping[str, Callable[[int], pruners.BasePruner]] = {  # by the steps of the longest run
    "none": lambda longest: pruners.NopPruner(),
    "median": lambda longest: pruners.MedianPruner(n_startup_trials=WARM_PRUNING),
    "halving": lambda longest: pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION),
    "hyperband": lambda longest: pruners.HyperbandPruner(
        min_resource=max(1, longest // SHORTEST), max_resource=longest, reduction_factor=REDUCTION
    ),
    WILCOXON: lambda longest: pruners.NopPruner(),  # see `is_worse`
}


def pruner_of(name: str, longest: int = 1) -> pruners.BasePruner:
    """The pruner of a study whose longest run has so many steps.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in PRUNERS:
        raise UsageError(f"--pruner {name}: choose from {', '.join(PRUNERS)}")
    return PRUNERS[name](longest)


def begin_pruning(study: optuna.Study) -> None:
    """Let Hyperband lay out its brackets, which a sampler looks at before the first trial is judged."""
    if isinstance(study.pruner, pruners.HyperbandPruner):
        study.pruner.prune(study, create_trial(state=TrialState.RUNNING))


def ends_early(study: optuna.Study, trial: Trial, look: int) -> bool:
    """The pruner's word on a trial after a look; asked again after a kill, it is the same.

    Halving notes the rungs that a trial has completed in the storage, before its trial ends, and would not
    judge by them again. So it is asked on a copy of the study as it was before, and its notes are kept after.
    """
    if not isinstance(study.pruner, (pruners.SuccessiveHalvingPruner, pruners.HyperbandPruner)):
        return trial.should_prune()
    storage, rows = study._storage, study.get_trials(deepcopy=True)
    own = next(row for row in rows if row.number == trial.number)
    asked = own.user_attrs.get(_ASKED, [None, []])
    if asked[0] != look:
        asked = [look, [name for name in own.system_attrs if name.startswith(_RUNG)]]
        trial.set_user_attr(_ASKED, asked)
    own.system_attrs = {
        name: value
        for name, value in own.system_attrs.items()
        if not name.startswith(_RUNG) or name in asked[1]
    }
    copy = optuna.create_study(study_name=study.study_name)
    copy.add_trials(rows)
    ends = study.pruner.prune(copy, copy.get_trials()[own.number])
    for name, value in copy.get_trials()[own.number].system_attrs.items():
        if name.startswith(_RUNG):
            storage.set_trial_system_attr(trial._trial_id, name, value)
    return ends


def is_worse(losses: Sequence[float], best: Sequence[float]) -> bool:
    """True where a run is worse than the best one on the same examples, by Wilcoxon's signed-rank test."""
    compared = optuna.create_study()
    compared.add_trial(create_trial(value=fmean(best), intermediate_values=dict(enumerate(best))))
    own = create_trial(state=TrialState.RUNNING, intermediate_values=dict(enumerate(losses)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is experimental
        pruner = pruners.WilcoxonPruner(p_threshold=P_VALUE, n_startup_steps=LEAST_EXAMPLES)
    return bool(pruner.prune(compared, own))
