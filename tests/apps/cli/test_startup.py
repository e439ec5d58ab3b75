"""Commands that compute nothing load no library that computes, so that they answer at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HEAVY = ("torch", "transformers", "numpy", "rich", "tqdm", "huggingface_hub")
COMMANDS = (
    "--help",
    "--version",
    "generate --help",
    "ask --help",
    "train lora --help",
    "adapters export --help",
    "skills",
    "models",
    "adapters list",
    "keys create ada",
    "keys list",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_torch_is_loaded(command: str, tmp_path: Path) -> None:
    code = (
        f"import sys\nsys.argv = ['shoal', *{command.split()}]\nfrom shoal.apps.cli.main import main\n"
        f"try:\n    main()\nfinally:\n    print('LOADED', *({set(HEAVY)} & set(sys.modules)))"
    )
    there = {"PYTHONPATH": str(ROOT), "SHOAL_REGISTRY": str(tmp_path), "SHOAL_CACHE": str(tmp_path / "cache")}
    converted = tmp_path / "cache" / "models" / "smollm2-135m-instruct"
    converted.mkdir(parents=True)
    (converted / "config.json").write_text("{}")  # for `models`, which says where the default is
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **there},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1].split() == ["LOADED"]


def test_the_version() -> None:
    import shoal

    command = [sys.executable, "-m", "shoal", "--version"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.stdout == f"shoal {shoal.__version__}\n" and ended.returncode == 0


def test_listings_say_what_each_command_says() -> None:
    from shoal.apps.cli.main import COMMANDS, Group

    entries = {}
    for name, entry in COMMANDS.items():
        entries.update(
            {f"{name} {n}": e for n, e in entry.commands.items()}
            if isinstance(entry, Group)
            else {name: entry}
        )
    for name, entry in entries.items():
        assert (entry.function().__doc__ or "").splitlines()[0] == entry.summary, name


def test_bad_examples_are_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{}\n")
    for command in ("generate x", "ask x --describe y"):
        code = (
            f"import sys\nsys.argv = ['shoal', *{[*command.split(), '--examples', str(bad)]}]\n"
            "from shoal.apps.cli.main import main\n"
            "try:\n    main()\nfinally:\n    print('torch' in sys.modules)"
        )
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert ended.returncode == 1 and "bad.jsonl" in ended.stderr and ended.stdout == "False\n"
