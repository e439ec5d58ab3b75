"""Toy runs for the tests of training, and the program that starts one in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from shoal.models.backbone import Backbone

ROOT = Path(__file__).resolve().parents[2]
TOY = Path(__file__).with_name("toy.py")


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """The module `toy.py`; tests cannot import each other."""
    spec = importlib.util.spec_from_file_location("toy", TOY)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def backbone(toy: ModuleType, tiny_llama: Path) -> Backbone:
    """A tiny Llama in float32."""
    return toy.toy_backbone(tiny_llama)


@pytest.fixture
def sharp(backbone: Backbone) -> Backbone:
    """The tiny Llama with larger logits; its own are so alike that no adapter can make it sure of a token."""
    with torch.no_grad():
        backbone.model.lm_head.weight.mul_(8)
    return backbone


@pytest.fixture
def one_thread() -> Any:
    """Sums in the order that the program of `toy.py` takes them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def start_toy(tiny_llama: Path, one_thread: None) -> Callable[..., subprocess.Popen[str]]:
    """Starts `toy.py` in a process of its own; `launcher` are the arguments that Python gets before it."""

    def start(
        kinds: str, folder: Path, *, launcher: tuple[str, ...] = (), **settings: Any
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *launcher, str(TOY), kinds, str(tiny_llama), str(folder), json.dumps(settings)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def wait_for_rows() -> Callable[[subprocess.Popen[str], Path, int], None]:
    """Waits until a process has logged a number of steps."""

    def wait(process: subprocess.Popen[str], folder: Path, rows: int) -> None:
        log = folder / "log.jsonl"
        while not log.exists() or log.read_text().count("\n") < rows:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.005)

    return wait
