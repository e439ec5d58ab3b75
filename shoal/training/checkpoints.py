"""A run's folder: a checkpoint that is whole or absent, and logs with one row per step.

The checkpoint holds parameters and AdamW's state as safetensors, and how far the run is as JSON; `log.jsonl`
and TensorBoard's events hold the same numbers. Knows nothing of what is optimised, or of when to write.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from shoal.errors import ShoalError, UsageError
from shoal.file_errors import failures_named
from shoal.file_formats import read_json, read_tensors
from shoal.files import read_directory, write_directory, write_file
from shoal.training.weight_average import WeightAverage

log = logging.getLogger(__name__)

STATE_FILE, TENSORS_FILE, LOG_FILE = "state.json", "state.safetensors", "log.jsonl"
CHECKPOINT, EVENTS = "checkpoint", "tensorboard"
_LENGTH = ("steps", "decay")  # settings that a stable rate does not depend on


@dataclass
class Progress:
    """The progress of a run, over all sittings.

    Attributes:
        step: optimiser steps done.
        tokens: real tokens that they read, in all processes.
        seconds: time that they took.
        losses: mean loss of every step, nats per token where the objective is a language model's.
        rewards: where candidates are tried instead of gradients taken, what each earned, for every step.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    rewards: list[list[float]] = field(default_factory=list)


def save_checkpoint(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    identity: Mapping[str, Any],
    progress: Progress,
    average: WeightAverage | None = None,
) -> None:
    """Write everything that resuming needs; whole or not at all. A run without gradients has no optimiser.

    Raises:
        ShoalError: the disk is full or the folder cannot be written.
    """
    tensors = {}
    for name, parameter in module.named_parameters():
        tensors[f"parameter.{name}"] = parameter.detach().contiguous()
        for key, value in (optimizer.state.get(parameter, {}) if optimizer else {}).items():
            tensors[f"optimizer.{key}.{name}"] = value.contiguous()
    for name, mean in average.means.items() if average else ():
        tensors[f"average.{name}"] = mean
    state = {"identity": dict(identity), "progress": vars(progress)}

    def write(temporary: Path) -> None:
        save_file(tensors, temporary / TENSORS_FILE)
        (temporary / STATE_FILE).write_text(json.dumps(state), "utf-8")

    write_directory(folder, write)


def load_checkpoint(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    identity: Mapping[str, Any],
    average: WeightAverage | None = None,
    *,
    stable: int = 0,
) -> Progress:
    """Put parameters and optimiser where a checkpoint left them; without one, the run is at its start.

    A checkpoint of `beginning_of` the run serves as one of it, up to the step `stable`.

    Raises:
        UsageError: it is the checkpoint of another run.
        ShoalError: it is damaged.
    """
    if not folder.exists():
        return Progress()
    state = read_directory(folder, lambda place: read_json(place / STATE_FILE))
    differing = _differences(state.get("identity"), identity)
    if set(differing) <= set(_LENGTH) and _step_of(state) <= stable:
        differing = _differences(state.get("identity"), beginning_of(identity))
    if differing:
        raise UsageError(
            f"{folder} is the checkpoint of another run, with other {', '.join(differing)}; use a new folder"
        )
    try:
        progress = Progress(**state["progress"])
        tensors = read_directory(folder, lambda place: read_tensors(place / TENSORS_FILE))
        _restore(module, optimizer, tensors)
        if average is not None:
            for name, mean in average.means.items():
                mean.copy_(tensors[f"average.{name}"])
    except (KeyError, TypeError, ValueError) as error:
        raise ShoalError(f"{folder} is damaged ({error}); delete it to start over") from None
    log.info("resumed %s at step %d", folder, progress.step)
    return progress


def beginning_of(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of all runs that differ from one in their length alone, while their rate is stable."""
    config = {name: value for name, value in identity["config"].items() if name not in _LENGTH}
    return {**identity, "config": config}


def _step_of(state: Mapping[str, Any]) -> float:
    step = state["progress"].get("step") if isinstance(state.get("progress"), dict) else None
    return step if isinstance(step, int) else math.inf


def _restore(
    module: nn.Module, optimizer: torch.optim.Optimizer | None, tensors: Mapping[str, Tensor]
) -> None:
    for name, parameter in module.named_parameters():
        if tensors[f"parameter.{name}"].shape != parameter.shape:
            raise ValueError(f"{name} has another shape")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(tensors[f"parameter.{name}"])
            if (
                optimizer and f"optimizer.step.{name}" in tensors
            ):  # a parameter that is not trained has no state
                # AdamW counts its steps on the CPU and keeps its moments beside the parameter.
                optimizer.state[parameter] = {
                    "step": tensors[f"optimizer.step.{name}"],
                    "exp_avg": tensors[f"optimizer.exp_avg.{name}"].to(parameter.device),
                    "exp_avg_sq": tensors[f"optimizer.exp_avg_sq.{name}"].to(parameter.device),
                }


def _differences(saved: Any, wanted: Mapping[str, Any]) -> list[str]:
    """The differences from the checkpoint's run: names of settings, `data` or `processes`."""
    saved = saved if isinstance(saved, dict) else {}
    config = saved.get("config") or {}
    names = {*config, *wanted["config"]}
    settings = [n for n in sorted(names) if config.get(n) != wanted["config"].get(n)]
    return settings + [n for n in ("data", "processes") if saved.get(n) != wanted[n]]


def check_run_folder(
    folder: Path, result: Path, own: Collection[str] = (CHECKPOINT, LOG_FILE, EVENTS)
) -> None:
    """Before anything is computed, refuse a run's folder that would get into the way of what it makes.

    `own` are names that a run of its kind leaves there.

    Raises:
        UsageError: it is the directory of the result or inside it, or holds something else than a run.
    """
    if folder.resolve().is_relative_to(result.resolve()):
        raise UsageError(
            f"the run's folder {folder} is in {result}, which is replaced as a whole; name one outside it"
        )
    names = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    others = sorted(
        name for name in names - set(own) if not name.startswith(".")
    )  # a killed writer leaves those
    if others:
        raise UsageError(
            f"the run's folder {folder} holds {others[0]}, which is no run's; name another folder"
        )


class RunLog:
    """One JSON line a step in `log.jsonl`, and the same numbers for TensorBoard; a context manager."""

    def __init__(self, folder: Path, step: int) -> None:
        """Open the logs of a run that is at `step`; rows after it will be written again.

        Raises:
            ShoalError: the folder cannot be written.
        """
        self._path = folder / LOG_FILE
        with failures_named(self._path):
            kept = self._path.read_bytes().splitlines(keepends=True)[:step] if self._path.exists() else []
            write_file(self._path, b"".join(kept))
            self._file = self._path.open("a", encoding="utf-8")
        self._events = _Events(folder / EVENTS, step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the row of a step.

        Raises:
            ShoalError: the disk is full.
        """
        row = {"step": step, **{name: round(value, 6) for name, value in metrics.items()}}
        with failures_named(self._path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        self._events.write(step, metrics)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._events.close()
        try:
            with failures_named(self._path):
                self._file.close()
        except ShoalError:
            if kind is None:  # else the reason is on its way already
                raise


class _Events:
    """TensorBoard's file of events, written step by step: its usual writer fails in a thread of its own."""

    def __init__(self, folder: Path, step: int) -> None:
        """Start a file whose events replace those of earlier files after `step`."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._path = folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"
        with failures_named(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._records = RecordWriter(self._path.open("xb", buffering=0))
        self._add(file_version="brain.Event:2")
        self._add(step=step + 1, session_log={"status": "START"})

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        values = [{"tag": name, "simple_value": value} for name, value in metrics.items()]
        self._add(step=step, summary={"value": values})

    def close(self) -> None:
        self._records.close()  # unbuffered: nothing is left to be written

    def _add(self, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        with failures_named(self._path):
            self._records.write(Event(wall_time=time.time(), **content).SerializeToString())
