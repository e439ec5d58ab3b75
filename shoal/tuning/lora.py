"""Tuning of a LoRA on one task, or of refining one on a few examples: one model and corpus for all trials.

Examples are tokenised once, and passed through the frozen layers once, whatever trial asks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from shoal.adapters.lora import LoRA
from shoal.config import LoraTrainingConfig, TextToLoRAConfig
from shoal.errors import UsageError
from shoal.inference.generate import generate_greedy
from shoal.models.backbone import Backbone
from shoal.models.modules import TargetModule
from shoal.models.shapes import BackboneShape
from shoal.tasks.loading import Example, Task
from shoal.tasks.metrics import exact_match, rouge_l
from shoal.training.batches import TokenisedExample
from shoal.training.loop import run
from shoal.training.lora import LoraObjective, fingerprint, set_for_training
from shoal.training.prefix_cache import PrefixCache
from shoal.training.schedule import stable_steps
from shoal.tuning.examples import DividedExamples
from shoal.tuning.search_space import SearchSpace
from shoal.tuning.workloads import CHECKPOINT_EVERY, Division, Observed

LOOKS = (0.25, 0.5, 0.75)  # shares of a run whose length is not searched
DECAY, WARMUP_SHARE = 0.2, 0.1  # of runs whose steps are searched
METRICS = {"nll": None, "rouge_l": rouge_l, "exact_match": exact_match}
SIZES = ("adapter_rank", "adapter_alpha", "num_layers_to_adapt", "target_modules")
PLAIN = LoraTrainingConfig()
BATCH_SIZE = 16


def check_modules(space: SearchSpace, shape: BackboneShape, layers: int | None) -> None:
    """See that a model has all modules of a space, in its last `layers`; errors as `BackboneShape.select`."""
    searched = space["target_modules"]
    for modules in searched.choices if searched else ():
        shape.select(modules, layers)


class LoraWorkload:
    """Trains settings of `shoal train lora` on one task, from a fresh adapter or from one that is given."""

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        training: LoraTrainingConfig,
        sizes: TextToLoRAConfig,
        *,
        lengths: Sequence[int] = (),
        start: LoRA | None = None,
        metric: str = "nll",
        max_new_tokens: int = 40,
        measured: Collection[str] = (),
        general: Callable[[LoRA | None], float] | None = None,
    ) -> None:
        """Tokenise the task.

        Args:
            backbone: the frozen model.
            task: of whose `train` list at least 16 different inputs are needed.
            training: settings of the defaults.
            sizes: of the adapter, without `start`.
            lengths: numbers of steps that are searched, in order: rates are then stable before they fall.
            start: adapter to go on from.
            metric: one of `METRICS` by which settings are judged.
            max_new_tokens: limit of an answer, where answers are judged.
            measured: of `shoal.tuning.limits.MEASURED`, those that are taken at a run's end.
            general: share of general questions that an adapter answers, or the base model.

        Raises:
            UsageError: too few examples, a run by the clock, or an unknown metric.
        """
        if metric not in METRICS:
            raise UsageError(f"--metric {metric}: choose from {', '.join(METRICS)}")
        if training.minutes is not None:
            raise UsageError(f"--minutes {training.minutes:g}: trials have steps; give --steps")
        self._backbone = backbone
        self._training, self._sizes = training, sizes
        self._lengths, self._start = tuple(lengths), start
        self._metric, self._max_new_tokens = metric, max_new_tokens
        self._measured, self._general = measured, general
        self._base_general = general(None) if general and "general_kept" in measured else 0.0
        self._examples = DividedExamples(backbone, task, training)
        self._prefixes: dict[int, PrefixCache] = {}

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Settings that hold where none are searched."""
        own = self._training.model_dump(exclude={"minutes"})
        sizes = {name: getattr(self._sizes, name) for name in SIZES} if self._start is None else {}
        return {**own, **sizes}

    def fingerprint(self) -> str:
        """Names base model, examples, start and metric."""
        start = self._start.fingerprint() if self._start else None
        return fingerprint(self._backbone, self._examples.corpus, start, self._metric, self.defaults)

    def whole(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The defaults with what was drawn: alpha follows the rank; where steps differ the rate is stable."""
        own = {**self.defaults, **settings}
        if "adapter_rank" in settings and "adapter_alpha" not in settings:
            own["adapter_alpha"] = self._sizes.adapter_alpha / self._sizes.adapter_rank * own["adapter_rank"]
        if self._lengths and own["decay"] is None:
            first = own["warmup_steps"]
            own["decay"] = DECAY
            own["warmup_steps"] = max(1, round(WARMUP_SHARE * self._lengths[0])) if first is None else first
        return own

    def looks(self, settings: Mapping[str, Any]) -> Sequence[int]:
        """Ends of the stable parts of shorter runs and of its own; else quarters of it."""
        end, config = settings["steps"], self._config(settings)
        stable = [stable_steps(config.model_copy(update={"steps": n})) for n in self._lengths]
        looks = {n for n in stable if 0 < n <= stable_steps(config)}
        if not looks:
            looks = {round(share * end) for share in LOOKS} - {0}
        return [*sorted(looks - {end}), end]

    def shared(self, settings: Mapping[str, Any], look: int) -> Mapping[str, Any]:
        """All settings; without the length while the rate is stable."""
        own = dict(settings)
        if look <= stable_steps(self._config(settings)):
            del own["steps"], own["decay"]
        return own

    def train(self, settings: Mapping[str, Any], division: Division, folder: Path, until: int) -> Observed:
        """Go on until a look, and take losses; errors as `shoal.training.loop.run`."""
        started = time.perf_counter()
        config = self._config(settings).model_copy(
            update={"seed": division.seed, "checkpoint_every": CHECKPOINT_EVERY}
        )
        fit, selection = self._examples.divided(division.number)
        targets = self._targets(settings)
        objective = LoraObjective(
            self._backbone,
            fit,
            targets,
            self._first(settings, targets, division.seed),
            config,
            self._prefix(targets),
        )
        with set_for_training(self._backbone):
            summary = run(objective, config, folder, show_progress=False, until=until)
        adapter = objective.lora()
        losses = self._losses(selection, adapter)
        whole = until == settings["steps"]
        measured = self._measure(adapter, self._examples.shown(selection[:1])[0]) if whole else {}
        seconds = time.perf_counter() - started
        return Observed(losses, summary.tokens, seconds, adapter.fingerprint(), measured=measured)

    def _measure(self, adapter: LoRA, asked: Example) -> dict[str, float]:
        """What limits are about."""
        found: dict[str, float] = {}
        if "bytes" in self._measured:
            found["bytes"] = float(adapter.nbytes)
        if "seconds" in self._measured:
            started = time.perf_counter()
            generate_greedy(self._backbone, [asked.input], adapter, max_new_tokens=self._max_new_tokens)
            found["seconds"] = time.perf_counter() - started
        if "general_kept" in self._measured and self._general is not None:
            found["general_kept"] = self._general(adapter) / max(self._base_general, 1e-9)
        return found

    def _config(self, settings: Mapping[str, Any]) -> LoraTrainingConfig:
        return LoraTrainingConfig(
            **{n: v for n, v in settings.items() if n in LoraTrainingConfig.model_fields}
        )

    def _targets(self, settings: Mapping[str, Any]) -> Sequence[TargetModule]:
        if self._start is not None:
            return [t for t in self._backbone.shape.targets if t.name in self._start.factors]
        return self._backbone.shape.select(tuple(settings["target_modules"]), settings["num_layers_to_adapt"])

    def _first(self, settings: Mapping[str, Any], targets: Sequence[TargetModule], seed: int) -> LoRA:
        if self._start is not None:
            return self._start
        generator = torch.Generator().manual_seed(seed)
        return LoRA.identity(
            targets, settings["adapter_rank"], float(settings["adapter_alpha"]), generator=generator
        )

    def _prefix(self, targets: Sequence[TargetModule]) -> PrefixCache:
        layer = min(t.layer for t in targets)
        return self._prefixes.setdefault(layer, PrefixCache(self._backbone, layer))

    def _losses(self, examples: Sequence[TokenisedExample], adapter: LoRA) -> tuple[float, ...]:
        judge = METRICS[self._metric]
        if judge is not None:
            shown = self._examples.shown(examples)
            answers = generate_greedy(
                self._backbone, [e.input for e in shown], adapter, max_new_tokens=self._max_new_tokens
            )
            return tuple(1 - judge(a, e.outputs) for e, a in zip(shown, answers, strict=True))
        found: list[float] = []
        prefix = self._prefix([t for t in self._backbone.shape.targets if t.name in adapter.factors])
        with torch.no_grad(), set_for_training(self._backbone):
            for begin in range(0, len(examples), BATCH_SIZE):
                losses, _ = prefix.answer_losses(examples[begin : begin + BATCH_SIZE], adapter, PLAIN)
                found += losses.tolist()
        return tuple(found if all(map(math.isfinite, found)) else [math.nan] * len(found))
