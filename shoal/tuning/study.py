"""A study: Optuna proposes settings, runs are trained and observed, and what they cost is counted in tokens.

Given its seed and data a study of one process is a pure function, whenever it was killed: every proposal has
a sampler of its own, a trial that was under way goes on, and the first trial turns a budget of seconds into
tokens. Knows workloads as runs with losses; nothing of models.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from shoal.errors import ShoalError, UsageError, reason
from shoal.training.loop import Diverged, Interrupted
from shoal.tuning.limits import OVER, check_defaults, check_second, note_limits
from shoal.tuning.plan import StudyPlan
from shoal.tuning.progress import note_progress
from shoal.tuning.pruners import WILCOXON, begin_pruning, ends_early, is_worse, pruner_of
from shoal.tuning.samplers import sampler_of
from shoal.tuning.search_space import SearchSpace
from shoal.tuning.workloads import Division, Observed, Runs, Workload

log = logging.getLogger(__name__)

DEFAULTS, NEAREST, PROMOTED, SAMPLED = "defaults", "nearest task", "promoted", "sampler"
CONFIRMATIONS = 3  # seeds, and divisions of the examples
MOST_FREE = 200  # trials that cost nothing: all of the space was tried, or is outside its limits
MOST_FAILURES = 10  # trials, before a search gives up where none of them came to its end


class Study:
    """The search of a study.

    Attributes:
        runs: trainings of its trials and of its confirmation.
        optuna: the study as Optuna has it.
    """

    def __init__(
        self,
        workload: Workload,
        space: SearchSpace,
        plan: StudyPlan,
        storage: BaseStorage,
        folder: Path,
        code: str,
        on_trial: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Open or begin a study; `code` names the code that trains, `on_trial` gets a line for each trial.

        Raises:
            UsageError: neither a budget nor trials, a second aim that cannot be pursued, or a study of
                another space, data, code or seed, or with other limits.
        """
        if plan.budget is None and plan.trials is None:
            raise UsageError("a study needs an end; give --budget, such as 20m, or --trials")
        check_second(plan.second, plan.sampler, plan.pruner)
        self.workload, self.space, self.plan, self.folder = workload, space, plan, folder
        self.runs = Runs(workload, folder / "runs")
        self._on_trial = on_trial
        sampler = sampler_of(plan.sampler, plan.seed, 0)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".ask"):
            self.optuna = optuna.create_study(
                storage=storage,
                study_name=plan.name,
                sampler=sampler,
                pruner=pruner_of(plan.pruner, self._longest()),
                directions=["minimize"] * (1 if plan.second is None else 2),
                load_if_exists=True,
            )
            self._begin(code)
            begin_pruning(self.optuna)

    def search(self) -> None:
        """Try settings until the budget or the trials are spent; what was killed goes on first.

        Raises:
            UsageError: the budget is shorter than one trial.
            Interrupted: Ctrl-C; the same call goes on.
        """
        while True:
            with ExitStack() as stack:
                with FileLock(self.folder / ".ask"):
                    started = self.runs.clock()
                    trial = self._left_behind(stack) or self._asked(stack)
                if trial is not None:
                    self._try(trial, started)
                    continue
            if not self._waited_for_others():
                return

    def budget_tokens(self) -> float:
        """Tokens of search and confirmation; infinite before the first trial, or without a budget."""
        return float(self.optuna.user_attrs.get("budget_tokens", math.inf))

    def best(self, count: int) -> list[FrozenTrial]:
        """The best trials within limits, with different settings other than the defaults, best first."""
        found: dict[str, FrozenTrial] = {}
        for row in sorted(self.within_limits(), key=lambda t: (t.values[0], t.number)):
            if row.user_attrs["origin"] != DEFAULTS:
                found.setdefault(repr(row.user_attrs["settings"]), row)
        return list(found.values())[:count]

    def within_limits(self) -> list[FrozenTrial]:
        """The trials that came to their end and keep all limits."""
        rows = self.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return [row for row in rows if OVER not in row.user_attrs]

    def note_progress(self, *, ended: bool = False) -> None:
        """Write down how far the search is; `ended` where all is done."""
        rows = self.optuna.get_trials(deepcopy=False)
        note_progress(self.folder, rows, self.plan.trials, self.budget_tokens(), ended=ended)

    def _begin(self, code: str) -> None:
        """Write down what the study is of, and queue its first trials; or see that it is the same."""
        facts = {
            "space": self.space.sha256,
            "data": self.workload.fingerprint(),
            "code": code,
            "seed": self.plan.seed,
            "sampler": self.plan.sampler,
            "limits": [str(limit) for limit in self.plan.limits],
            "second": self.plan.second,
        }
        known = self.optuna.user_attrs
        for name, own in facts.items():
            if name in known and known[name] != own:
                raise UsageError(
                    f"the study {self.plan.name} is of another {name}; name another --study, or go on with "
                    "what it was begun with"
                )
            if name not in known:
                self.optuna.set_user_attr(name, own)
        if not known.get("begun"):
            defaults = self.space.fixed(self.workload.defaults)
            self.optuna.enqueue_trial(defaults or {}, {"origin": DEFAULTS}, skip_if_exists=True)
            for settings in self.plan.first:
                if fixed := self.space.fixed({**self.workload.defaults, **settings}):
                    self.optuna.enqueue_trial(fixed, {"origin": NEAREST}, skip_if_exists=True)
            self.optuna.set_user_attr("begun", True)

    def _left_behind(self, stack: ExitStack) -> Trial | None:
        """The first trial that a process which is gone was at."""
        for row in self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if self._took(row.number, stack):
                self.optuna.sampler = sampler_of(self.plan.sampler, self.plan.seed, row.number)
                return Trial(self.optuna, row._trial_id)
        return None

    def _waited_for_others(self) -> bool:
        """Wait for a trial of another process, which may be left behind; False where there is none."""
        for row in self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            with FileLock(self.folder / "trials" / f"{row.number}.lock"):
                return True
        return False

    def _asked(self, stack: ExitStack) -> Trial | None:
        """A new trial, while there is room for it."""
        rows = self.optuna.get_trials(deepcopy=False)
        if not self._has_room(rows):
            return None
        self.optuna.sampler = sampler_of(
            self.plan.sampler, self.plan.seed, sum(t.state != TrialState.WAITING for t in rows)
        )
        trial = self.optuna.ask()
        self._took(trial.number, stack)
        return trial

    def _took(self, number: int, stack: ExitStack) -> bool:
        """Hold a trial as long as this process lives and is at it; False where another one does."""
        place = self.folder / "trials"
        place.mkdir(exist_ok=True)
        try:
            stack.enter_context(FileLock(place / f"{number}.lock", timeout=0))
        except Timeout:
            return False
        return True

    def _has_room(self, rows: Sequence[FrozenTrial]) -> bool:
        begun = [t for t in rows if t.state != TrialState.WAITING]
        if self.plan.trials is not None and len(begun) >= self.plan.trials:
            return False
        spent = sum(t.user_attrs.get("tokens", 0) for t in begun)
        if sum(not t.user_attrs.get("tokens") for t in begun) >= MOST_FREE:
            return False
        whole = [t.user_attrs["whole_tokens"] for t in begun if "whole_tokens" in t.user_attrs]
        if not whole:
            return len(begun) < MOST_FAILURES
        longest = max(whole)
        return bool(spent + longest + CONFIRMATIONS * (whole[0] + 2 * longest) <= self.budget_tokens())

    def _try(self, trial: Trial, started: float) -> None:
        """Train a trial, asked for at a time of the runs' clock, from look to look; tell how it ended."""
        origin = trial.user_attrs.get("origin", SAMPLED)
        drawn = self.workload.defaults if origin == DEFAULTS else self.space.draw(trial)
        if origin == DEFAULTS and self.space.fixed(self.workload.defaults):
            self.space.draw(trial)
        settings = dict(drawn) if origin == DEFAULTS else self.workload.whole(drawn)
        trial.set_user_attr("origin", origin)
        trial.set_user_attr("settings", settings)
        trial.set_user_attr("seed", self.plan.seed)
        value: float | None = None
        measured: Mapping[str, float] = {}
        try:
            observed = None
            if self._keeps_limits(trial, origin, settings):
                observed = self._looked(trial, settings)
            if observed is not None:
                value, measured = observed.loss, observed.measured
                self._keeps_limits(trial, origin, measured)
            state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        except Diverged as error:
            trial.set_user_attr("diverged", reason(error))
            state = TrialState.PRUNED
        except (Interrupted, UsageError):
            raise
        except ShoalError as error:
            trial.set_user_attr("failed", reason(error))
            state = TrialState.FAIL
        if origin != SAMPLED or state == TrialState.COMPLETE:
            self._promote(trial, value)
        trial.set_user_attr("overhead", self.runs.clock() - started)
        self._close(trial, settings, value, state, measured)

    def _keeps_limits(self, trial: Trial, origin: str, values: Mapping[str, Any]) -> bool:
        """True where values are within all limits, of which Optuna hears; the defaults must be."""
        if origin == DEFAULTS:
            check_defaults(self.plan.limits, values)
        return note_limits(trial, self.plan.limits, values)

    def _longest(self) -> int:
        """Steps of the longest run."""
        steps = self.space["steps"]
        drawn = [*steps.choices, steps.high or 1] if steps else []
        return int(max([self.workload.looks(self.workload.defaults)[-1], *drawn]))

    def _looked(self, trial: Trial, settings: Mapping[str, Any]) -> Observed | None:
        """A run at its end; None where it was pruned on the way."""
        looks = self.workload.looks(settings)
        division = Division(0, self.plan.seed)
        done = self.optuna._storage.get_trial(trial._trial_id).intermediate_values
        for look in looks:
            observed = self.runs.observe(settings, division, look, trial.number)
            if not math.isfinite(observed.loss):
                raise Diverged(f"the loss {observed.loss} on examples that select is not finite")
            trial.set_user_attr("adapter_sha256", observed.sha256)
            if trial.number == 0 and self.plan.budget is not None:
                self._check_budget(observed.seconds * looks[-1] / look if look == looks[0] else 0.0)
            if look == looks[-1]:
                return observed
            if self.plan.second is not None:
                continue
            if look not in done:
                trial.report(observed.loss, look)
            if look < max(done, default=0):
                continue  # it went on from here before it was killed
            if trial.user_attrs["origin"] != DEFAULTS and self._ends(trial, observed, look):
                trial.set_user_attr("pruned_mean", observed.loss)
                return None
        raise AssertionError("a run has a look at least")

    def _ends(self, trial: Trial, observed: Observed, look: int) -> bool:
        """True where a trial is not worth going on with."""
        if self.plan.pruner != WILCOXON:
            return ends_early(self.optuna, trial, look)
        rows = self.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        best = min(rows, key=lambda t: (t.values[0], t.number), default=None)
        if best is None:
            return False
        other = self.runs.seen(best.user_attrs["settings"], Division(0, self.plan.seed), look)
        return other is not None and is_worse(observed.losses, other.losses)

    def _check_budget(self, seconds: float) -> None:
        assert self.plan.budget is not None
        if seconds > self.plan.budget:
            raise UsageError(
                f"--budget {self.plan.budget:g} s is shorter than one trial of about {seconds:.0f} s; raise "
                "it, or lower --steps"
            )

    def _promote(self, trial: Trial, value: float | None) -> None:
        """Queue the next number of steps for settings that are the best so far: their run goes on."""
        steps = self.space["steps"]
        if value is None or steps is None or not steps.choices or "steps" not in trial.params:
            return
        rows = self.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        has = trial.user_attrs["settings"].get("steps")
        longer = [choice for choice in sorted(steps.choices) if has is not None and choice > has]
        if longer and all(value < t.values[0] for t in rows if t.number != trial.number):
            self.optuna.enqueue_trial(
                {**trial.params, "steps": longer[0]}, {"origin": PROMOTED}, skip_if_exists=True
            )

    def _close(
        self,
        trial: Trial,
        settings: Mapping[str, Any],
        value: float | None,
        state: TrialState,
        measured: Mapping[str, float],
    ) -> None:
        tokens, seconds = self.runs.tokens_of(settings, Division(0, self.plan.seed), trial.number)
        trial.set_user_attr("tokens", tokens)
        trial.set_user_attr("seconds", seconds)
        if state == TrialState.COMPLETE:
            end = self.workload.looks(settings)[-1]
            whole = self.runs.observe(settings, Division(0, self.plan.seed), end, None)
            trial.set_user_attr("whole_tokens", whole.tokens)
        if self.plan.budget is not None and "budget_tokens" not in self.optuna.user_attrs and tokens:
            self.optuna.set_user_attr("budget_tokens", round(self.plan.budget * tokens / seconds))
        second = [] if self.plan.second is None else [measured.get(self.plan.second, math.nan)]
        self.optuna.tell(trial, None if value is None else [value, *second], state=state)
        self.note_progress()
        shown = f"{value:.4f}" if value is not None else state.name.lower()
        self._on_trial(f"trial {trial.number} ({trial.user_attrs['origin']}): {shown}, {tokens} tokens")
