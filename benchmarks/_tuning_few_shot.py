"""Rate and steps of refining on a few examples, as a workload that a study tunes over training tasks.

Every run refines, on each task, the adapter that the shipped network generates from the task's first
description, on so many examples of the `train` list, and takes the mean loss on others of that list. A
division draws both anew. Nothing is read of `test`, nor of tasks that are not given.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from shoal.adapters.lora import LoRA
from shoal.inference.scoring import reference_losses
from shoal.models.backbone import Backbone
from shoal.tasks.loading import Task
from shoal.tasks.records import divide
from shoal.text_to_lora.few_shot import REFINING
from shoal.text_to_lora.generator import TextToLoRA
from shoal.training.batches import tokenise
from shoal.training.lora import LoraObjective, fingerprint
from shoal.training.short_runs import optimise
from shoal.tuning.workloads import Division, Observed

ASKED = 16  # examples of a task on which losses are taken
SPACE = {"learning_rate": {"low": 2e-4, "high": 8e-3, "log": True}, "steps": [5, 10, 20, 40]}


class FewShotWorkload:
    """Refines adapters of several tasks on `shots` examples each."""

    def __init__(self, generator: TextToLoRA, tasks: Sequence[Task], shots: int) -> None:
        """Generate the adapter that each task starts from."""
        self._backbone: Backbone = generator.backbone
        self._shots = shots
        self._tasks = [replace(task, train=divide(task.train, test_size=0)[0], test=()) for task in tasks]
        self._starts: dict[str, LoRA] = {t.name: generator.generate(t.descriptions[0]).lora for t in tasks}

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The constants that refining has."""
        return {"learning_rate": REFINING.learning_rate, "steps": REFINING.steps}

    def fingerprint(self) -> str:
        """Names base model, tasks, starts and the number of examples."""
        corpus = tokenise(self._tasks, self._backbone, REFINING.max_length)
        starts = [start.fingerprint() for start in self._starts.values()]
        return fingerprint(self._backbone, corpus, self._shots, *starts)

    def whole(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The defaults with what was drawn."""
        return {**self.defaults, **settings}

    def looks(self, settings: Mapping[str, Any]) -> Sequence[int]:
        """The end alone."""
        return [int(settings["steps"])]

    def shared(self, settings: Mapping[str, Any], look: int) -> Mapping[str, Any]:
        """All settings."""
        return settings

    def train(self, settings: Mapping[str, Any], division: Division, folder: Path, until: int) -> Observed:
        """Refine on every task; the losses are the tasks' means."""
        folder.mkdir(parents=True, exist_ok=True)
        started, tokens, losses, adapters = time.perf_counter(), 0, [], []
        for task in self._tasks:
            chance = random.Random(f"{division}/{task.name}")
            drawn = chance.sample(task.train, min(len(task.train), self._shots + ASKED))
            shots, asked = replace(task, train=tuple(drawn[: self._shots])), drawn[self._shots :]
            lora = self._starts[task.name]
            config = REFINING.model_copy(
                update={
                    **settings,
                    "seed": division.seed,
                    "batch_size": min(REFINING.batch_size, self._shots),
                }
            )
            targets = [t for t in self._backbone.shape.targets if t.name in lora.factors]
            corpus = tokenise([shots], self._backbone, config.max_length)
            objective = LoraObjective(self._backbone, corpus, targets, lora, config)
            tokens += sum(step.tokens for step in optimise(self._backbone, objective, until))
            adapters.append(objective.lora())
            inputs, outputs = [e.input for e in asked], [e.outputs[0] for e in asked]
            losses.append(fmean(reference_losses(self._backbone, inputs, outputs, adapters[-1])))
        seconds = time.perf_counter() - started
        return Observed(tuple(losses), tokens, seconds, " ".join(own.fingerprint()[:16] for own in adapters))
