"""On what something was measured: machine, versions, commit. Reads; decides nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("torch", "transformers", "safetensors", "peft", "sacrebleu", "rouge-score", "numpy", "gguf")


def environment() -> dict[str, Any]:
    """Processor, cores, threads, memory-independent facts of the system, versions, and the commit.

    `commit` is that of the repository which holds this file, with `+` where its files were changed since;
    None outside a repository.
    """
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in ("shoal", *LIBRARIES) if (found := _version(name))},
        "commit": commit(),
    }


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8", "replace").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str | None:
    """The short hash of the repository's commit, if there is one."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", __file__) is None:  # an installed copy inside another repository
        return None
    head, changes = git("rev-parse", "--short=12", "HEAD"), git("status", "--porcelain", "-uno")
    return f"{head}{'+' if changes else ''}" if head else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
