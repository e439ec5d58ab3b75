"""Evolution strategies: they climb, resume to the same bits from rewards alone, tell what they cannot."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shoal.config import ExpertTrainingConfig
from shoal.errors import ShoalError, UsageError
from shoal.training.evolution import Fitness, Strategy, evolve
from shoal.training.loop import Interrupted

TIMED = {"tokens_per_second"}


class Hill:
    """Candidates earn more the nearer they are to a point, which moves a little from batch to batch."""

    def __init__(self, before: Callable[[int], object] = lambda forward_pass: None) -> None:
        self.module = nn.ParameterList([nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.ones(8))])
        self.before, self.passes, self.data = before, [], "hill"

    def fitness(self, candidates: Tensor, forward_pass: int) -> Fitness:
        replaced = self.before(forward_pass)
        self.passes.append(forward_pass)
        top = torch.linspace(-1, 1, 20) + 0.01 * (forward_pass % 5)
        rewards = -(candidates - top).square().sum(1)
        return Fitness(replaced if isinstance(replaced, list) else rewards.tolist(), 10 + forward_pass)

    def fingerprint(self) -> str:
        return self.data

    def numbers(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.module])


def settings(**changes: Any) -> ExpertTrainingConfig:
    quick = {"objective": "evolution", "steps": 12, "checkpoint_every": 4, "population": 8, "sigma": 0.3}
    return ExpertTrainingConfig(**{**quick, **changes})


def run(hill: Hill, folder: Path, **changes: Any) -> Any:
    return evolve(hill, settings(**changes), folder, show_progress=False)


def rows_of(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMED} for row in rows]


def test_a_run_climbs_logs_and_sums_up(tmp_path: Path) -> None:
    hill = Hill()
    summary = run(hill, tmp_path, steps=150)
    rows = rows_of(tmp_path)
    assert float((hill.numbers() - torch.linspace(-1, 1, 20)).abs().max()) < 0.1
    assert rows[0].keys() == {"step", "loss", "reward", "best", "useful", "sigma"}
    assert all(row["reward"] == -row["loss"] <= row["best"] for row in rows)
    assert rows[-1]["reward"] > -0.1 > -5 > rows[0]["reward"]
    assert summary.steps == 150 and summary.tokens == sum(10 + n for n in range(150))
    assert summary.final_loss == pytest.approx(sum(row["loss"] for row in rows[-15:]) / 15, abs=1e-5)


def test_progress_is_drawn_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    run(Hill(), tmp_path / "silent")
    silent = capsys.readouterr()
    assert (silent.out, silent.err) == ("", "")
    evolve(Hill(), settings(), tmp_path / "drawn", show_progress=True)
    assert "12/12" in capsys.readouterr().err


@pytest.mark.parametrize("population", [4, 5, 8, 17])
@pytest.mark.parametrize("at", [0, 5, 11])
def test_ctrl_c_and_resume_end_with_the_same_bits(at: int, population: int, tmp_path: Path) -> None:
    """Generations in which all earn the same are among those that are told again."""

    def flat(forward_pass: int) -> object:
        return [0.5] * population if forward_pass in (4, 7, 8) else None

    def stopped(forward_pass: int) -> object:
        if forward_pass == at:
            signal.raise_signal(signal.SIGINT)
        return flat(forward_pass)

    whole, cut, resumed = Hill(flat), Hill(stopped), Hill(flat)
    expected = run(whole, tmp_path / "whole", population=population)
    with pytest.raises(Interrupted, match=f"after step {at + 1} of 12; run again to resume"):
        run(cut, tmp_path / "run", population=population)
    summary = run(resumed, tmp_path / "run", population=population)
    assert resumed.passes == list(range(at + 1, 12))
    assert torch.equal(resumed.numbers(), whole.numbers())
    assert (summary.tokens, summary.final_loss) == (expected.tokens, expected.final_loss)
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")


def test_a_kill_between_checkpoints_changes_nothing(tmp_path: Path) -> None:
    class Killed(BaseException):
        """Ends the run as it stands."""

    def kill(forward_pass: int) -> None:
        if forward_pass == 10:
            raise Killed

    whole, resumed = Hill(), Hill()
    run(whole, tmp_path / "whole")
    with pytest.raises(Killed):
        run(Hill(kill), tmp_path / "run")
    run(resumed, tmp_path / "run")
    assert resumed.passes == [8, 9, 10, 11] and torch.equal(resumed.numbers(), whole.numbers())
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")
    again = Hill()
    run(again, tmp_path / "run")
    assert again.passes == [] and torch.equal(again.numbers(), whole.numbers())


def test_no_global_generator_decides(tmp_path: Path) -> None:
    one, other, third = Hill(), Hill(), Hill()
    run(one, tmp_path / "one")
    np.random.seed(5)
    torch.manual_seed(5)
    run(other, tmp_path / "other")
    run(third, tmp_path / "third", seed=1)
    assert torch.equal(one.numbers(), other.numbers()) and not torch.equal(one.numbers(), third.numbers())


def test_batches_of_a_generation_are_averaged(tmp_path: Path) -> None:
    hill = Hill()
    summary = run(hill, tmp_path, accumulation=3, steps=4)
    assert hill.passes == list(range(12)) and summary.tokens == sum(10 + n for n in range(12))
    assert rows_of(tmp_path)[0]["reward"] > -100


def test_equal_rewards_are_tried_again(tmp_path: Path) -> None:
    tried: list[Tensor] = []

    class Watched(Hill):
        def fitness(self, candidates: Tensor, forward_pass: int) -> Fitness:
            tried.append(candidates)
            return super().fitness(candidates, forward_pass)

    run(Watched(lambda forward_pass: [0.5] * 8 if forward_pass in (3, 4) else None), tmp_path)
    same = [torch.equal(a, b) for a, b in zip(tried, tried[1:], strict=False)]
    assert [step for step, equal in enumerate(same) if equal] == [3, 4]


def test_equal_rewards_teach_nothing(tmp_path: Path) -> None:
    hill = Hill(lambda forward_pass: [0.25] * 8)
    start = hill.numbers()
    run(hill, tmp_path)
    assert torch.equal(hill.numbers(), start)
    assert {(row["useful"], row["sigma"], row["reward"]) for row in rows_of(tmp_path)} == {(0.0, 0.3, 0.25)}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rewards_that_are_not_finite(value: float, tmp_path: Path) -> None:
    hill = Hill(lambda number: [0.0] * 7 + [value] if number == 9 else None)
    with pytest.raises(
        ShoalError, match=rf"reward {value} .* step 10 is not finite; lower sigma \(now 0.3\)"
    ):
        run(hill, tmp_path)
    resumed = Hill()
    run(resumed, tmp_path)
    assert resumed.passes == [8, 9, 10, 11]


@pytest.mark.parametrize("change", [{"population": 9}, {"sigma": 0.2}, {"steps": 13}, {"seed": 1}], ids=str)
def test_another_run_s_folder_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    run(Hill(), tmp_path)
    with pytest.raises(UsageError, match=f"another run, with other {next(iter(change))}; use a new folder"):
        run(Hill(), tmp_path, **change)
    other = Hill()
    other.data = "other"
    with pytest.raises(UsageError, match="another run, with other data"):
        run(other, tmp_path)


def drop_generation(rewards: list[list[float]]) -> object:
    return rewards.pop()


def drop_candidate(rewards: list[list[float]]) -> object:
    return rewards[3].pop()


def change_order(rewards: list[list[float]]) -> object:
    return rewards[3].reverse()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (drop_generation, "damaged .11 generations of rewards, not 12.; delete it"),
        (drop_candidate, "damaged .7 rewards in a generation.; delete it"),
        (change_order, "12 generations of .* again leads elsewhere: another version of cma or numpy"),
    ],
)
def test_damaged_checkpoints(
    damage: Callable[[list[list[float]]], object], says: str, tmp_path: Path
) -> None:
    run(Hill(), tmp_path)
    file = tmp_path / "checkpoint" / "state.json"
    state = json.loads(file.read_text())
    damage(state["progress"]["rewards"])
    file.write_text(json.dumps(state))
    with pytest.raises(ShoalError, match=says):
        run(Hill(), tmp_path)


def test_one_parameter_is_too_few() -> None:
    with pytest.raises(UsageError, match="at least 2 parameters, got 1"):
        Strategy(torch.zeros(1), 4, 0.1, 0)


def test_candidates_spread_by_sigma() -> None:
    strategy = Strategy(torch.full((5000,), 2.0), 8, 0.05, 3)
    candidates = strategy.ask()
    assert candidates.shape == (8, 5000) and candidates.dtype == torch.float32
    assert float(candidates.mean()) == pytest.approx(2, abs=1e-3)
    assert float(candidates.std()) == pytest.approx(0.05, rel=0.05)
