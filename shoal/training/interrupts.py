"""Ctrl-C during a run: the first one ends the step under way whole, the second one stops at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def noted_interrupts() -> Iterator[list[int]]:
    """A list that the first Ctrl-C makes true, so that the step under way ends whole.

    A second Ctrl-C is a KeyboardInterrupt as always. Outside the main thread the list stays empty.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        previous = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread: that one's own handling applies
        yield received
        return
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, previous)
