"""Tuning of an expert on verifiable rewards: a setting's loss is what its greedy answers do not earn.

The base model's decompositions, the corpus and the model itself are those of all trials of a process.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal.adapters.decomposition import Decompositions
from shoal.config import ExpertTrainingConfig
from shoal.errors import UsageError
from shoal.inference.generate import generate_greedy
from shoal.models.backbone import Backbone
from shoal.tasks.loading import Task
from shoal.tasks.rewards import REWARDS
from shoal.training.evolution import evolve
from shoal.training.loop import run
from shoal.training.lora import fingerprint, set_for_training
from shoal.transformer2.population import ExpertPopulation
from shoal.transformer2.train import ExpertObjective, SingularValues, base_success
from shoal.tuning.examples import DividedExamples
from shoal.tuning.workloads import CHECKPOINT_EVERY, Division, Observed

LOOKS = (0.5,)  # shares of a run


class ExpertWorkload:
    """Trains settings of `shoal train expert` on one task."""

    def __init__(
        self, backbone: Backbone, basis: Decompositions, task: Task, training: ExpertTrainingConfig
    ) -> None:
        """Tokenise the task, and see what the base model earns.

        Raises:
            UsageError: too few examples, a run by the clock, or a base model that earns about nothing or all.
        """
        if training.minutes is not None:
            raise UsageError(f"--minutes {training.minutes:g}: trials have steps; give --steps")
        self._backbone, self._basis, self._training = backbone, basis, training
        self._examples = DividedExamples(backbone, task, training)
        success = base_success(backbone, self._examples.corpus, REWARDS[training.reward], training)
        if training.objective != "sft" and not training.least_success <= success <= training.most_success:
            raise UsageError(
                f"the base model earns {success:.2f} of 1 on the training examples, outside "
                f"{training.least_success:g} to {training.most_success:g}; choose an easier or harder task"
            )

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Settings that hold where none are searched."""
        return self._training.model_dump(exclude={"minutes"})

    def fingerprint(self) -> str:
        """Names base model, examples and the weights that are scaled."""
        scaled = [(name, d.s.numel()) for name, d in self._basis.items()]
        return fingerprint(self._backbone, self._examples.corpus, scaled, self.defaults)

    def whole(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The defaults with what was drawn."""
        return {**self.defaults, **settings}

    def looks(self, settings: Mapping[str, Any]) -> Sequence[int]:
        """The half of a run and its end; an evolution is whole."""
        end = settings["steps"]
        evolving = settings["objective"] == "evolution"
        return [*(() if evolving else sorted({round(share * end) for share in LOOKS} - {0, end})), end]

    def shared(self, settings: Mapping[str, Any], look: int) -> Mapping[str, Any]:
        """All settings."""
        return settings

    def train(self, settings: Mapping[str, Any], division: Division, folder: Path, until: int) -> Observed:
        """Go on until a look, and take what answers do not earn; errors as `shoal.training.loop.run`."""
        started = time.perf_counter()
        config = ExpertTrainingConfig(**settings).model_copy(
            update={"seed": division.seed, "checkpoint_every": CHECKPOINT_EVERY}
        )
        fit, selection = self._examples.divided(division.number)
        tuned, reward = SingularValues(self._backbone.model, self._basis), REWARDS[config.reward]
        objective = ExpertObjective(self._backbone, tuned, fit, config, reward)
        if config.objective == "evolution":
            population = ExpertPopulation(self._backbone, tuned, fit, config, reward, objective.fingerprint())
            summary = evolve(population, config, folder, show_progress=False)
        else:
            with set_for_training(self._backbone):
                summary = run(objective, config, folder, show_progress=False, until=until)
        shown = self._examples.shown(selection)
        task = self._examples.task
        requests = [
            task.described(e.input, t.place) if config.describe else e.input
            for e, t in zip(shown, selection, strict=True)
        ]
        with tuned.attached():
            answers = generate_greedy(self._backbone, requests, max_new_tokens=config.max_new_tokens)
        losses = tuple(1 - reward(e, a) for e, a in zip(shown, answers, strict=True))
        seconds = time.perf_counter() - started
        return Observed(losses, summary.tokens, seconds, tuned.expert().fingerprint())
