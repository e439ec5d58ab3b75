"""A study as its storage has it: its trials with their curves, what its fields matter, and its verdict.

Importance is that of PED-ANOVA (arXiv 2304.10255), over trials that came to their end, with its spread over
resamples of them. Trains nothing, and writes nothing.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Any

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from shoal.errors import NotFoundError
from shoal.tuning.limits import OVER
from shoal.tuning.storage import open_storage

LEAST_TRIALS, RESAMPLES = 6, 16


@dataclass(frozen=True)
class Importance:
    """Share of a field in how losses differ.

    Attributes:
        share: of all fields, in [0, 1].
        spread: its standard deviation over resamples of the trials.
    """

    share: float
    spread: float


def study_record(url: str, name: str) -> dict[str, Any]:
    """A study as JSON: `trials`, `importance`, `verdict` (None before it), `defaults`.

    Raises:
        NotFoundError: there is none.
        ShoalError: as `open_storage`.
    """
    try:
        study = optuna.load_study(study_name=name, storage=open_storage(url))
    except KeyError:
        raise NotFoundError(f"there is no study {name[:64]}") from None
    trials = [t for t in study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]
    verdict = study.user_attrs.get("verdict")
    return {
        "trials": [_row(trial) for trial in trials],
        "importance": {field: vars(own) for field, own in importance_of(trials).items()},
        "verdict": verdict,
        "defaults": study.user_attrs.get("defaults"),
    }


def importance_of(trials: Sequence[FrozenTrial], seed: int = 0) -> dict[str, Importance]:
    """Field -> its importance, the largest first; empty where fewer than 6 trials ended."""
    done = [t for t in trials if t.state == TrialState.COMPLETE and t.params]
    fields = set.intersection(*(set(t.params) for t in done)) if done else set()
    if len(done) < LEAST_TRIALS or not fields:
        return {}
    chance = random.Random(seed)
    resamples = [_shares(chance.choices(done, k=len(done)), fields) for _ in range(RESAMPLES)]
    whole = _shares(done, fields)
    found = {f: Importance(whole[f], stdev(row.get(f, 0.0) for row in resamples)) for f in whole}
    return dict(sorted(found.items(), key=lambda item: -item[1].share))


def _shares(trials: Sequence[FrozenTrial], fields: set[str]) -> Mapping[str, float]:
    study = optuna.create_study()
    study.add_trials(
        [
            optuna.create_trial(
                value=trial.values[0],
                params={field: trial.params[field] for field in fields},
                distributions={field: trial.distributions[field] for field in fields},
            )
            for trial in trials
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())


def _row(trial: FrozenTrial) -> dict[str, Any]:
    about = trial.user_attrs
    curve = sorted(trial.intermediate_values.items())
    settings = about.get("settings", {})
    done, over = trial.state == TrialState.COMPLETE, about.get(OVER, [])
    if done and "steps" in settings:
        curve.append((settings["steps"], trial.values[0]))
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "origin": about.get("origin"),
        "settings": dict(trial.params),
        "loss": trial.values[0] if done else about.get("pruned_mean"),
        "curve": [list(point) for point in curve],
        "tokens": about.get("tokens", 0),
        "seconds": about.get("seconds", 0.0),
        "second": trial.values[1] if done and len(trial.values) > 1 else None,
        "why": about.get("failed")
        or about.get("diverged")
        or (", ".join(over) and f"over {', '.join(over)}"),
    }
