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


def rate_share(progress: Progress, config: LoraTrainingConfig) -> float:
    """Share of the peak learning rate of a run's next step, in [0, 1]."""
    done, end = done_and_end(progress, config)
    warmup = config.warmup if config.warmup_steps is None else config.warmup_steps / end
    return schedule(done, end, warmup, config.decay)


def stable_steps(config: LoraTrainingConfig) -> int:
    """Steps before the rate depends on how long the run is: those of a stable-then-decay schedule, else 0.

    Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations",
    arXiv 2405.18392, section 3.
    """
    if config.decay is None or config.warmup_steps is None or config.minutes is not None:
        return 0
    return max(0, config.steps - round(config.steps * config.decay))


def schedule(done: float, end: float, warmup: float, decay: float | None = None) -> float:
    """Share of the peak learning rate: rises linearly over the warm-up, then falls linearly to 0.

    Args:
        done: steps, or seconds, of the run before this step.
        end: of the run, in the same unit.
        warmup: share of the run; at least one step, or second.
        decay: share of the run in which it falls, at its end, and is constant before; None for all after the
            warm-up.
    """
    rising = max(1, round(end * warmup))
    if done < rising:
        return (done + 1) / rising if done + 1 < rising else 1.0
    falling = max(1, end - rising if decay is None else min(round(end * decay), end - rising))
    return min(1.0, max(0.0, (end - done) / falling))
