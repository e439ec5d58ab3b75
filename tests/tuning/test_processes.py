"""Processes of a study: killed at random moments it ends as if it had not been, and two lose no trial.

All are forked from one that has imported everything, which takes longer than all else here.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import optuna
import pytest

from shoal.tuning.plan import StudyPlan
from shoal.tuning.recipe import tune
from shoal.tuning.spaces import MODELS
from shoal.tuning.storage import open_storage
from tests.tuning.test_lora_workload import workload
from tests.tuning.toy import toy_space

KILLS, STEPS, LOOKS_APART = 3, 6, 2  # steps between looks, which are fewer than between checkpoints
WRITES = ("open", "os.rename", "os.remove", "os.mkdir", "sqlite3.connect")  # moments that are counted
SPACE = {"learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}}
TRIALS = 100


@pytest.fixture(scope="module")
def forks() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    late = ["alembic.command", "sqlalchemy.dialects.sqlite", "scipy.stats"]  # else imported where first used
    context.set_forkserver_preload(["tests.tuning.test_processes", *late])
    return context


def live(model: Path, folder: Path, moment: int | None) -> None:
    """Go on with a study; die at a moment, counted in writes and optimiser steps."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    seen = 0

    def count(event: str = "open", *rest: Any) -> None:
        nonlocal seen
        if event in WRITES:
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    def step(*rest: Any) -> None:
        (folder / "steps").open("a").write(".")
        count()

    folder.mkdir(exist_ok=True)
    register_optimizer_step_post_hook(step)
    sys.addaudithook(count)
    plan, url = StudyPlan("killed", trials=2), f"sqlite:///{folder / 'study.db'}"
    own = workload(model, training={"steps": STEPS})
    tune(own, toy_space(SPACE), plan, url, folder / "run", folder / "out", MODELS["lora"])
    (folder / "seen").write_text(str(seen))


def ask_and_tell(path: str) -> None:
    study = optuna.load_study(study_name="shared", storage=open_storage(f"journal:{path}"))
    for _ in range(TRIALS):
        trial = study.ask()
        study.tell(trial, trial.suggest_float("x", 0, 1))


def lived(forks: ForkServerContext, *arguments: Any) -> int | None:
    process = forks.Process(target=live, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def ended(folder: Path) -> tuple[Any, ...]:
    """What a study ended with, but for its seconds."""
    verdict = json.loads((folder / "out" / "verdict.json").read_text())
    study = optuna.load_study(study_name="killed", storage=open_storage(f"sqlite:///{folder / 'study.db'}"))
    rows = [
        (
            t.number,
            t.state,
            t.params,
            t.values,
            t.intermediate_values,
            {**t.user_attrs, "seconds": None, "overhead": None},
        )
        for t in study.trials
    ]
    return rows, {**verdict, "seconds": None, "overhead": None}, (folder / "out" / "best.yaml").read_text()


@pytest.mark.slow
def test_a_study_killed_at_random_moments_ends_as_the_whole_one(
    forks: ForkServerContext, tiny_llama: Path, tmp_path: Path
) -> None:
    whole, parts, chance = tmp_path / "whole", tmp_path / "parts", random.Random(0)
    assert lived(forks, tiny_llama, whole, None) == 0
    moments = int((whole / "seen").read_text())
    for _ in range(KILLS):
        killed = lived(forks, tiny_llama, parts, chance.randrange(moments // 10, moments // 3))
        assert killed == -signal.SIGKILL
    assert lived(forks, tiny_llama, parts, None) == 0
    assert ended(parts) == ended(whole)
    steps = [len((folder / "steps").read_text()) for folder in (whole, parts)]
    assert steps[0] <= steps[1] <= steps[0] + KILLS * LOOKS_APART


def test_two_processes_on_a_journal_lose_no_trial(forks: ForkServerContext, tmp_path: Path) -> None:
    path = str(tmp_path / "journal.log")
    study = optuna.create_study(study_name="shared", storage=open_storage(f"journal:{path}"))
    processes = [forks.Process(target=ask_and_tell, args=(path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0]
    assert sorted(t.number for t in study.trials) == list(range(2 * TRIALS))
    assert all(t.value is not None for t in study.trials)
