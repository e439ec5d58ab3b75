"""Our storage beside optuna-dashboard, which runs as a program of another environment.

python -m venv dashboard && dashboard/bin/pip install optuna-dashboard==0.21.0
SHOAL_DASHBOARD=dashboard/bin/optuna-dashboard python -m pytest tests/tuning/test_dashboard.py
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from shoal.tuning.plan import StudyPlan
from shoal.tuning.recipe import tune
from shoal.tuning.spaces import MODELS
from tests.fixtures.service import wait_until
from tests.tuning.toy import ToyWorkload, toy_space

PROGRAM = os.environ.get("SHOAL_DASHBOARD") or shutil.which("optuna-dashboard")
TRIALS = 6

pytestmark = pytest.mark.slow


@pytest.fixture(params=["sqlite:///", "journal:"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What Optuna's own programs call the storage of a study that we have written."""
    url, models = f"{request.param}{tmp_path / 'study'}", MODELS["lora"]
    plan = StudyPlan("rates", trials=TRIALS)
    tune(ToyWorkload(), toy_space(), plan, url, tmp_path / "run", tmp_path / "out", models)
    return url.removeprefix("journal:")


def test_optunas_own_command_lists_the_study(storage: str) -> None:
    command = [Path(sys.executable).with_name("optuna"), "studies", "--storage", storage, "-f", "json"]
    (study,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert study["name"] == "rates" and study["n_trials"] == TRIALS


def test_the_dashboard_shows_trials_curves_and_importance(storage: str) -> None:
    if PROGRAM is None:
        pytest.skip("no dashboard: set SHOAL_DASHBOARD to the optuna-dashboard 0.21 of an environment")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def ask(path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
            return json.load(answer)

    def answers() -> bool:
        try:
            return bool(ask("/api/studies"))
        except OSError:
            return False

    process = subprocess.Popen(
        [PROGRAM, storage, "--host", "127.0.0.1", "--port", str(port)], stderr=subprocess.DEVNULL
    )
    try:
        wait_until(answers, 120)
        (summary,) = ask("/api/studies")["study_summaries"]
        study = ask(f"/api/studies/{summary['study_id']}")
        shown = {attribute["key"] for attribute in study["trials"][0]["user_attrs"]}
        assert summary["study_name"] == "rates" and len(study["trials"]) == TRIALS
        assert study["has_intermediate_values"] and study["trials"][0]["values"]
        assert {"settings", "seed", "tokens", "seconds", "adapter_sha256"} <= shown
        assert "verdict" in {attribute["key"] for attribute in study["user_attrs"]}
        importance = ask(f"/api/studies/{summary['study_id']}/param_importances")
        assert {row["name"] for rows in importance["param_importances"] for row in rows} >= {"learning_rate"}
    finally:
        process.terminate()
        process.wait(30)
