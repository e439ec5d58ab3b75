"""How far a run is, on standard error: a bar on a terminal, elsewhere a line every ten seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


class ProgressDisplay:
    """Steps done, loss, steps per second and the time that is left; a context manager."""

    def __init__(self, steps: int | None, done: int, *, shown: bool = True) -> None:
        """Begin with a run that has `done` of `steps` behind it, and say so where it resumes.

        Args:
            steps: optimiser steps of the whole run; None for a run by the clock.
            done: steps of earlier sittings.
            shown: False displays nothing.
        """
        on_terminal = sys.stderr.isatty()
        self._steps = steps
        self._first = done
        self._done = done
        self._lines = shown and not on_terminal
        self._started = self._written = time.monotonic()
        if shown and done:
            what = "this run is complete:" if done == steps else "resuming at"
            print(f"{what} step {self._place()}", file=sys.stderr)
        self._bar = tqdm(total=steps, initial=done, unit="step", disable=not (shown and on_terminal))

    def advance(self, loss: float, seconds_left: float | None = None) -> None:
        """Count a step with its loss, in nats; a run by the clock says what is left of it."""
        self._done += 1
        self._bar.update()
        self._bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        now = time.monotonic()
        if self._lines and (now - self._written >= SECONDS_BETWEEN_LINES):
            self._written = now
            rate = (self._done - self._first) / (now - self._started)
            if self._steps is not None:
                seconds_left = (self._steps - self._done) / rate
            left = tqdm.format_interval(seconds_left or 0)
            print(
                f"step {self._place()}, loss {loss:.3f}, {_speed(rate)}, {left} left",
                file=sys.stderr,
                flush=True,
            )

    def _place(self) -> str:
        return f"{self._done}" if self._steps is None else f"{self._done} of {self._steps}"

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


def _speed(rate: float) -> str:
    return f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s/step"
