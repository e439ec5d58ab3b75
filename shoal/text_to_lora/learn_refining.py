"""Learning how to refine the adapters of one network: steps from curves, then rates and decay by Meta-SGD.

1. Curves of the loss on other examples by step, at one rate, give the steps for each number of examples.
2. A ridge regression on the same curves gives the stopping rule.
3. Trainings of so many steps, each followed by one gradient on other examples, move rates and decay.
4. Tasks that none of this saw choose among today's constants and what was learned.

Everything that takes long is kept in the run's folder, cell by cell, so that a run which was stopped goes on.

Source: Li et al., "Meta-SGD", arXiv 1707.09835; Hoerl and Kennard, "Ridge regression", Technometrics 1970.
"""

from __future__ import annotations

import json
import logging
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from shoal.config import MIN_EXAMPLES
from shoal.errors import ShoalError, UsageError
from shoal.files import write_file
from shoal.models.backbone import Backbone
from shoal.tasks.loading import Task, check_no_leakage
from shoal.tasks.metrics import Interval, bootstrap_difference
from shoal.text_to_lora.checkpoint import HypernetworkCheckpoint
from shoal.text_to_lora.emission import Emitter
from shoal.text_to_lora.learned_rates import LearnedRates
from shoal.text_to_lora.refining import (
    LOOK,
    Refining,
    StoppingRule,
    group_modules,
)
from shoal.text_to_lora.refining_config import RefiningTrainingConfig
from shoal.text_to_lora.refining_episodes import (
    Curve,
    Episode,
    EpisodeSource,
    curve,
    digest,
    emitted,
    todays_loss,
)
from shoal.training.refining import RefiningRun

log = logging.getLogger(__name__)

RIDGE = 1.0  # penalty on standardised features
RUN_FOLDERS = CURVES, CONSTANTS, RATES = "curves", "constants", "rates"
TODAY = "constants"


@dataclass(frozen=True)
class Learned:
    """The outcome of learning to refine.

    Attributes:
        refining: the best of what was learned.
        losses: way to refine -> number of examples -> mean loss on the choosing tasks, nats per token.
        gain: loss of today's constants minus that of `refining` on them, paired over tasks and numbers.
        chosen: name of the way that `refining` is; as it is the best on the same tasks, `gain` is after
            selection and flatters it.
        asked: names of those choosing tasks.
        seconds: of this sitting.
    """

    refining: Refining
    losses: Mapping[str, Mapping[int, float]]
    gain: Interval
    chosen: str
    asked: tuple[str, ...]
    seconds: float


class RefiningLearner:
    """Learns the refining of one network's adapters from tasks."""

    def __init__(
        self,
        backbone: Backbone,
        emitter: Emitter,
        tasks: Sequence[Task],
        folder: Path,
        config: RefiningTrainingConfig,
        *,
        held_out: Sequence[Task] = (),
    ) -> None:
        """Divide the tasks into those to learn from and those to choose by.

        Args:
            backbone: the frozen model.
            emitter: of the network.
            tasks: whose `train` lists give episodes.
            folder: of the run.
            config: settings.
            held_out: tasks that must share no example with `tasks`.

        Raises:
            LeakageError: a held-out task, or a `test` example, is among the training examples.
            UsageError: fewer than 2 tasks, a number of examples below 1, none that today's constants can
                refine on, or no choosing task with enough examples.
        """
        if len(tasks) < 2:
            raise UsageError(
                f"{len(tasks)} tasks are too few to learn refining from and to choose by, give 2 or more"
            )
        if min(config.shots) < 1:
            raise UsageError(
                f"{min(config.shots)} examples cannot be refined on, 1 is the least; correct shots"
            )
        check_no_leakage(tasks, held_out)
        if emitter.checkpoint.sha256 is None:
            raise UsageError("the network is not on the disk; save it first, refining is kept beside it")
        names = [task.name for task in tasks]
        random.Random(f"{config.seed}/refining").shuffle(names)
        count = max(1, round(config.held_out * len(names)))
        self.choosing, self.learning = names[:count], names[count:]
        self._backbone, self._emitter, self._config, self._folder = backbone, emitter, config, folder
        self._source = EpisodeSource(backbone, tasks, config.queries, config.max_length)
        self._groups = group_modules(emitter.checkpoint.network.targets)
        self._shots = sorted(set(config.shots))
        self._asked = self._tasks_that_choose()

    def learn(self) -> Learned:
        """All four stages; those that the folder holds are read from it.

        Raises:
            ShoalError: no task has enough examples, or the folder cannot be written.
        """
        started = time.perf_counter()
        groups = dict.fromkeys(self._groups.values())
        first = self._refining(dict.fromkeys(groups, self._config.learning_rate), 0.0)
        curves = {count: self._curves(first, self.learning, count) for count in self._shots}
        first = replace(first, steps={count: best_steps(own) for count, own in curves.items()})
        log.info("steps by number of examples: %s", dict(first.steps))
        rule = stopping_rule([c for own in curves.values() for c in own])
        rated = self._rated(first)
        ways = {"steps": first, "steps by rule": replace(first, rule=rule), "rates": rated}
        ways["rates, steps by rule"] = replace(rated, rule=rule)
        return self._chosen(ways, started)

    def _tasks_that_choose(self) -> tuple[str, ...]:
        """The first choosing tasks that have examples enough for every number; raises UsageError for none."""
        most = max(self._shots)
        if most < MIN_EXAMPLES:
            raise UsageError(
                f"shots are {most} at most, {MIN_EXAMPLES} are the least that the constants refine on; add "
                f"{MIN_EXAMPLES} or more to compare with them"
            )
        seed = f"{self._config.seed}/choosing"
        asked = [name for name in self.choosing if self._source.draw(name, most, seed) is not None]
        if not asked:
            raise UsageError(
                f"none of {len(self.choosing)} tasks to choose by has {most + self._config.queries} "
                f"different examples of at most {self._config.max_length} tokens; give tasks with more, or "
                "fewer shots or queries"
            )
        return tuple(asked[: self._config.curve_tasks])

    def _refining(self, rates: Mapping[str, float], decay: float) -> Refining:
        checkpoint: HypernetworkCheckpoint = self._emitter.checkpoint
        return Refining(
            checkpoint.base_model,
            str(checkpoint.sha256),
            rates,
            decay,
            dict.fromkeys(self._shots, 1),
            None,
            self._config.seed,
            tuple(sorted([*self.learning, *self.choosing])),
        )

    def _limit(self, shots: int) -> int:
        """Steps of a curve: few examples are learnt by heart in a few."""
        return max(LOOK, min(self._config.max_steps, 12 + 2 * shots))

    def _curve(self, refining: Refining, episode: Episode) -> Curve:
        rates = {name: refining.rates[group] for name, group in self._groups.items()}
        limit = self._limit(len(episode.shots))
        kept = self._folder / CURVES
        return curve(self._backbone, self._emitter, episode, rates, refining.decay, limit, kept)

    def _curves(self, refining: Refining, names: Sequence[str], shots: int) -> list[Curve]:
        """Curves of the first tasks that have enough examples, in an order of their own for each number."""
        found: list[Curve] = []
        for name in random.Random(f"{self._config.seed}/curves/{shots}").sample(names, len(names)):
            episode = self._source.draw(name, shots, f"{self._config.seed}/curves")
            if episode is not None and len(found) < self._config.curve_tasks:
                found.append(self._curve(refining, episode))
                log.info("curve %d with %d examples: %s", len(found), shots, name)
        if not found:
            raise ShoalError(
                f"no task has {shots + self._config.queries} different examples of at most "
                f"{self._config.max_length} tokens; lower shots or queries"
            )
        return found

    def _rated(self, first: Refining) -> Refining:
        """Rates and decay after all episodes, each step of them kept in the folder."""
        config = self._config
        decided_by = (config.model_dump_json(), first.network, self.learning, sorted(first.steps.items()))
        path = self._folder / RATES / f"{digest(decided_by)}.json"
        state = LearnedRates.read(path, list(first.rates), config)
        counts = [count for count in self._shots if MIN_EXAMPLES <= count <= 32] or self._shots
        while state.episodes < config.episodes:
            found = []
            for number in range(
                state.episodes, min(state.episodes + config.episodes_a_step, config.episodes)
            ):
                chance = random.Random(f"{config.seed}/rates/{number}")
                episode = None
                while episode is None:
                    episode = self._source.draw(chance.choice(self.learning), chance.choice(counts), number)
                found.append(self._episode(state, episode, max(LOOK, first.steps_for(len(episode.shots)))))
            state.step(found, config)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, json.dumps(state.to_json()))
            log.info("rates after %d episodes: %s", state.episodes, state.rates())
        return replace(first, rates=state.rates(), decay=state.decay)

    def _episode(self, state: LearnedRates, episode: Episode, steps: int) -> list[float]:
        """The slope of the loss after so many steps in the log of every rate, and in the decay."""
        rates = {name: state.rates()[group] for name, group in self._groups.items()}
        shots, queries = (episode.tokens(self._backbone, e) for e in (episode.shots, episode.queries))
        run = RefiningRun(self._backbone, emitted(self._emitter, episode), shots, rates, decay=state.decay)
        for _ in run.steps(steps):
            pass
        found = run.sensitivity(queries)
        by_group = dict.fromkeys(state.groups, 0.0)
        for name, slope in found.log_rates.items():
            by_group[self._groups[name]] += slope
        return [*by_group.values(), found.decay]

    def _chosen(self, ways: Mapping[str, Refining], started: float) -> Learned:
        """The best way on the tasks that choose, beside today's constants."""
        cells: dict[str, dict[tuple[str, int], float]] = {name: {} for name in (TODAY, *ways)}
        counts = [count for count in self._shots if count >= MIN_EXAMPLES]
        seed = f"{self._config.seed}/choosing"
        for name in self._asked:
            for shots in counts:
                episode = self._source.draw(name, shots, seed)
                assert episode is not None  # as there is one with more shots
                kept = self._folder / CONSTANTS
                cells[TODAY][name, shots] = todays_loss(self._backbone, self._emitter, episode, kept)
                for way, refining in ways.items():
                    found = self._curve(refining, episode)
                    steps = refining.rule.steps(found.seen) if refining.rule else refining.steps[shots]
                    cells[way][name, shots] = found.after(steps)
                log.info("chosen by %s with %d examples", name, shots)
        chosen = min(ways, key=lambda way: statistics.mean(cells[way].values()))
        by_task = {
            way: [statistics.mean(v for (n, _), v in own.items() if n == name) for name in self._asked]
            for way, own in cells.items()
        }
        return Learned(
            ways[chosen],
            {way: _means(own) for way, own in cells.items()},
            bootstrap_difference(by_task[TODAY], by_task[chosen]),
            chosen,
            self._asked,
            time.perf_counter() - started,
        )


def best_steps(curves: Sequence[Curve]) -> int:
    """The measured number of steps, at least 1, at which the mean loss of the curves is least."""
    common = set.intersection(*(set(c.losses) for c in curves)) - {0}
    return min(sorted(common), key=lambda step: statistics.mean(c.losses[step] for c in curves))


def stopping_rule(curves: Sequence[Curve]) -> StoppingRule:
    """Ridge regression of the logarithm of each curve's best steps on what its first steps show."""
    wanted = np.log([best_steps([c]) for c in curves])
    seen = np.array([c.seen.features() for c in curves])
    mean, scale = seen.mean(0), np.maximum(seen.std(0), 1e-6)
    x, y = (seen - mean) / scale, wanted - wanted.mean()
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y) / scale
    intercept = float(wanted.mean() - weights @ mean)
    most = max(max(c.losses) for c in curves)
    return StoppingRule(tuple(map(float, weights)), intercept, LOOK, most)


def _means(cells: Mapping[tuple[str, int], float]) -> dict[int, float]:
    counts = sorted({count for _, count in cells})
    return {n: statistics.mean(loss for (_, count), loss in cells.items() if count == n) for n in counts}
