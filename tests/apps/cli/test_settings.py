"""One schema for flags and YAML files, and one line for each mistake in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from shoal.apps.cli.settings import Output, command
from shoal.apps.cli.tasks import Data
from shoal.config import (
    ExpertTrainingConfig,
    HypernetworkTrainingConfig,
    LoraTrainingConfig,
    TextToLoRAConfig,
)
from tests.fixtures.cli import ROOT, Shoal, assert_one_line

NO_FLAGS = {
    ("train text-to-lora", "describe"),
    ("train expert", "gradient_checkpointing"),
    ("train expert", "label_smoothing"),
    ("train expert", "length_exponent"),
    ("train expert", "mix"),
}


@pytest.mark.parametrize(
    ("path", "models"),
    [
        ("train lora", [LoraTrainingConfig]),
        ("train multi-task", [LoraTrainingConfig]),
        ("train text-to-lora", [HypernetworkTrainingConfig, TextToLoRAConfig]),
        ("train expert", [ExpertTrainingConfig]),
    ],
)
def test_every_setting_is_a_flag_with_its_help(shoal: Shoal, path: str, models: list) -> None:
    printed = " ".join(shoal(*path.split(), "--help").out.split())
    for model in models:
        for name, info in model.model_fields.items():
            if (path, name) in NO_FLAGS:
                continue
            assert f"--{name.replace('_', '-')} " in printed, name
            assert " ".join(info.description.split()) in printed, name


def parsed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[LoraTrainingConfig, TextToLoRAConfig]:
    """What a command receives from a command line."""
    import typer

    received = []

    def function(training: LoraTrainingConfig, sizes: TextToLoRAConfig) -> Output:
        received.append((training, sizes))
        return Output({}, "")

    function.__annotations__ = {
        "training": LoraTrainingConfig,
        "sizes": TextToLoRAConfig,
        "return": Output,
    }
    app = typer.Typer()
    app.command()(command(function))
    app(list(arguments), standalone_mode=False)
    return received[0]


def test_flags_and_file_say_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(
        "steps: 7\nlearning_rate: 1e-3\nnum-layers-to-adapt: none\ntarget_modules: [q_proj, v_proj]\n"
        "offset: false"
    )
    flags = (
        "--steps 7 --learning-rate 1e-3 --num-layers-to-adapt none --target-modules q_proj,v_proj --no-offset"
    )
    from_file, from_flags = (
        parsed(monkeypatch, "--config", str(file)),
        parsed(monkeypatch, *flags.split()),
    )
    assert from_file == from_flags
    assert from_flags[1].num_layers_to_adapt is None and from_flags[1].offset is False
    assert from_flags[1].model_fields_set == {"num_layers_to_adapt", "target_modules", "offset"}


def test_flags_win(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("steps: 7\nbatch_size: 4\n")
    training, _ = parsed(monkeypatch, "--config", str(file), "--steps", "9")
    assert (training.steps, training.batch_size) == (9, 4)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("stepz: 3", "did you mean steps?"),
        ("- steps", "name: value"),
        ("steps: [", "not valid YAML"),
        ("steps: many", "steps many"),
        ("steps: 0", "greater than or equal to 1"),
        (b"\xff", "not valid YAML"),
    ],
)
def test_mistakes_in_a_file(shoal: Shoal, tmp_path: Path, content: str | bytes, says: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    ended = shoal("train", "lora", "--config", file, "--tasks", "x", "--out", tmp_path / "out")
    assert_one_line(ended, 2, says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "Usage"),
        ("train", "Usage"),
        ("nonsense", "nonsense"),
        ("generate", "description"),
        ("generate x --nonsense", "--nonsense"),
        ("train lora", "--out is missing"),
        ("train multi-task --out y", "give --tasks, or --procedural"),
        ("train lora --config missing.yaml", "missing.yaml"),
        ("train lora --tasks x --out y --steps 0", "--steps 0"),
        ("train lora --tasks x --out y --learning-rate fast", "--learning-rate fast"),
        ("train text-to-lora --tasks x --out y --head Z", "'perceiver' or 'reader'"),
        ("train text-to-lora --tasks x --out y --objective guess", "--objective guess"),
        ("evaluate --tasks x --adapter mine", "NAME=DIR"),
        ("ask x --max-new-tokens -1", "--max-new-tokens -1"),
        ("ask x --dtype int4", "float32, bfloat16, float16"),
        ("ask x --device toaster", "toaster"),
        ("ask x --describe y --adapter z", "one of them"),
    ],
)
def test_mistakes_in_flags(shoal: Shoal, arguments: str, says: str) -> None:
    ended = shoal(*arguments.split())
    assert ended.code == 2 and ended.out == ""
    assert says in ended.err and "Traceback" not in ended.err
    if says != "Usage":
        assert_one_line(ended, 2)


def test_the_recipes_are_valid() -> None:
    from shoal.apps.cli.train import Steering

    schema = {
        *Data.model_fields,
        *HypernetworkTrainingConfig.model_fields,
        *TextToLoRAConfig.model_fields,
        *Steering.model_fields,
    }
    for name in ("multi_task.yaml", "sentence_vectors.yaml", "text_to_lora.yaml"):
        recipe = yaml.safe_load((ROOT / "configs" / name).read_text())
        assert recipe.keys() <= schema
        assert recipe["num_layers_to_adapt"] == "none" and recipe["target_modules"] == ["q_proj", "v_proj"]
