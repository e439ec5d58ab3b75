"""The length of a run, in steps or by the clock, and the learning rate on the way."""

from __future__ import annotations

from shoal.config import LoraTrainingConfig
from shoal.training.checkpoints import Progress


def left(progress: Progress, config: LoraTrainingConfig) -> float:
    """Steps that a run still has, or seconds where it runs by the clock; 0 at its end."""
    done, end = done_and_end(progress, config)
    return max(0.0, end - done)


def done_and_end(progress: Progress, config: LoraTrainingConfig) -> tuple[float, float]:
    """The place of a run and its end: in seconds by the clock, else in steps."""
    if config.minutes is not None:
        return progress.seconds, 60 * config.minutes
    return progress.step, config.steps


def length_of(config: LoraTrainingConfig) -> str:
    """The length, in words."""
    return f"a run of {config.minutes:g} minutes" if config.minutes else str(config.steps)


def schedule(done: float, end: float, warmup: float) -> float:
    """Share of the peak learning rate: rises linearly over the warm-up, then falls linearly to 0.

    Args:
        done: steps, or seconds, of the run before this step.
        end: of the run, in the same unit.
        warmup: share of the run; at least one step, or second.
    """
    rising = max(1, round(end * warmup))
    if done < rising:
        return (done + 1) / rising if done + 1 < rising else 1.0
    return max(0.0, (end - done) / max(1, end - rising))
