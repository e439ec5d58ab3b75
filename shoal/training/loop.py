"""The optimisation loop that every training here shares: resumable, logged, deterministic, on any number of processes.

A run is a pure function of its configuration and data: batches, dropout and noise are drawn from (seed, step,
process), so a run that was killed and resumed ends with the same bits as one that was not. Gradients of several
processes are averaged by `accelerate`. Knows nothing of adapters or tasks: an objective gives it parameters and
losses.
"""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from shoal.config import LoraTrainingConfig
from shoal.errors import ShoalError, UsageError
from shoal.files import read_json, read_tensors, write_directory, write_file

log = logging.getLogger(__name__)

STATE_FILE, TENSORS_FILE, LOG_FILE = "state.json", "state.safetensors", "log.jsonl"


@dataclass(frozen=True)
class StepLoss:
    """What one forward pass gives.

    Attributes:
        loss: scalar to differentiate.
        tokens: real (unpadded) tokens that it read.
        metrics: further numbers for the log.
    """

    loss: Tensor
    tokens: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class Objective(Protocol):
    """What a run optimises."""

    @property
    def module(self) -> nn.Module:
        """Holds the parameters that are trained and saved."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """AdamW's parameter groups, each with its peak `lr`."""

    def loss(self, forward_pass: int) -> StepLoss:
        """Loss of one forward pass; `forward_pass` counts them over all steps and processes."""

    def fingerprint(self) -> str:
        """Names the data and the start, so that a run is never resumed on others."""


@dataclass(frozen=True)
class RunSummary:
    """How a run went.

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


class Interrupted(ShoalError):
    """The run was stopped by Ctrl-C after a whole step, and its checkpoint is written."""


@dataclass
class _Progress:
    """Everything of a run that is neither a parameter nor the optimiser's."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


def run(
    objective: Objective,
    config: LoraTrainingConfig,
    folder: Path,
    *,
    monitor: Callable[[], Mapping[str, float]] | None = None,
    show_progress: bool = True,
) -> RunSummary:
    """Optimise until `config.steps`, from the checkpoint in `folder` if it holds one.

    Args:
        objective: parameters and losses.
        config: optimisation settings.
        folder: of this run: checkpoint, JSONL log and TensorBoard events.
        monitor: numbers to log at every checkpoint, for example the loss on held-out tasks.
        show_progress: draw a progress bar on standard error.

    Raises:
        UsageError: the folder holds another run's checkpoint.
        Interrupted: Ctrl-C; calling again resumes.
        ShoalError: a loss is not finite, or a file cannot be written.
    """
    accelerator = Accelerator(cpu=next(objective.module.parameters()).device.type == "cpu")
    optimizer = torch.optim.AdamW(objective.parameter_groups(), weight_decay=config.weight_decay)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    identity = _identity(objective, config, accelerator.num_processes)
    progress = _resume(folder / "checkpoint", objective.module, optimizer, identity)
    main = accelerator.is_main_process
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng())
        stopping = stack.enter_context(_finish_step_on_ctrl_c())
        writer = stack.enter_context(_Log(folder, progress.step)) if main else None
        bar = stack.enter_context(
            tqdm(total=config.steps, initial=progress.step, unit="step", disable=not (show_progress and main))
        )
        objective.module.train()
        while progress.step < config.steps:
            metrics = _step(objective, optimizer, config, accelerator, progress)
            bar.update()
            bar.set_postfix(loss=f"{metrics['loss']:.3f}", refresh=False)
            due = (
                progress.step % config.checkpoint_every == 0
                or progress.step == config.steps
                or bool(stopping)
            )
            if due and monitor and not stopping:
                objective.module.eval()
                metrics |= monitor()
                objective.module.train()
            if writer:
                writer.write(progress.step, metrics)
            if due and main:
                _save(folder / "checkpoint", objective.module, optimizer, identity, progress)
            if stopping:
                raise Interrupted(
                    f"interrupted after step {progress.step} of {config.steps}; run again to resume {folder}"
                )
        objective.module.eval()
    tail = progress.losses[-max(1, config.steps // 10) :]
    return RunSummary(progress.step, progress.tokens, progress.seconds, sum(tail) / len(tail))


def _step(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    config: LoraTrainingConfig,
    accelerator: Accelerator,
    progress: _Progress,
) -> dict[str, float]:
    started = time.perf_counter()
    world, rank = accelerator.num_processes, accelerator.process_index
    torch.manual_seed(_seed(config.seed, progress.step, rank))
    share = 1 / config.accumulation
    total, tokens, metrics = 0.0, 0, dict[str, float]()
    for part in range(config.accumulation):
        result = objective.loss((progress.step * config.accumulation + part) * world + rank)
        (result.loss * share).backward()
        total += float(result.loss.detach()) * share
        tokens += result.tokens
        for name, value in result.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + value * share
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if world > 1:
        for p in parameters:
            p.grad = accelerator.reduce(torch.zeros_like(p) if p.grad is None else p.grad, reduction="mean")
        totals = accelerator.reduce(
            torch.tensor([total / world, tokens], dtype=torch.float64), reduction="sum"
        )
        total, tokens = float(totals[0]), int(totals[1])
    norm = float(nn.utils.clip_grad_norm_(parameters, config.clip_norm))
    if not (torch.isfinite(torch.tensor([total, norm])).all()):
        raise ShoalError(
            f"loss {total} or gradient norm {norm} is not finite at step {progress.step + 1}; lower learning_rate"
        )
    factor = schedule(progress.step, config.steps, config.warmup)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - started
    progress.step += 1
    progress.tokens += tokens
    progress.seconds += seconds
    progress.losses.append(total)
    return {
        "loss": total,
        "gradient_norm": norm,
        "rate": factor,
        "tokens_per_second": tokens / seconds,
        **metrics,
    }


def schedule(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at a step: linear from 0 over the warm-up's share of the steps, then linear to 0."""
    rising = max(1, round(steps * warmup))
    if step < rising:
        return (step + 1) / rising
    return max(0.0, (steps - step) / max(1, steps - rising))


def _seed(*parts: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=6).digest(), "big")


def _identity(objective: Objective, config: LoraTrainingConfig, processes: int) -> dict[str, Any]:
    ignored = {"checkpoint_every"}
    return {
        "config": json.loads(config.model_dump_json(exclude=ignored)),
        "data": objective.fingerprint(),
        "processes": processes,
    }


def _save(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
    progress: _Progress,
) -> None:
    tensors = {f"parameter.{name}": p.detach().contiguous() for name, p in module.named_parameters()}
    for name, p in module.named_parameters():
        for key, value in optimizer.state.get(p, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value.contiguous()
    state = {"identity": dict(identity), "progress": vars(progress)}

    def write(temporary: Path) -> None:
        save_file(tensors, temporary / TENSORS_FILE)
        (temporary / STATE_FILE).write_text(json.dumps(state))

    write_directory(folder, write)


def _resume(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, identity: Mapping[str, Any]
) -> _Progress:
    if not (folder / STATE_FILE).is_file():
        return _Progress()
    state = read_json(folder / STATE_FILE)
    if state.get("identity") != identity:
        raise UsageError(
            f"{folder} is the checkpoint of another run (config, data or processes differ); use a new folder"
        )
    tensors = read_tensors(folder / TENSORS_FILE)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(tensors[f"parameter.{name}"])
            keys = {
                key.split(".")[1]
                for key in tensors
                if key.startswith("optimizer.") and key.endswith(f".{name}")
            }
            restored = {
                key: tensors[f"optimizer.{key}.{name}"]
                for key in keys
                if f"optimizer.{key}.{name}" in tensors
            }
            if restored:
                optimizer.state[p] = {k: t if k == "step" else t.to(p.device) for k, t in restored.items()}
    progress = _Progress(**state["progress"])
    log.info("resumed %s at step %d", folder, progress.step)
    return progress


class _Log:
    """One JSON line a step in `log.jsonl`, and the same numbers for TensorBoard."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / LOG_FILE
        kept = self._path.read_text().splitlines()[:step] if self._path.exists() else []
        write_file(
            self._path, "".join(line + "\n" for line in kept)
        )  # rows after the checkpoint happen again
        self._file = self._path.open("a")
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        row = {"step": step, **{name: round(value, 6) for name, value in metrics.items()}}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        self._events.close()


@contextmanager
def _finish_step_on_ctrl_c() -> Iterator[list[int]]:
    """A list that Ctrl-C makes true, so that the step under way ends whole; outside the main thread it stays empty."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    try:
        previous = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread: the caller's own handling applies
        yield received
        return
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, previous)
