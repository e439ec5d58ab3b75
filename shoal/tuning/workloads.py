"""What a study tunes: a protocol, and trainings whose every stretch is a run folder that is never made twice.

A run goes from look to look. Each look has a folder of its own with the run's checkpoint there, which begins
as a copy of the one before; settings that differ in their length alone share those folders as long as their
rate is stable. So a longer run goes on from a shorter one, and whatever was killed goes on too.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from shoal.errors import ShoalError
from shoal.file_formats import read_json
from shoal.files import write_directory, write_file

OBSERVED, CHECKPOINT_EVERY = "observed.json", 10


@dataclass(frozen=True)
class Observed:
    """A run at a look.

    Attributes:
        losses: of every example that selects, the lower the better.
        tokens: that the run has read.
        seconds: that the stretch from the look before took, losses included.
        sha256: of the adapter's tensors, in hex, as the registry names it.
        trial: that trained the stretch; None in a confirmation.
        measured: name -> value of what limits are about, at a run's end.
    """

    losses: tuple[float, ...]
    tokens: int
    seconds: float
    sha256: str
    trial: int | None = None
    measured: Mapping[str, float] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """The mean over examples."""
        return fmean(self.losses)


@dataclass(frozen=True)
class Division:
    """Which examples a run is trained on and which select, and its seed.

    Attributes:
        number: of the division into fit and selection, 0 for the search.
        seed: of the run.
    """

    number: int
    seed: int


class Workload(Protocol):
    """A training that has settings."""

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Settings that hold where none are searched, by field."""

    def fingerprint(self) -> str:
        """Names base model, data and the metric."""

    def whole(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a run from those that were drawn."""

    def looks(self, settings: Mapping[str, Any]) -> Sequence[int]:
        """Steps after which losses are taken, in order; the last is the run's end."""

    def shared(self, settings: Mapping[str, Any], look: int) -> Mapping[str, Any]:
        """All that decides a run up to a look."""

    def train(self, settings: Mapping[str, Any], division: Division, folder: Path, until: int) -> Observed:
        """Go on in a run's folder until a look, and take losses.

        Raises:
            Diverged: a loss is not finite.
            Interrupted: Ctrl-C; the folder goes on.
        """


class Runs:
    """The runs of a study, by what decides them."""

    def __init__(self, workload: Workload, folder: Path) -> None:
        """`folder` holds a folder for every stretch."""
        self._workload = workload
        self._folder = folder
        self._trained = 0.0  # seconds, in this process

    def clock(self) -> float:
        """Seconds of a clock that leaves out the time in which runs were trained."""
        return time.perf_counter() - self._trained

    def observe(
        self, settings: Mapping[str, Any], division: Division, look: int, trial: int | None
    ) -> Observed:
        """A run at a look, trained from the look before unless that was done already; errors as `train`."""
        place = self._place(settings, division, look)
        if (place / OBSERVED).is_file():
            return _read(place / OBSERVED)
        before = [earlier for earlier in self._workload.looks(settings) if earlier < look]
        if before and not place.exists():
            beginning = self._place(settings, division, before[-1])
            write_directory(
                place, lambda new: shutil.copytree(beginning, new, dirs_exist_ok=True, ignore=_ONLY_RUN)
            )
        started = time.perf_counter()
        try:
            observed = self._workload.train(settings, division, place, look)
        finally:
            self._trained += time.perf_counter() - started
        write_file(place / OBSERVED, json.dumps({**asdict(observed), "trial": trial}))
        return _read(place / OBSERVED)

    def seen(self, settings: Mapping[str, Any], division: Division, look: int) -> Observed | None:
        """A run at a look if it was there; None where it was not."""
        place = self._place(settings, division, look) / OBSERVED
        return _read(place) if place.is_file() else None

    def tokens_of(self, settings: Mapping[str, Any], division: Division, trial: int) -> tuple[int, float]:
        """(tokens, seconds) of the stretches that a trial trained itself."""
        places = [self._place(settings, division, look) / OBSERVED for look in self._workload.looks(settings)]
        rows = [_read(path) for path in places if path.is_file()]
        before = [0, *(row.tokens for row in rows)]
        own = [
            (row.tokens - b, row.seconds) for row, b in zip(rows, before, strict=False) if row.trial == trial
        ]
        return sum(tokens for tokens, _ in own), sum(seconds for _, seconds in own)

    def forget_checkpoints(self) -> None:
        """Remove all but logs and losses: no run of the study goes on any more."""
        for checkpoint in self._folder.glob("*/checkpoint"):
            shutil.rmtree(checkpoint, ignore_errors=True)

    def _place(self, settings: Mapping[str, Any], division: Division, look: int) -> Path:
        decided = (self._workload.shared(settings, look), asdict(division), look)
        text = json.dumps(decided, sort_keys=True, default=list)
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}-{look}"


_ONLY_RUN: Callable[[Any, list[str]], set[str]] = shutil.ignore_patterns(OBSERVED, ".*")


def _read(path: Path) -> Observed:
    try:
        row = read_json(path)
        return Observed(**{**row, "losses": tuple(row["losses"])})
    except (TypeError, KeyError):
        raise ShoalError(f"{path} is damaged; remove its folder, it is trained again") from None
