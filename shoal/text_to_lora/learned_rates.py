"""Rates and decay while they are learned: their steps of Adam, and their state as JSON.

Source: Kingma and Ba, "Adam", arXiv 1412.6980, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shoal.file_formats import read_json
from shoal.text_to_lora.refining import LEAST_RATE, MOST_RATE
from shoal.text_to_lora.refining_config import RefiningTrainingConfig

MOST_DECAY = 0.3


class LearnedRates:
    """The logarithms of all rates, and last the decay, with the moments of Adam."""

    def __init__(self, groups: Sequence[str], values: Sequence[float], record: Mapping[str, Any]) -> None:
        self.groups = list(groups)
        self.values = np.array(values)
        self.first = np.array(record.get("first", np.zeros(len(values))))
        self.second = np.array(record.get("second", np.zeros(len(values))))
        self.updates, self.episodes = int(record.get("updates", 0)), int(record.get("episodes", 0))

    @classmethod
    def read(cls, path: Path, groups: Sequence[str], config: RefiningTrainingConfig) -> LearnedRates:
        """The state in a file, or that before the first episode."""
        record = read_json(path) if path.is_file() else {}
        start = [math.log(config.learning_rate)] * len(groups) + [0.0]
        return cls(groups, record.get("values", start), record)

    @property
    def decay(self) -> float:
        """Share of the way back to the start after every step."""
        return float(self.values[-1])

    def rates(self) -> dict[str, float]:
        """Group of modules -> learning rate."""
        return {name: math.exp(value) for name, value in zip(self.groups, self.values, strict=False)}

    def step(self, slopes: Sequence[Sequence[float]], config: RefiningTrainingConfig) -> None:
        """One step on the mean slope of some episodes."""
        slope = np.mean(slopes, axis=0)
        self.updates += 1
        self.episodes += len(slopes)
        self.first = 0.8 * self.first + 0.2 * slope
        self.second = 0.95 * self.second + 0.05 * slope**2
        one, two = self.first / (1 - 0.8**self.updates), self.second / (1 - 0.95**self.updates)
        sizes = np.array([config.rate_step] * len(self.groups) + [config.decay_step])
        self.values = self.values - sizes * one / (np.sqrt(two) + 1e-8)
        self.values[:-1] = np.clip(self.values[:-1], math.log(LEAST_RATE), math.log(MOST_RATE))
        self.values[-1] = min(max(self.values[-1], 0.0), MOST_DECAY)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        arrays = {name: getattr(self, name).tolist() for name in ("values", "first", "second")}
        return {**arrays, "updates": self.updates, "episodes": self.episodes}
