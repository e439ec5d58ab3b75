"""The optimisation loop that every training here shares: resumable, logged, deterministic, on many processes.

A run is a pure function of its configuration and data: batches, dropout and noise are drawn from the seed and
the number of the forward pass, so a run that was killed and resumed ends with the same bits as one that was
not, and two processes see what one sees with twice the accumulation. Only a run by the clock
(`config.minutes`) depends on the machine: in how many steps it takes, and so in its rates. Gradients of
several processes are averaged by `accelerate`. Knows nothing of adapters or tasks: an objective gives it
parameters and losses.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from shoal.config import LoraTrainingConfig
from shoal.errors import ShoalError
from shoal.training.checkpoints import (
    CHECKPOINT,
    Progress,
    RunLog,
    beginning_of,
    load_checkpoint,
    save_checkpoint,
)
from shoal.training.interrupts import noted_interrupts
from shoal.training.processes import start_together, summed
from shoal.training.progress import ProgressDisplay
from shoal.training.schedule import left, length_of, rate_share, stable_steps
from shoal.training.weight_average import WeightAverage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepLoss:
    """The result of one forward pass.

    Attributes:
        loss: scalar to differentiate.
        tokens: real (unpadded) tokens that it read.
        metrics: further numbers for the log.
    """

    loss: Tensor
    tokens: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class Trainable(Protocol):
    """Parameters and their losses."""

    @property
    def module(self) -> nn.Module:
        """Holds the parameters that are trained and saved."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """AdamW's parameter groups, each with its peak `lr`."""

    def loss(self, forward_pass: int) -> StepLoss:
        """Loss of one forward pass; `forward_pass` counts them over all steps and processes."""


class Objective(Trainable, Protocol):
    """The objective of a run that can be resumed."""

    def fingerprint(self) -> str:
        """Names the data and the start, so that a run is never resumed on others."""


@dataclass(frozen=True)
class RunSummary:
    """The summary of a run.

    Attributes:
        steps: optimiser steps done, over all sittings.
        tokens: real tokens that they read, in all processes.
        seconds: time that they took, over all sittings.
        final_loss: mean loss of the last tenth of the steps, nats.
    """

    steps: int
    tokens: int
    seconds: float
    final_loss: float


class Diverged(ShoalError):
    """A loss or a gradient of the run is not finite."""


class Interrupted(ShoalError):
    """The run was stopped by Ctrl-C after a whole step, and its checkpoint is written."""


def run(
    objective: Objective,
    config: LoraTrainingConfig,
    folder: Path,
    *,
    monitor: Callable[[], Mapping[str, float]] | None = None,
    show_progress: bool = True,
    until: int | None = None,
) -> RunSummary:
    """Optimise until `config.steps` or `config.minutes`, from the checkpoint in `folder` if it holds one.

    While a stable-then-decay rate is stable, the checkpoint is one of runs of any length: a run with other
    `steps` or `decay` goes on from it, unless its own rate would fall already.

    With `config.average_decay` the module ends with the running mean of its weights; what `monitor` sees are
    the weights themselves.

    Args:
        objective: parameters and losses.
        config: optimisation settings.
        folder: of this run: checkpoint, JSONL log and TensorBoard events; shared by all processes.
        monitor: numbers to log at every checkpoint, for example the loss on held-out tasks.
        show_progress: on standard error: a bar on a terminal, else a line every ten seconds.
        until: step after which this sitting ends, with a checkpoint; calling again goes on.

    Raises:
        UsageError: the folder holds another run's checkpoint.
        Interrupted: Ctrl-C; calling again resumes. A second Ctrl-C stops at once, without a checkpoint.
        Diverged: a loss is not finite.
        ShoalError: a file cannot be written.
    """
    device = next(objective.module.parameters()).device
    accelerator = Accelerator(cpu=device.type == "cpu")
    optimizer = adamw(objective, config.weight_decay)
    average = WeightAverage(objective.module, config.average_decay) if config.average_decay else None
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    identity = identity_of(objective.fingerprint(), config, accelerator.num_processes)
    progress = load_checkpoint(
        folder / CHECKPOINT, objective.module, optimizer, identity, average, stable=stable_steps(config)
    )
    start_together(objective.module, progress, accelerator)

    def take_step(interrupts: list[int]) -> tuple[dict[str, float], bool]:
        taken = _step(objective, optimizer, config, accelerator, progress, interrupts)
        if average is not None:
            average.update(progress.step)
        return taken

    def save() -> None:
        own = identity if progress.step > stable_steps(config) else beginning_of(identity)
        save_checkpoint(folder / CHECKPOINT, objective.module, optimizer, own, progress, average)

    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.callback(objective.module.eval)
        objective.module.train()
        summary = drive(
            take_step,
            save,
            progress,
            config,
            folder,
            accelerator,
            watch=(lambda: _monitored(monitor, objective.module)) if monitor else None,
            show_progress=show_progress,
            until=until,
        )
    if average is not None:
        average.put_into_module()
    return summary


def drive(
    take_step: Callable[[list[int]], tuple[dict[str, float], bool]],
    save: Callable[[], None],
    progress: Progress,
    config: LoraTrainingConfig,
    folder: Path,
    accelerator: Accelerator,
    *,
    watch: Callable[[], Mapping[str, float]] | None = None,
    show_progress: bool = True,
    until: int | None = None,
) -> RunSummary:
    """Take steps of any kind until the run's end, with a progress bar, logs, checkpoints and Ctrl-C.

    Args:
        take_step: is given a list that is not empty once the step is to be the last, and moves `progress` on;
            (numbers for the log, `loss` among them; whether any process was interrupted).
        save: writes the checkpoint.
        progress: how far the run is.
        config: how many steps or minutes, and how many steps between checkpoints.
        folder: of the run.
        accelerator: of the processes.
        watch: further numbers at every checkpoint.
        show_progress: on standard error: a bar on a terminal, else a line every ten seconds.
        until: step after which this sitting ends; None for the end of the run.

    Raises:
        Interrupted: Ctrl-C, after the checkpoint is written.
        ShoalError: a file cannot be written.
    """
    main = accelerator.is_main_process

    def ended() -> bool:
        return not left(progress, config) or (until is not None and progress.step >= until)

    with ExitStack() as stack:
        interrupts = stack.enter_context(noted_interrupts())
        rows = stack.enter_context(RunLog(folder, progress.step)) if main else None
        log.info("training from step %d of %s", progress.step, length_of(config))
        total = None if config.minutes else config.steps
        display = stack.enter_context(ProgressDisplay(total, progress.step, shown=show_progress and main))
        while not ended():
            metrics, stopping = take_step(interrupts)
            display.advance(metrics["loss"], left(progress, config) if config.minutes else None)
            due = progress.step % config.checkpoint_every == 0 or ended()
            if rows is not None:
                if due and watch and not stopping:
                    metrics |= watch()
                rows.write(progress.step, metrics)
                if due or stopping:
                    save()
            if stopping:
                accelerator.wait_for_everyone()
                raise Interrupted(
                    f"interrupted after step {progress.step} of {length_of(config)}; "
                    f"run again to resume {folder}"
                )
    accelerator.wait_for_everyone()
    tail = progress.losses[-max(1, progress.step // 10) :]
    return RunSummary(progress.step, progress.tokens, progress.seconds, sum(tail) / len(tail))


def adamw(objective: Trainable, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """The optimiser of an objective; on a CPU its fused kernel takes an eighth of the plain one's time."""
    groups = objective.parameter_groups()
    on_cpu = all(p.device.type == "cpu" for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, weight_decay=weight_decay, fused=on_cpu)


def _step(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    config: LoraTrainingConfig,
    accelerator: Accelerator,
    progress: Progress,
    interrupts: list[int],
) -> tuple[dict[str, float], bool]:
    """One optimiser step: (numbers for the log, whether any process was interrupted)."""
    started = time.perf_counter()
    numbers = _accumulate(objective, config, accelerator, progress.step)
    numbers["interrupts"] = len(interrupts)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if accelerator.num_processes > 1:
        for p in parameters:
            p.grad = accelerator.reduce(torch.zeros_like(p) if p.grad is None else p.grad, reduction="mean")
        numbers = summed(numbers, accelerator)
    tokens, stopping = int(numbers.pop("tokens")), numbers.pop("interrupts") > 0
    metrics = {name: value / accelerator.num_processes for name, value in numbers.items()}
    groups = [g["params"] for g in optimizer.param_groups] if config.clip_apart else [parameters]
    norm = math.hypot(*(float(nn.utils.clip_grad_norm_(group, config.clip_norm)) for group in groups))
    if not (math.isfinite(metrics["loss"]) and math.isfinite(norm)):
        raise Diverged(
            f"loss {metrics['loss']} or gradient norm {norm} of step {progress.step + 1} is not finite; "
            f"lower learning_rate (now {config.learning_rate:g}), or check the data"
        )
    factor = rate_share(progress, config)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    loss = metrics.pop("loss")
    speed = {"tokens_per_second": moved_on(progress, loss, tokens, started, accelerator)}
    return {"loss": loss, "gradient_norm": norm, "rate": factor, **speed, **metrics}, stopping


def moved_on(progress: Progress, loss: float, tokens: int, started: float, accelerator: Accelerator) -> float:
    """Count a step that began at `started`, as `time.perf_counter` tells it; its tokens per second.

    All processes count the time of the first one, so that they stop together.
    """
    seconds = time.perf_counter() - started
    if accelerator.num_processes > 1:
        seconds = float(broadcast(torch.tensor(seconds, dtype=torch.float64, device=accelerator.device)))
    progress.step += 1
    progress.tokens += tokens
    progress.seconds += seconds
    progress.losses.append(loss)
    return tokens / seconds


def _accumulate(
    objective: Objective, config: LoraTrainingConfig, accelerator: Accelerator, step: int
) -> dict[str, float]:
    """Add this process's gradients of one step: loss and further metrics as means, tokens as a sum."""
    numbers = {"loss": 0.0, "tokens": 0.0}
    for part in range(config.accumulation):
        forward_pass = step * config.accumulation + part
        forward_pass = forward_pass * accelerator.num_processes + accelerator.process_index
        torch.manual_seed(_seed(config.seed, forward_pass))
        result = objective.loss(forward_pass)
        (result.loss / config.accumulation).backward()
        numbers["tokens"] += result.tokens
        for name, value in {"loss": float(result.loss.detach()), **result.metrics}.items():
            numbers[name] = numbers.get(name, 0.0) + value / config.accumulation
    return numbers


def _monitored(monitor: Callable[[], Mapping[str, float]], module: nn.Module) -> Mapping[str, float]:
    module.eval()
    try:
        return monitor()
    finally:
        module.train()


def _seed(*parts: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=6).digest(), "big")


def identity_of(fingerprint: str, config: LoraTrainingConfig, processes: int) -> dict[str, Any]:
    """A hash of all that must not change between the sittings of a run."""
    settings = json.loads(config.model_dump_json(exclude={"checkpoint_every", "fresh_workers"}))
    return {"config": settings, "data": fingerprint, "processes": processes}
