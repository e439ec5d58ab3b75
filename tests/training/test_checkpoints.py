"""What a run leaves: a checkpoint that is whole or refused, and exactly one row a step."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from shoal.errors import ShoalError, UsageError
from shoal.training.checkpoints import (
    LOG_FILE,
    STATE_FILE,
    TENSORS_FILE,
    Progress,
    RunLog,
    check_run_folder,
    load_checkpoint,
    save_checkpoint,
)

ROOT = Path(__file__).resolve().parents[2]
IDENTITY = {"config": {"learning_rate": 0.1, "steps": 9}, "data": "abc", "processes": 1}


def network() -> nn.Module:
    """Two maps, of which only the second is trained, with names that end alike."""
    model = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.ModuleDict({"a": nn.Linear(2, 1)})})
    model["a"].requires_grad_(False)
    return model


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model["b"]["a"](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint after two steps."""
    model = network()
    optimizer = optimizer_of(model)
    stepped(model, optimizer)
    stepped(model, optimizer)
    progress = Progress(2, 30, 1.5, [0.1 + 0.2, 1 / 3])
    save_checkpoint(tmp_path / "checkpoint", model, optimizer, IDENTITY, progress)
    return tmp_path / "checkpoint"


def load(folder: Path, identity: dict[str, Any] = IDENTITY) -> Progress:
    model = network()
    return load_checkpoint(folder, model, optimizer_of(model), identity)


def test_going_on_is_as_if_nothing_had_happened(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = network()
    optimizer = optimizer_of(model)
    stepped(model, optimizer)
    progress = Progress(1, 7, 0.25, [2 / 3])
    save_checkpoint(tmp_path / "checkpoint", model, optimizer, IDENTITY, progress)
    other = network()
    resumed = optimizer_of(other)
    assert load_checkpoint(tmp_path / "checkpoint", other, resumed, IDENTITY) == progress
    for _ in range(3):
        stepped(model, optimizer)
        stepped(other, resumed)
    for ours, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_without_a_checkpoint_a_run_starts(tmp_path: Path) -> None:
    assert load(tmp_path / "checkpoint") == Progress()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"learning_rate": 0.2, "steps": 9}}, "with other learning_rate; use a new folder"),
        ({"config": {"learning_rate": 0.2, "steps": 8}}, "with other learning_rate, steps;"),
        ({"config": {"learning_rate": 0.1, "steps": 9, "new": 1}}, "with other new;"),
        ({"data": "abd"}, "with other data;"),
        ({"processes": 2}, "with other processes;"),
    ],
    ids=str,
)
def test_another_run_is_refused(change: dict[str, Any], message: str, saved: Path) -> None:
    with pytest.raises(UsageError, match=f"checkpoint of another run, {message}"):
        load(saved, {**IDENTITY, **change})


def change_state(**values: Any) -> Callable[[Path], object]:
    def changed(folder: Path) -> None:
        state = json.loads((folder / STATE_FILE).read_text())
        (folder / STATE_FILE).write_text(json.dumps({**state, **values}))

    return changed


def change_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def changed(folder: Path) -> None:
        tensors = load_file(folder / TENSORS_FILE)
        change(tensors)
        save_file(tensors, folder / TENSORS_FILE)

    return changed


WEIGHT = "parameter.b.a.weight"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no state": (lambda f: (f / STATE_FILE).unlink(), "no such file"),
    "no tensors": (lambda f: (f / TENSORS_FILE).unlink(), "no such file"),
    "truncated": (
        lambda f: (f / TENSORS_FILE).write_bytes((f / TENSORS_FILE).read_bytes()[:-4]),
        "not a whole",
    ),
    "no progress": (change_state(progress=None), "damaged"),
    "odd progress": (change_state(progress={"step": 1, "odd": 2}), "damaged .*odd"),
    "a tensor missing": (change_tensors(lambda t: t.pop(WEIGHT)), f"damaged .*{WEIGHT}"),
    "a moment missing": (change_tensors(lambda t: t.pop("optimizer.exp_avg.b.a.bias")), "damaged .*exp_avg"),
    "one number for all": (
        change_tensors(lambda t: t.update({WEIGHT: torch.ones(1)})),
        "damaged .b.a.weight has another shape.; delete it to start over",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoints(damage: str, saved: Path) -> None:
    inflict, message = DAMAGE[damage]
    inflict(saved)
    with pytest.raises(ShoalError, match=message) as caught:
        load(saved)
    assert not isinstance(caught.value, UsageError) and "\n" not in str(caught.value)


def test_rows_after_the_checkpoint_are_written_again(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": 1.0 / step})
    with (tmp_path / LOG_FILE).open("a") as file:
        file.write('{"step": 4, "lo')  # killed in the middle of a row
    with RunLog(tmp_path, 2) as log:
        for step in (3, 4):
            log.write(step, {"loss": 10.0})
    rows = [json.loads(line) for line in (tmp_path / LOG_FILE).read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 0.5), (3, 10.0), (4, 10.0)]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    seen = [(event.step, round(event.value, 6)) for event in events.Scalars("loss")]
    assert seen == [(1, 1.0), (2, 0.5), (3, 10.0), (4, 10.0)]


def test_bytes_that_are_no_text_after_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / LOG_FILE).write_bytes(b'{"step": 1}\n\xff\xfe\n')
    with RunLog(tmp_path, 1) as log:
        log.write(2, {})
    assert (tmp_path / LOG_FILE).read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_a_killed_writer_s_leftovers_are_no_obstacle(saved: Path, tmp_path: Path) -> None:
    run = saved.parent
    (run / ".checkpoint.abc123.tmp").mkdir()
    check_run_folder(run, tmp_path / "elsewhere" / "result")
    (run / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="notes.txt, which is no run's"):
        check_run_folder(run, tmp_path / "elsewhere" / "result")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ShoalError, match="cannot write .*log.jsonl: a part of this path is a file"):
        RunLog(tmp_path / "file", 0)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from shoal.errors import ShoalError
from shoal.training.checkpoints import Progress, RunLog, save_checkpoint
folder = Path(sys.argv[1])
model = torch.nn.Linear(8, 8)
optimizer = torch.optim.AdamW(model.parameters())
save_checkpoint(folder / "checkpoint", model, optimizer, {}, Progress(1))
log = RunLog(folder, 0)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # bytes a file may have, as a full disk would end it
for attempt in ("checkpoint", "log"):
    try:
        if attempt == "checkpoint":
            save_checkpoint(folder / "checkpoint", torch.nn.Linear(99, 99), optimizer, {}, Progress(2))
        else:
            for step in range(1000):
                log.write(step, {"loss": 0.1})
    except ShoalError as error:
        print(attempt, error)
"""


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = ended.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["checkpoint", "log"], ended
    assert all("cannot write" in line and "limit" in line for line in lines[1:]) and not ended.stderr
    assert json.loads((tmp_path / "checkpoint" / STATE_FILE).read_text())["progress"]["step"] == 1
    assert [p.name for p in tmp_path.glob(".*")] == []
