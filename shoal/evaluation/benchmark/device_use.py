"""Utilisation of the accelerator while something runs: its own counter, read a few times per second."""

from __future__ import annotations

import importlib.util
import statistics
import threading
from collections.abc import Callable
from types import TracebackType

import torch


def utilisation_counter() -> Callable[[], float] | None:
    """Reads the share of the last moments in which the device computed, in [0, 1].

    None where there is no CUDA device, or no nvidia-ml-py (extra `reports`), by which PyTorch reads it.
    """
    if not torch.cuda.is_available() or importlib.util.find_spec("pynvml") is None:
        return None
    return lambda: torch.cuda.utilization() / 100


class DeviceUse:
    """Between entering and leaving, reads a counter on a thread of its own."""

    def __init__(self, counter: Callable[[], float] | None, seconds: float = 0.2) -> None:
        """Take the counter, None for no device, and the seconds between two readings."""
        self._counter = counter
        self._seconds = seconds
        self._readings: list[float] = []
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True) if counter else None

    @property
    def mean(self) -> float | None:
        """Of what was read, in [0, 1]; None where nothing was."""
        return statistics.fmean(self._readings) if self._readings else None

    def __enter__(self) -> DeviceUse:
        if self._thread:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        if self._thread:
            self._thread.join()

    def _read(self) -> None:
        while self._counter and not self._left.wait(self._seconds):
            self._readings.append(self._counter())
