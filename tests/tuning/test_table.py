"""Ways of tuning on a table, here a made one: what a run costs, who is sooner, what noise alone brings."""

from __future__ import annotations

import math
import random
from statistics import fmean
from typing import Any

import pytest

from shoal.training.loop import Diverged
from shoal.tuning.table import (
    TableWorkload,
    baselines,
    compare,
    noise_verdicts,
    regret_by_steps,
    spread_over_seeds,
)
from shoal.tuning.workloads import Division

RATES = [1e-3, *(3e-4 * 1.3**i for i in range(15))]  # the defaults first


def made(tasks: int = 2) -> dict[str, Any]:
    """A table whose best rate is 6e-3, with a little noise; the last rate diverges."""
    chance, cells = random.Random(0), []
    for task in range(tasks):
        for rate in RATES:
            losses: dict[str, Any] = {}
            for name in ("stable 3", "end 6", "stable 6", "falling 9", "end 12"):
                step = int(name.split()[1])
                loss = 1 + 0.3 * math.log(rate / 6e-3) ** 2 + 2 / step
                losses[name] = {
                    p: [loss + chance.gauss(0, 0.05) for _ in range(8)] for p in ("selection", "test")
                }
            if rate == RATES[-1]:
                losses = {"stable 3": losses["stable 3"]}
            cells.append(
                {"task": f"t{task}", "setting": {"learning_rate": rate}, "seed": 0, "losses": losses}
            )
    names = {f"t{task}": f"Task {task}." for task in range(tasks)}
    return {"lengths": [6, 12], "fixed": {"decay": 0.5}, "descriptions": names, "cells": cells}


def test_a_run_is_that_of_the_nearest_row(tmp_path: Any) -> None:
    workload = TableWorkload(made(1), "t0")
    settings = workload.whole({"learning_rate": RATES[5] * 1.05})
    assert workload.looks(settings) == [3, 6, 9, 12] and workload.looks({**settings, "steps": 6}) == [3, 6]
    seen = workload.train(settings, Division(0, 0), tmp_path, 12)
    assert seen.tokens == 12 and seen.losses == tuple(made(1)["cells"][5]["losses"]["end 12"]["selection"])
    assert workload.shared(settings, 6) == workload.shared({**settings, "learning_rate": RATES[5]}, 6)
    assert workload.shared(settings, 3) == workload.shared({**settings, "steps": 6}, 3)
    assert workload.shared(settings, 9) != workload.shared(settings, 6)
    with pytest.raises(Diverged, match="did not come to step 12"):
        workload.train(workload.whole({"learning_rate": RATES[-1]}), Division(0, 0), tmp_path, 12)


def test_regret_falls_and_every_step_is_paid_once() -> None:
    rows = regret_by_steps(TableWorkload(made(1), "t0"), "tpe", 0, 10)
    steps, regrets = zip(*rows, strict=True)
    assert list(steps) == sorted(steps) and steps[-1] < 10 * 12
    assert 0 <= regrets[-1] <= regrets[0]


def test_a_warm_start_is_as_good_as_random_search_sooner() -> None:
    record = made()
    best = {task: [{"learning_rate": 6e-3}] for task in record["descriptions"]}
    found = compare(record, best, repetitions=1, trials=8)
    assert found.share.mean < 0.4 and found.steps <= 8 * 12 and found.regret >= 0


def test_every_baseline_has_a_regret() -> None:
    record = made()
    best = {task: [{"learning_rate": RATES[11]}] for task in record["descriptions"]}
    found = {name: own.mean for name, own in baselines(record, best, repetitions=1, trials=4).items()}
    assert len(found) == 7 and min(found.values()) >= 0
    defaults, near, grid, few, many, *_ = found.values()
    assert near < defaults and grid < defaults and many <= few + 0.1


def test_the_spread_is_of_the_defaults_over_seeds() -> None:
    record = made(1)
    assert math.isnan(spread_over_seeds(record))
    other = {
        name: {"test": [value + 1 for value in own["test"]]}
        for name, own in record["cells"][0]["losses"].items()
    }
    record["cells"].append({**record["cells"][0], "seed": 1, "losses": other})
    assert spread_over_seeds(record) == pytest.approx(2**-0.5)


def test_noise_alone_is_not_recommended_and_promises_more_than_it_confirms() -> None:
    verdicts = noise_verdicts(made(1), studies=3, trials=4)
    assert not any(verdict.recommended for verdict in verdicts)
    confirmed = fmean(c.gain.mean for v in verdicts for c in v.candidates)
    promised = fmean(c.gain.mean + c.optimism for v in verdicts for c in v.candidates)
    assert promised > confirmed
