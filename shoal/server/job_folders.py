"""The folder that a job's process reads: its command, its settings and its data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal.config import ServiceConfig
from shoal.errors import ShoalError, UsageError
from shoal.tasks.loading import load_jsonl

SETTINGS, COMMAND = "settings.json", "command.json"


def write_command(folder: Path, words: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Keep the command of a job and its settings."""
    (folder / SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
    (folder / COMMAND).write_text(json.dumps(list(words)), encoding="utf-8")


def read_command(folder: Path) -> list[str]:
    """The arguments of `shoal` for a job."""
    words: list[str] = json.loads((folder / COMMAND).read_text(encoding="utf-8"))
    return [*words, "--config", str(folder / SETTINGS)]


def last_words(folder: Path, *others: Path) -> str:
    """The error that a job's process ended with, cut, without the paths of its folder and of others."""
    said = (folder / "output.txt").read_text(errors="replace").strip().splitlines() or ["no word"]
    message = said[-1].removeprefix("error: ")
    for path in (folder, *others):
        message = message.replace(f"{path}/", "")
    return message[:500]


def owner_folder(root: Path, owner: str) -> Path:
    """The directory of an owner's libraries; `root` is the registry's."""
    return root / "libraries" / hashlib.sha256(owner.encode()).hexdigest()[:32]


def write_training(
    folder: Path,
    examples: bytes,
    definition: str,
    steps: int,
    rank: int,
    *,
    base: str,
    layers: int,
    config: ServiceConfig,
) -> None:
    """The folder of a training on uploaded examples.

    Raises:
        UsageError: the examples cannot be read.
    """
    file = folder / "examples.jsonl"
    file.write_bytes(examples)
    try:
        load_jsonl(file, definition=definition, test_size=0, max_bytes=config.max_training_bytes)
    except UsageError:
        raise
    except ShoalError as error:
        raise UsageError(str(error).replace(f"{folder}/", "")) from None
    settings = {
        "base": base,
        "tasks": str(file),
        "definition": definition,
        "test_size": 0,
        "steps": steps,
        "adapter_rank": rank,
        "adapter_alpha": 2 * rank,
        "checkpoint_every": steps,
        "num_layers_to_adapt": layers,
        "out": str(folder / "adapter"),
        "run": str(folder / "run"),
    }
    write_command(folder, ("train", "lora"), settings)
