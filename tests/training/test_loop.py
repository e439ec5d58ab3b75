"""The loop: killed and resumed ends with the same bits, two processes are one with twice the accumulation."""

from __future__ import annotations

import json
import logging
import math
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shoal.config import LoraTrainingConfig
from shoal.errors import ShoalError, UsageError
from shoal.models.backbone import Backbone
from shoal.training.loop import Interrupted, RunSummary, StepLoss, run
from shoal.training.schedule import schedule

KINDS = ("lora", "hypernetwork", "reconstruction", "expert", "evolution")


class Line:
    """Fits a line with dropout; each forward pass has an example of its own."""

    def __init__(self, before_loss: Callable[[int], object] = lambda forward_pass: None) -> None:
        self.module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3), nn.Linear(4, 1))
        with torch.no_grad():
            for number, p in enumerate(self.module.parameters()):
                p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p) + number / 10)
        self.before_loss = before_loss
        self.passes: list[int] = []
        self.data = "line"

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.module.parameters()), "lr": 0.01}]

    def loss(self, forward_pass: int) -> StepLoss:
        self.before_loss(forward_pass)
        self.passes.append(forward_pass)
        x = torch.linspace(0, 1, 4) * (1 + forward_pass % 5)
        loss = (self.module(x) - x.sum()).square().mean()
        return StepLoss(loss, tokens=10 + forward_pass, metrics={"noise": float(torch.rand(()))})

    def fingerprint(self) -> str:
        return self.data

    def numbers(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.module.parameters()]


def settings(**changes: Any) -> LoraTrainingConfig:
    return LoraTrainingConfig(**{"steps": 12, "checkpoint_every": 4, **changes})


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def stop_at(forward_pass: int) -> Callable[[int], object]:
    """Press Ctrl-C in the middle of a step."""
    return lambda number: signal.raise_signal(signal.SIGINT) if number == forward_pass else None


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_run_learns_logs_and_sums_up(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = Line()
    before = torch.get_rng_state()
    summary = run(line, settings(steps=200), tmp_path, show_progress=False)
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 201))
    assert rows[-1]["loss"] < 0.2 * rows[0]["loss"]
    assert rows[0].keys() == {"step", "loss", "gradient_norm", "rate", "tokens_per_second", "noise"}
    assert summary.steps == 200 and summary.tokens == sum(10 + n for n in range(200)) and summary.seconds > 0
    assert summary.final_loss == pytest.approx(sum(row["loss"] for row in rows[-20:]) / 20, abs=1e-5)
    assert list((tmp_path / "tensorboard").iterdir())
    assert not line.module.training and torch.equal(torch.get_rng_state(), before)
    assert capfd.readouterr().err == ""


def test_progress_is_drawn_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    run(Line(), settings(), tmp_path, show_progress=True)
    assert "12/12" in capsys.readouterr().err


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first = run(Line(), settings(), tmp_path, show_progress=False)
    line = Line()
    assert run(line, settings(), tmp_path, show_progress=False) == first
    assert line.passes == [] and len(rows_of(tmp_path)) == 12


def test_the_result_can_be_the_mean_of_the_weights(tmp_path: Path) -> None:
    plain, averaged, resumed = Line(), Line(), Line(stop_at(6))
    run(plain, settings(), tmp_path / "plain", show_progress=False)
    run(averaged, settings(average_decay=0.8), tmp_path / "averaged", show_progress=False)
    assert not equal(plain.numbers(), averaged.numbers())
    with pytest.raises(Interrupted):
        run(resumed, settings(average_decay=0.8), tmp_path / "resumed", show_progress=False)
    again = Line()
    run(again, settings(average_decay=0.8), tmp_path / "resumed", show_progress=False)
    assert equal(again.numbers(), averaged.numbers())
    run(finished := Line(), settings(average_decay=0.8), tmp_path / "averaged", show_progress=False)
    assert equal(finished.numbers(), averaged.numbers())


class TwoGroups(Line):
    """A line whose two layers are groups of their own, with gradients of very different size."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": list(layer.parameters()), "lr": 0.01} for layer in (self.module[0], self.module[2])
        ]

    def loss(self, forward_pass: int) -> StepLoss:
        result = super().loss(forward_pass)
        return StepLoss(1000 * result.loss, result.tokens)


def test_groups_of_parameters_are_clipped_apart(tmp_path: Path) -> None:
    norms = {}
    for apart in (False, True):
        config = settings(steps=1, clip_norm=0.5, clip_apart=apart, warmup=0)
        clipped: list[list[float]] = []
        lines = TwoGroups()
        original = torch.optim.AdamW.step

        def step(self: torch.optim.AdamW, *args: Any, into: Any = clipped, run_step: Any = original) -> Any:
            groups = [[p.grad.norm() for p in group["params"]] for group in self.param_groups]
            into.append([float(torch.stack(group).norm()) for group in groups])
            return run_step(self, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", step)
            run(lines, config, tmp_path / str(apart), show_progress=False)
        norms[apart] = clipped[0]
    assert math.hypot(*norms[False]) == pytest.approx(0.5, rel=1e-4)
    assert norms[True] == pytest.approx([0.5, 0.5], rel=1e-4)


@pytest.mark.parametrize("at", [0, 3, 5, 11])
def test_ctrl_c_ends_after_a_whole_step(at: int, tmp_path: Path) -> None:
    whole = Line()
    expected = run(whole, settings(), tmp_path / "whole", show_progress=False)
    stopped = Line(stop_at(at))
    message = f"interrupted after step {at + 1} of 12; run again to resume {tmp_path / 'run'}"
    with pytest.raises(Interrupted, match=message):
        run(stopped, settings(), tmp_path / "run", show_progress=False)
    assert stopped.passes == list(range(at + 1)) and not stopped.module.training
    assert len(rows_of(tmp_path / "run")) == at + 1
    resumed = Line()
    summary = run(resumed, settings(), tmp_path / "run", show_progress=False)
    assert resumed.passes == list(range(at + 1, 12))
    assert equal(resumed.numbers(), whole.numbers())
    assert (summary.tokens, summary.final_loss) == (expected.tokens, expected.final_loss)
    timed = {"tokens_per_second"}
    for ours, theirs in zip(rows_of(tmp_path / "run"), rows_of(tmp_path / "whole"), strict=True):
        assert {n: v for n, v in ours.items() if n not in timed} == {
            n: v for n, v in theirs.items() if n not in timed
        }


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def twice(forward_pass: int) -> None:
        for _ in range(2 if forward_pass == 6 else 0):
            signal.raise_signal(signal.SIGINT)

    own = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(Line(twice), settings(), tmp_path, show_progress=False)
    assert signal.getsignal(signal.SIGINT) is own
    resumed, whole = Line(), Line()
    run(resumed, settings(), tmp_path, show_progress=False)
    run(whole, settings(), tmp_path / "whole", show_progress=False)
    assert resumed.passes == list(range(4, 12)) and equal(resumed.numbers(), whole.numbers())


def test_a_run_in_a_thread_leaves_signals_alone(tmp_path: Path) -> None:
    summaries: list[RunSummary] = []
    thread = threading.Thread(
        target=lambda: summaries.append(run(Line(), settings(), tmp_path, show_progress=False))
    )
    thread.start()
    thread.join()
    assert summaries[0].steps == 12


@pytest.mark.parametrize("change", [{"learning_rate": 2e-3}, {"steps": 13}, {"seed": 1}], ids=str)
def test_a_run_is_not_resumed_with_another_configuration(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(Line(stop_at(2)), settings(), tmp_path, show_progress=False)
    with pytest.raises(UsageError, match=f"another run, with other {next(iter(change))}; use a new folder"):
        run(Line(), settings(**change), tmp_path, show_progress=False)
    other = Line()
    other.data = "other"
    with pytest.raises(UsageError, match="another run, with other data; use a new folder"):
        run(other, settings(), tmp_path, show_progress=False)
    run(Line(), settings(checkpoint_every=1), tmp_path, show_progress=False)  # how often may change


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_losses_that_are_not_finite(value: float, tmp_path: Path) -> None:
    line = Line()

    def break_it(forward_pass: int) -> None:
        if forward_pass == 9:
            with torch.no_grad():
                line.module[2].bias.fill_(value)

    line.before_loss = break_it
    with pytest.raises(ShoalError, match=rf"loss {value} .* of step 10 is not finite; lower .*\(now 0.001\)"):
        run(line, settings(), tmp_path, show_progress=False)
    resumed = Line()
    run(resumed, settings(), tmp_path, show_progress=False)
    assert resumed.passes == list(range(8, 12))


@pytest.mark.parametrize("parts", [2, 3])
def test_accumulated_passes_are_one_larger_batch(parts: int, tmp_path: Path) -> None:
    class Joined(Line):
        """Every pass is `parts` passes of the line without dropout."""

        def loss(self, forward_pass: int) -> StepLoss:
            own = [super(Joined, self).loss(forward_pass * parts + n) for n in range(parts)]
            loss = torch.stack([part.loss for part in own]).mean()
            return StepLoss(loss, sum(part.tokens for part in own))

    joined, accumulated = Joined(), Line()
    joined.module[1].p = accumulated.module[1].p = 0.0
    one = run(joined, settings(), tmp_path / "joined", show_progress=False)
    many = run(accumulated, settings(accumulation=parts), tmp_path / "parts", show_progress=False)
    assert accumulated.passes == joined.passes == list(range(12 * parts))
    assert one.tokens == many.tokens and one.final_loss == pytest.approx(many.final_loss, rel=1e-4)
    for ours, theirs in zip(accumulated.numbers(), joined.numbers(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_the_monitor_is_asked_at_checkpoints(tmp_path: Path) -> None:
    line = Line()
    modes: list[bool] = []

    def monitor() -> Mapping[str, float]:
        modes.append(line.module.training)
        return {"unseen_loss": 2.5}

    run(line, settings(steps=10), tmp_path, monitor=monitor, show_progress=False)
    assert [row["step"] for row in rows_of(tmp_path) if "unseen_loss" in row] == [4, 8, 10]
    assert modes == [False] * 3


def test_the_schedule_rises_and_falls_in_lines() -> None:
    rates = [schedule(step, 10, 0.4) for step in range(10)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert schedule(0, 5, 0.0) == 1.0
    assert [schedule(step, 3, 1.0) for step in range(3)] == pytest.approx([1 / 3, 2 / 3, 1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_resumes_to_the_same_bits(
    kind: str,
    toy: ModuleType,
    backbone: Backbone,
    tmp_path: Path,
    start_toy: Callable[..., subprocess.Popen[str]],
    wait_for_rows: Callable[[subprocess.Popen[str], Path, int], None],
) -> None:
    options = {"steps": 60, "batch_size": 6, "checkpoint_every": 1, "accumulation": 2}
    expected, summary = toy.TRAININGS[kind](backbone, tmp_path / "whole", **options)
    chance = random.Random()
    process = start_toy(kind, tmp_path, **options)
    wait_for_rows(process, tmp_path / kind, chance.randrange(2, 30))
    time.sleep(chance.random() * 0.05)  # in a step, in the log, or in the writing of a checkpoint
    process.kill()
    process.communicate()
    done = len(rows_of(tmp_path / kind)) if process.returncode != 0 else 60
    assert process.returncode == -signal.SIGKILL and done < 60, "the run was faster than its killer"
    resumed, again = toy.TRAININGS[kind](backbone, tmp_path / kind, **options)
    assert equal(resumed, expected)
    assert [row["step"] for row in rows_of(tmp_path / kind)] == list(range(1, 61))
    assert (again.tokens, again.final_loss) == (summary.tokens, summary.final_loss)
    assert [p.name for p in (tmp_path / kind).glob(".*")] == []  # nothing half-written stays


@pytest.mark.slow
def test_ctrl_c_in_a_terminal(
    toy: ModuleType,
    backbone: Backbone,
    tmp_path: Path,
    start_toy: Callable[..., subprocess.Popen[str]],
    wait_for_rows: Callable[[subprocess.Popen[str], Path, int], None],
) -> None:
    options = {"steps": 5000, "batch_size": 6, "checkpoint_every": 5000}
    process = start_toy("lora", tmp_path, **options)
    wait_for_rows(process, tmp_path / "lora", 3)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=120)
    done = len(rows_of(tmp_path / "lora"))
    assert (process.returncode, out) == (1, "")
    line = f"Interrupted: interrupted after step {done} of 5000; run again to resume {tmp_path / 'lora'}"
    assert errors.splitlines() == [line]
    state = json.loads((tmp_path / "lora" / "checkpoint" / "state.json").read_text())
    assert state["progress"]["step"] == done


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_accumulation(
    toy: ModuleType, backbone: Backbone, tmp_path: Path, start_toy: Callable[..., subprocess.Popen[str]]
) -> None:
    options = {"steps": 5, "batch_size": 6, "checkpoint_every": 5}
    # `accelerate launch --cpu` starts one process, whatever number it is given; torchrun starts as many.
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = start_toy(",".join(KINDS), tmp_path, launcher=launcher, **options)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    for kind in KINDS:
        expected, summary = toy.TRAININGS[kind](backbone, tmp_path / "one" / kind, accumulation=2, **options)
        ours, theirs = rows_of(tmp_path / kind), rows_of(tmp_path / "one" / kind)
        assert [row["step"] for row in ours] == [1, 2, 3, 4, 5]
        for one, two in zip(theirs, ours, strict=True):
            names = one.keys() - {"tokens_per_second"}
            assert {n: two[n] for n in names} == pytest.approx({n: one[n] for n in names}, abs=2e-5, rel=1e-4)
        with pytest.raises(UsageError, match="another run, with other processes; use a new folder"):
            toy.TRAININGS[kind](backbone, tmp_path / kind, **options)
        state = json.loads((tmp_path / kind / "checkpoint" / "state.json").read_text())
        assert state["progress"]["tokens"] == summary.tokens
        state["identity"]["processes"] = 1  # the run is over: read what it ended with
        (tmp_path / kind / "checkpoint" / "state.json").write_text(json.dumps(state))
        trained, _ = toy.TRAININGS[kind](backbone, tmp_path / kind, **options)
        for mine, other in zip(trained, expected, strict=True):
            torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def test_resuming_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Interrupted):
        run(Line(stop_at(2)), settings(), tmp_path, show_progress=False)
    with caplog.at_level(logging.INFO):
        run(Line(), settings(), tmp_path, show_progress=False)
    assert f"resumed {tmp_path / 'checkpoint'} at step 3" in caplog.text


def clocked(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Every look at the clock is so much later than the last, and a step looks twice."""
    now = iter(range(10**6))
    monkeypatch.setattr("shoal.training.loop.time.perf_counter", lambda: next(now) * seconds)


def test_a_run_by_the_clock_ends_in_time_with_its_rate_at_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocked(monkeypatch, 6.0)
    summary = run(Line(), settings(minutes=1, steps=3, warmup=0.2), tmp_path)
    assert (summary.steps, summary.seconds) == (10, 60.0)
    rates = [json.loads(line)["rate"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert max(rates) == 1.0 and rates[2:] == sorted(rates[2:], reverse=True) and rates[-1] < 0.2


def test_a_run_by_the_clock_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clocked(monkeypatch, 6.0)

    def interrupt(forward_pass: int) -> None:
        if forward_pass == 3 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="after step 4 of a run of 1 minutes"):
        run(Line(interrupt), settings(minutes=1), tmp_path / "run")
    summary = run(Line(interrupt), settings(minutes=1), tmp_path / "run")
    assert (summary.steps, summary.seconds) == (10, 60.0)
