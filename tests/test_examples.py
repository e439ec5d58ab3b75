"""The examples run, and say what they must."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from shoal.adapters.files import load_adapter
from shoal.config import TextToLoRAConfig
from shoal.errors import ShoalError
from shoal.models.backbone import load_shape
from shoal.tasks.loading import load_task_directory
from shoal.text_to_lora.checkpoint import HypernetworkCheckpoint, save_hypernetwork
from shoal.text_to_lora.encoders.sentence import DEFAULT_ENCODER
from shoal.text_to_lora.shipped import new_hypernetwork

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny_hypernetwork(tiny_llama: Path, tmp_path: Path) -> Path:
    """A hypernetwork that says that it was trained, with random weights."""
    shape = load_shape(str(tiny_llama))
    sizes = TextToLoRAConfig(
        adapter_rank=2,
        adapter_alpha=4,
        num_layers_to_adapt=None,
        skill_embeddings_dim=8,
        hyper_network_size=8,
    )
    network = new_hypernetwork(shape, sizes, 384)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.1)
    checkpoint = HypernetworkCheckpoint(network.eval(), shape.base_model, DEFAULT_ENCODER, True, {})
    save_hypernetwork(checkpoint, tmp_path / "hypernetwork")
    return tmp_path / "hypernetwork"


def test_demo_tasks_are_whole() -> None:
    tasks = load_task_directory(ROOT / "examples" / "tasks")
    assert len(tasks) >= 3
    assert all(len(task.test) >= 5 and not task.train for task in tasks)


def test_demo_inputs_are_not_those_of_the_data(shared_data: Path) -> None:
    ours = {e.input.casefold() for t in load_task_directory(ROOT / "examples" / "tasks") for e in t.test}
    for path in (shared_data / "tasks").glob("*.json"):
        text = path.read_text("utf-8").casefold()
        assert not [one for one in ours if f'"{one}"' in text], path.name


@pytest.mark.slow  # loads the task encoder
def test_demo_on_a_tiny_model(
    demo: ModuleType,
    tiny_llama: Path,
    tiny_hypernetwork: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # wide enough that no answer is wrapped
    where = ["--base", str(tiny_llama), "--hypernetwork", str(tiny_hypernetwork)]
    demo.main([*where, "--adapters", str(tmp_path / "adapters")])
    printed = capsys.readouterr().out
    for task in load_task_directory(ROOT / "examples" / "tasks"):
        assert task.test[0].outputs[0] in printed
    assert "ROUGE-L" in printed and " ms " in printed
    saved = next((tmp_path / "adapters").iterdir())
    card = load_adapter(saved).card
    assert card is not None and card.trained


def test_demo_says_that_nothing_is_trained(demo: ModuleType) -> None:
    with pytest.raises(ShoalError, match="no trained hypernetwork"):
        demo.main(["--base", "microsoft/DialoGPT-small"])


@pytest.mark.slow
def test_demo_as_make_runs_it(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "demo.py")]
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=tmp_path, env=path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "It beats the base model that is told the description in 3 of 3" in " ".join(run.stdout.split())
    assert (tmp_path / "adapters").is_dir()
