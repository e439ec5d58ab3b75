"""What every measured table is headed by: the machine, and the versions that ran on it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch
import transformers

from shoal.evaluation.environment import processor

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"


def machine(dtype: torch.dtype | None = None) -> str:
    """One line: processor, cores, threads, versions, and the base model's dtype."""
    parts = [
        processor(),
        f"{os.cpu_count()} cores",
        f"{torch.get_num_threads()} threads",
        f"Python {platform.python_version()}",
        f"torch {torch.__version__}",
        f"transformers {transformers.__version__}",
    ]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    if dtype is not None:
        parts.append(f"base model in {str(dtype).removeprefix('torch.')}")
    return ", ".join(parts)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table: the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
