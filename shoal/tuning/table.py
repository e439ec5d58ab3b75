"""Ways of tuning compared on a table of runs that were made once: no run is trained, a study takes a moment.

The table is that of `benchmarks/tuning_table.py`. Settings that a sampler proposes are those of the nearest
row of it. A run's price is its steps, and the truth about it its loss on `test`, which no study sees.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from optuna.storages import InMemoryStorage

from shoal.tasks.metrics import Interval, bootstrap_interval
from shoal.training.loop import Diverged
from shoal.tuning.confirmation import Verdict, confirm
from shoal.tuning.plan import StudyPlan
from shoal.tuning.samplers import seed_of
from shoal.tuning.search_space import SearchSpace, read_space
from shoal.tuning.spaces import MODELS
from shoal.tuning.study import Study
from shoal.tuning.workloads import Division, Observed

Row = Mapping[str, Any]
GRID = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)  # learning rates


class TableWorkload:
    """One task of a table; its first row is the defaults."""

    def __init__(self, record: Row, task: str, shuffled: int | None = None) -> None:
        """With `shuffled`, a seed, every division deals whole rows of losses to the settings: noise alone."""
        self._cells = [c for c in record["cells"] if c["task"] == task and c["seed"] == 0 and c["losses"]]
        self._lengths, self._decay = record["lengths"], record["fixed"]["decay"]
        self._task, self._shuffled = task, shuffled
        if shuffled is not None:  # those that diverged would not be noise
            self._cells = [c for c in self._cells if f"end {self._lengths[-1]}" in c["losses"]]

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The first row, of the whole length."""
        return {**_settings(self._cells[0]), "steps": self._lengths[-1]}

    def space(self, *, lengths: bool) -> SearchSpace:
        """Ranges and choices of the table's settings; with `lengths` also of its steps."""
        rows = [_settings(cell) for cell in self._cells]
        rates = [row["learning_rate"] for row in rows]
        content: dict[str, Any] = {"learning_rate": {"low": min(rates), "high": max(rates), "log": True}}
        for name in rows[0].keys() - content.keys():
            values = sorted({row[name] for row in rows})
            content |= {name: values} if len(values) > 1 else {}
        return read_space(content | ({"steps": self._lengths} if lengths else {}), MODELS["lora"])

    def fingerprint(self) -> str:
        """Names the task."""
        return f"{self._task} {self._shuffled}"

    def whole(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The defaults with what was drawn."""
        return {**self.defaults, **settings}

    def looks(self, settings: Mapping[str, Any]) -> Sequence[int]:
        """Where the table has losses of a run of this length, in order; the last is the run's end."""
        end, longest = settings["steps"], self._lengths[-1]
        names = (name.split() for name in self._cells[0]["losses"])
        looks = [(kind, int(step)) for kind, step in names]
        stable = {step for kind, step in looks if kind == "stable" and step <= self._stable(settings)}
        falling = {step for kind, step in looks if kind == "falling" and end == longest}
        return [*sorted(stable | falling), end]

    def shared(self, settings: Mapping[str, Any], look: int) -> Mapping[str, Any]:
        """The table's row; also the length where the rate falls."""
        own = {"row": self._nearest(settings)}
        return own if look <= self._stable(settings) else {**own, "steps": settings["steps"]}

    def train(self, settings: Mapping[str, Any], division: Division, folder: Path, until: int) -> Observed:
        """What the table says of a run; `selection` in the search, examples of `test` in a confirmation."""
        row = self._nearest(settings)
        if self._shuffled is not None:
            dealt = list(range(len(self._cells)))
            random.Random(f"{self._shuffled}/{division}").shuffle(dealt)
            row = dealt[row]
        kind = "stable" if until <= self._stable(settings) else "falling"
        kind = "end" if until == settings["steps"] else kind
        recorded = self._cells[row]["losses"].get(f"{kind} {until}")
        if recorded is None:
            raise Diverged(f"{self._task}, row {row}: the run did not come to step {until}")
        losses = recorded["selection" if division.number == 0 else "test"]
        if division.number:  # examples of its own, the same for all settings
            losses = random.Random(str(division)).choices(losses, k=len(losses))
        return Observed(tuple(losses), until, until / 10, f"{row}/{until}")

    def truth(self, settings: Mapping[str, Any]) -> float:
        """Mean loss on `test` at the end of a run."""
        recorded = self._cells[self._nearest(settings)]["losses"].get(f"end {settings['steps']}")
        return fmean(recorded["test"]) if recorded else math.inf

    def best_rate(self, rates: Sequence[float]) -> Mapping[str, Any]:
        """The defaults with the rate, of some, that has the least loss on `selection`."""

        def selection(settings: Mapping[str, Any]) -> float:
            recorded = self._cells[self._nearest(settings)]["losses"].get(f"end {settings['steps']}")
            return fmean(recorded["selection"]) if recorded else math.inf

        return min((self.whole({"learning_rate": rate}) for rate in rates), key=selection)

    def least(self) -> float:
        """The best of the table."""
        rows = [_settings(cell) for cell in self._cells]
        return min(self.truth({**row, "steps": steps}) for row in rows for steps in self._lengths)

    def _stable(self, settings: Mapping[str, Any]) -> int:
        """Steps of a run before its rate falls."""
        return int(settings["steps"]) - round(settings["steps"] * self._decay)

    def _nearest(self, settings: Mapping[str, Any]) -> int:
        def distance(row: Mapping[str, Any]) -> float:
            rate = abs(math.log(settings["learning_rate"] / row["learning_rate"]))
            return rate + sum(settings[name] != row[name] for name in row if name != "learning_rate")

        return min(range(len(self._cells)), key=lambda i: distance(_settings(self._cells[i])))


@dataclass(frozen=True)
class Comparison:
    """How soon a way of tuning is as good as random search.

    Attributes:
        regret: of random search after all its trials: loss on `test` above the table's best, the mean.
        steps: that it took for them, the mean.
        share: of these steps until the other way's regret is no more, 1 where it never is, with its 95%
            interval.
    """

    regret: float
    steps: float
    share: Interval


def compare(
    record: Row, first: Mapping[str, Sequence[Mapping[str, Any]]], repetitions: int, trials: int = 24
) -> Comparison:
    """TPE with warm starts and pruning, beside random search of whole runs.

    Args:
        record: the table.
        first: task -> settings of its nearest tasks, tried after the defaults.
        repetitions: seeds of each task.
        trials: of a random search.
    """
    regrets, steps, shares = [], [], []
    for task in record["descriptions"]:
        workload = TableWorkload(record, task)
        rows = [
            regret_by_steps(workload, "random", seed, trials, pruner="none") for seed in range(repetitions)
        ]
        regret, spent = fmean(row[-1][1] for row in rows), fmean(row[-1][0] for row in rows)
        for seed in range(repetitions):
            found = regret_by_steps(workload, "tpe", seed, trials, first=first.get(task, ()))
            reached = next((at for at, own in found if own <= regret), spent)
            shares.append(min(1.0, reached / spent))
        regrets.append(regret)
        steps.append(spent)
    return Comparison(fmean(regrets), fmean(steps), bootstrap_interval(shares))


def baselines(
    record: Row, first: Mapping[str, Sequence[Mapping[str, Any]]], repetitions: int, trials: int = 24
) -> dict[str, Interval]:
    """Way of tuning -> its regret at the end with its 95% interval over tasks and repetitions.

    Args:
        record: the table.
        first: task -> settings of its nearest tasks, the nearest first.
        repetitions: seeds of each way that draws.
        trials: that each way has, but for one with twice as many.
    """
    found: dict[str, list[float]] = {}
    for task in record["descriptions"]:
        workload = TableWorkload(record, task)
        least, near = workload.least(), first.get(task, ())
        plain = {
            "the defaults": workload.defaults,
            "the nearest task's settings": workload.whole(near[0] if near else {}),
            f"the defaults with the best of {len(GRID)} rates": workload.best_rate(GRID),
        }
        for name, settings in plain.items():
            found.setdefault(name, []).append(workload.truth(settings) - least)
        for name, sampler, count, own in (
            (f"random search, {trials} trials", "random", trials, ()),
            (f"random search, {2 * trials} trials", "random", 2 * trials, ()),
            (f"quasi-random sequence, {trials} trials", "qmc", trials, ()),
            (f"TPE with warm starts, {trials} trials", "tpe", trials, near),
        ):
            pruner = "median" if sampler == "tpe" else "none"
            for seed in range(1 if sampler == "qmc" else repetitions):
                rows = regret_by_steps(workload, sampler, seed, count, pruner, own)
                found.setdefault(name, []).append(rows[-1][1])
    return {name: bootstrap_interval(regrets) for name, regrets in found.items()}


def spread_over_seeds(record: Row) -> float:
    """Standard deviation of the defaults' loss on `test` over seeds, its mean over tasks."""
    end, first = f"end {record['lengths'][-1]}", record["cells"][0]["setting"]
    losses: dict[str, list[float]] = {}
    for cell in record["cells"]:
        if cell["setting"] == first and end in cell["losses"]:
            losses.setdefault(cell["task"], []).append(fmean(cell["losses"][end]["test"]))
    spreads = [stdev(own) for own in losses.values() if len(own) > 1]
    return fmean(spreads) if spreads else math.nan


def regret_by_steps(
    workload: TableWorkload,
    sampler: str,
    seed: int,
    trials: int,
    pruner: str = "median",
    first: Sequence[Mapping[str, Any]] = (),
) -> list[tuple[int, float]]:
    """(steps trained so far, regret of the best trial so far) after every trial; pruned runs are paid for."""
    plan = StudyPlan("table", sampler, pruner, None, trials, seed, first)
    with tempfile.TemporaryDirectory() as folder:
        trials_of = _searched(workload, plan, Path(folder), lengths=sampler != "random").optuna.trials
    spent, best, truth, rows = 0, math.inf, math.inf, []
    for trial in trials_of:
        spent += trial.user_attrs.get("tokens", 0)
        value = trial.values[0] if trial.values and trial.state.name == "COMPLETE" else math.inf
        if value < best:
            best, truth = value, workload.truth(trial.user_attrs["settings"])
        rows.append((spent, truth - workload.least()))
    return rows


def noise_verdicts(record: Row, studies: int, trials: int) -> list[Verdict]:
    """Verdicts of studies whose settings differ by noise alone: the true gain of any is 0."""
    tasks = list(record["descriptions"])
    found = []
    for number in range(studies):
        workload = TableWorkload(record, tasks[number % len(tasks)], shuffled=number)
        plan = StudyPlan("noise", "random", "none", None, trials, seed_of("noise", number))
        with tempfile.TemporaryDirectory() as folder:
            found.append(confirm(_searched(workload, plan, Path(folder), lengths=False)))
    return found


def _searched(workload: TableWorkload, plan: StudyPlan, folder: Path, *, lengths: bool) -> Study:
    study = Study(workload, workload.space(lengths=lengths), plan, InMemoryStorage(), folder, code="table")
    study.search()
    return study


def _settings(cell: Row) -> dict[str, Any]:
    return {n: tuple(v) if isinstance(v, list) else v for n, v in cell["setting"].items()}
