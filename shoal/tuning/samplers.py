"""Optuna's samplers by name, made anew for every trial: what is drawn is a function of seed and history.

A sampler's random state is not kept in the storage, so that one which lives on draws otherwise after a kill.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping

from optuna import samplers

from shoal.errors import UsageError

STARTUP_TRIALS = 5  # of TPE, before it models what it has seen


def _tpe(seed: int) -> samplers.BaseSampler:
    return samplers.TPESampler(
        seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True, warn_independent_sampling=False
    )


SAMPLERS: Mapping[str, Callable[[int], samplers.BaseSampler]] = {
    "tpe": _tpe,
    "random": lambda seed: samplers.RandomSampler(seed=seed),
    "qmc": lambda seed: samplers.QMCSampler(seed=0, scramble=True, warn_independent_sampling=False),
    "gp": lambda seed: samplers.GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS),
    "cmaes": lambda seed: samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False),
}


def seed_of(*parts: object) -> int:
    """A seed below 2^31 for a part of a study."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "big") >> 1


def sampler_of(name: str, seed: int, trial: int) -> samplers.BaseSampler:
    """The sampler of one trial.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in SAMPLERS:
        raise UsageError(f"--sampler {name}: choose from {', '.join(SAMPLERS)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that some are experimental
        return SAMPLERS[name](seed_of(seed, trial))
