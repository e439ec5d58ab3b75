"""A toy to tune: a function of rate and steps with noise by seed, whose runs are written as real ones are."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal.config import LoraTrainingConfig
from shoal.training.loop import Diverged
from shoal.tuning.search_space import SearchSpace, read_space
from shoal.tuning.workloads import Division, Observed

DEFAULTS = {"learning_rate": 1e-3, "steps": 40}
SPACE = {"learning_rate": {"low": 3e-4, "high": 1e-1, "log": True}, "steps": [10, 20, 40]}
EXAMPLES = 12


def toy_space(content: Mapping[str, Any] = SPACE) -> SearchSpace:
    return read_space(content, [LoraTrainingConfig])


class ToyWorkload:
    """Best at a rate of 4e-3; more steps are better; above 5e-2 it diverges."""

    def __init__(self, noise: float = 0.02, slope: float = 0.3, before: Any = lambda until: None) -> None:
        self.defaults: Mapping[str, Any] = DEFAULTS
        self.trained: list[tuple[int, int]] = []  # stretches of steps
        self._noise, self._slope, self._before = noise, slope, before

    def fingerprint(self) -> str:
        return f"toy {self._noise}"

    def whole(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {**DEFAULTS, **settings}

    def looks(self, settings: Mapping[str, Any]) -> Sequence[int]:
        return [n for n in (8, 16, 32) if n < settings["steps"]] + [settings["steps"]]

    def shared(self, settings: Mapping[str, Any], look: int) -> Mapping[str, Any]:
        own = dict(settings)
        if look < settings["steps"]:
            del own["steps"]
        return own

    def train(self, settings: Mapping[str, Any], division: Division, folder: Path, until: int) -> Observed:
        folder.mkdir(parents=True, exist_ok=True)
        state = folder / "checkpoint.json"
        step = json.loads(state.read_text())["step"] if state.is_file() else 0
        self._before(until)
        self.trained.append((step, until))
        rate = settings["learning_rate"]
        if rate > 5e-2:
            raise Diverged(f"loss nan of step {step + 1} is not finite")
        state.write_text(json.dumps({"step": until}))
        chance = random.Random(f"{rate}/{until}/{division}")
        own = chance.gauss(0, self._noise)
        loss = 1 + self._slope * math.log(rate / 4e-3) ** 2 / (1 + until / 40) + 4 / until + own
        examples = tuple(loss + chance.gauss(0, self._noise) for _ in range(EXAMPLES))
        return Observed(examples, 100 * until, (until - step) / 10, f"{rate}/{until}")
