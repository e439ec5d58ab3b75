"""Stages of long commands: printed when they last, and not before."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shoal.apps.cli.progress import StageHandler

ROOT = Path(__file__).resolve().parents[3]


def record(text: str, level: int = logging.INFO, name: str = "shoal.models") -> logging.LogRecord:
    return logging.LogRecord(name, level, __file__, 1, text, None, None)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that were printed; what waits for one waits until it is printed."""
    stages: list[str] = []
    monkeypatch.setattr("shoal.apps.cli.progress._say", stages.append)
    return stages


def wait_for_timers() -> None:
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join()


def test_a_stage_that_lasts_is_printed(said: list[str]) -> None:
    StageHandler(patience=0.0).emit(record("loading"))
    wait_for_timers()
    assert said == ["loading"]


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
def test_a_stage_that_another_line_follows_is_not(said: list[str], level: int) -> None:
    handler = StageHandler(patience=60.0)
    handler.emit(record("loading"))
    handler.emit(record("converting", level))
    handler.stop()
    wait_for_timers()
    assert said == []


def test_stages_of_other_libraries_are_not_printed(said: list[str]) -> None:
    StageHandler(patience=0.0).emit(record("GET /", name="httpx"))
    wait_for_timers()
    assert said == []


def test_verbose_logs_every_stage(tmp_path: Path, tiny_llama: Path) -> None:
    command = [sys.executable, "-m", "shoal", "-v", "ask", "hi", "--max-new-tokens", "1"]
    ended = subprocess.run(
        [*command, "--base", str(tiny_llama)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert ended.returncode == 0
    assert f"INFO: loading the base model {tiny_llama} on " in ended.stderr
