"""The documented scripts, run as scripts."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["test_sakana_ai_methods.py"], "8 of 8 passed"),
        (["test_larger_model.py"], "Llama"),
        (["benchmark_sakana_ai.py", "--help"], "--quick"),
        (["benchmark_sakana_ai.py", "--methods", "magic"], "unknown method 'magic'"),
    ],
    ids=["methods", "larger", "benchmark", "mistake"],
)
def test_every_documented_script_runs(arguments: list[str], said: str, tmp_path: Path) -> None:
    script, *flags = arguments
    where = ["--out", str(tmp_path / "run")] if "--methods" in flags else []
    command = [sys.executable, str(ROOT / script), *flags, *where]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert said in done.stdout + done.stderr
    assert done.returncode == (2 if where else 0), done.stderr
