"""How far a run is, where standard error is a terminal and where it is a file."""

from __future__ import annotations

import pytest

from shoal.training import progress
from shoal.training.progress import ProgressDisplay


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the display reads; append to it to move on."""
    times = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: times[-1])
    return times


def test_a_line_every_ten_seconds_where_there_is_no_terminal(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressDisplay(100, 0) as display:
        for second in range(25):
            clock.append(second + 1.0)
            display.advance(2.5)
    assert capsys.readouterr().err.splitlines() == [
        "step 10 of 100, loss 2.500, 1.0 steps/s, 01:30 left",
        "step 20 of 100, loss 2.500, 1.0 steps/s, 01:20 left",
    ]


def test_a_slow_step_is_told_in_seconds(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay(4, 0) as display:
        clock.append(20.0)
        display.advance(1.0)
    assert "20.0 s/step, 01:00 left" in capsys.readouterr().err


def test_a_run_by_the_clock_says_what_is_left_of_it(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressDisplay(None, 0) as display:
        clock.append(20.0)
        display.advance(1.0, 340.0)
    assert capsys.readouterr().err == "step 1, loss 1.000, 20.0 s/step, 05:40 left\n"


def test_it_says_where_it_resumes(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay(100, 40) as display:
        clock.append(10.0)
        display.advance(1.0)
    assert capsys.readouterr().err.startswith("resuming at step 40 of 100\nstep 41 of 100")


def test_what_is_hidden_prints_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay(2, 1, shown=False) as display:
        clock.append(60.0)
        display.advance(1.0)
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with ProgressDisplay(2, 0) as display:
        clock.append(60.0)
        display.advance(1.5)
        display.advance(1.5)
    shown = capsys.readouterr().err
    assert "100%" in shown and "loss=1.500" in shown and "step 1 of 2" not in shown
