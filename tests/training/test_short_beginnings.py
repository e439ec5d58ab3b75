"""A stable-then-decay rate: a short run is the beginning of a long one, and no step is taken twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.config import LoraTrainingConfig
from shoal.errors import UsageError
from shoal.training.checkpoints import Progress
from shoal.training.loop import RunSummary, run
from shoal.training.schedule import rate_share, stable_steps
from tests.training.test_loop import Line


def settings(**changes: Any) -> LoraTrainingConfig:
    return LoraTrainingConfig(
        **{"steps": 20, "checkpoint_every": 100, "warmup_steps": 2, "decay": 0.2, **changes}
    )


def train(line: Line, folder: Path, until: int | None = None, **changes: Any) -> RunSummary:
    return run(line, settings(**changes), folder, show_progress=False, until=until)


def test_the_rate_is_stable_then_falls_in_a_line() -> None:
    shares = [rate_share(Progress(step=step), settings(steps=10, decay=0.4)) for step in range(10)]
    assert shares == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize(
    ("changes", "steps"),
    [({}, 16), ({"steps": 40}, 32), ({"decay": None}, 0), ({"warmup_steps": None}, 0), ({"decay": 1.0}, 0)],
)
def test_the_steps_that_do_not_know_the_length(changes: dict[str, Any], steps: int) -> None:
    assert stable_steps(settings(**changes)) == steps


def test_a_long_run_goes_on_from_a_short_ones_stable_part(tmp_path: Path) -> None:
    whole, trunk, short, long = Line(), Line(), Line(), Line()
    train(whole, tmp_path / "whole", steps=20)
    train(trunk, tmp_path / "trunk", steps=10, until=8)
    shutil.copytree(tmp_path / "trunk", tmp_path / "long")
    train(short, tmp_path / "trunk", steps=10)
    train(long, tmp_path / "long", steps=20)
    assert all(torch.equal(a, b) for a, b in zip(whole.numbers(), long.numbers(), strict=True))
    assert short.passes == [8, 9] and long.passes == list(range(8, 20))


@pytest.mark.parametrize("steps", [10, 9])
def test_a_run_whose_rate_has_fallen_is_of_its_own_length(steps: int, tmp_path: Path) -> None:
    train(Line(), tmp_path, steps=10, until=9)
    if steps == 10:
        assert train(Line(), tmp_path, steps=10).steps == 10
    else:
        with pytest.raises(UsageError, match="another run, with other steps"):
            train(Line(), tmp_path, steps=steps)


def test_a_stable_part_that_is_too_long_is_no_beginning(tmp_path: Path) -> None:
    train(Line(), tmp_path, steps=20, until=12)
    with pytest.raises(UsageError, match="another run, with other decay, steps"):
        train(Line(), tmp_path, steps=10)


def test_a_run_that_stops_in_between_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = Line()
    train(whole, tmp_path / "whole", decay=None)
    for until in (5, 5, 11, None):
        part = Line()
        summary = train(part, tmp_path / "parts", decay=None, until=until)
        assert summary.steps == (until or 20)
    assert all(torch.equal(a, b) for a, b in zip(whole.numbers(), part.numbers(), strict=True))
    rows = [json.loads(line)["step"] for line in (tmp_path / "parts/log.jsonl").read_text().splitlines()]
    assert rows == list(range(1, 21))


def test_a_run_by_the_clock_warms_up_by_a_share(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"warmup_steps 2: .*a run by the clock has no number of steps"):
        LoraTrainingConfig(minutes=1, warmup_steps=2)
