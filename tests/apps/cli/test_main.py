"""The command line: one schema for flags and YAML, whole results, one line and exit code for mistakes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from shoal.adapters.files import load_adapter, save_adapter
from shoal.adapters.svf_cache import decompose_model
from shoal.adapters.svf_files import load_expert
from shoal.apps.cli import main as cli
from shoal.apps.cli.settings import Output, command
from shoal.apps.cli.tasks import Data, divided
from shoal.config import (
    ExpertTrainingConfig,
    HypernetworkTrainingConfig,
    LoraTrainingConfig,
    TextToLoRAConfig,
)
from shoal.errors import ShoalError
from shoal.models.backbone import DEFAULT_MODEL, load_backbone, load_shape
from shoal.text_to_lora.checkpoint import load_hypernetwork
from shoal.transformer2.model import mlp_modules

ROOT = Path(__file__).resolve().parents[3]
WORDS = ("apple", "banana", "cherry", "dates", "elder", "figs", "grape", "honey", "iris")
RULES: dict[str, Callable[[str], str]] = {
    "upper": str.upper,
    "reverse": lambda word: word[::-1],
    "first": lambda word: word[0],
    "last": lambda word: word[-1],
}
DESCRIPTION = "Write the given word in capital letters."
SMALL = ("--adapter-rank", "2", "--adapter-alpha", "4", "--num-layers-to-adapt", "none")
QUICK = ("--steps", "2", "--batch-size", "2", "--target-modules", "q_proj,v_proj", *SMALL)
QUICK_NETWORK = (*QUICK, "--skill-embeddings-dim", "8", "--hyper-network-size", "16")


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def record(self) -> dict:
        """What `--json` printed."""
        return json.loads(self.out)


class HashEncoder:
    """Stands for the task encoder: an embedding from a hash of the text."""

    dim = 384

    def __init__(self, path: str | None = None) -> None:
        self.name = path or "hash"

    def encode(self, texts: Sequence[str]) -> Tensor:
        rows = []
        for text in texts:
            seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")
            rows.append(torch.randn(self.dim, generator=torch.Generator().manual_seed(seed)))
        return torch.stack(rows)


class NoSkills:
    """Stands for skill detection."""

    def __init__(self, encoder: object = None) -> None:
        self.names = ("debugging",)

    def detect(self, text: str) -> object:
        return self.detect_many([text])[0]

    def detect_many(self, texts: Sequence[str]) -> list:
        @dataclasses.dataclass
        class Found:
            skills: tuple[str, ...] = ("debugging",)
            weights: dict[str, float] = dataclasses.field(default_factory=lambda: {"debugging": 1.0})

        return [Found() for _ in texts]


Shoal = Callable[..., Ended]


@pytest.fixture
def shoal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shoal:
    """Runs `shoal` in this process, with stand-ins for the task encoder and for skill detection."""
    for module in ("shoal.text_to_lora.generator", "shoal.text_to_lora.recipe"):
        monkeypatch.setattr(f"{module}.TaskEncoder", HashEncoder)
    monkeypatch.setattr("shoal.text_to_lora.generator.SkillDetector", NoSkills)

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["shoal", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks to train on, two to hold out."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "tasks").mkdir()
    for name, rule in RULES.items():
        examples = [{"input": word, "outputs": [rule(word)]} for word in WORDS]
        task = {
            "name": name,
            "category": "words",
            "source": ["this test"],
            "license": ["MIT"],
            "definition": f"Apply the rule {name} to the word.",
            "descriptions": [f"Apply the rule {name} to the word.", f"Answer with the {name} of the input."],
            "train": examples[:6],
            "test": examples[6:],
        }
        (folder / "tasks" / f"{name}.json").write_text(json.dumps(task))
    split = {"train": ["upper", "reverse"], "validation": ["first", "last"]}
    (folder / "splits.json").write_text(json.dumps(split))
    lines = [json.dumps({"input": word, "output": word.upper()}) for word in WORDS]
    (folder / "capitals.jsonl").write_text("\n".join(lines))
    return folder


def assert_one_line(ended: Ended, code: int, *parts: str) -> None:
    assert ended.code == code, ended.err
    assert ended.out == ""
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended.err
    for part in parts:
        assert part in ended.err


def untouched(folder: Path, names: set[str]) -> bool:
    return {path.name for path in folder.iterdir()} == names


# Flags and files


NO_FLAGS = {
    ("train text-to-lora", "describe"),
    ("train expert", "gradient_checkpointing"),
    ("train expert", "label_smoothing"),
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
    from shoal.apps.cli.tasks import Data
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


def test_the_quick_start_shows_valid_settings() -> None:
    from shoal.apps.cli.tasks import Data

    shown = (ROOT / "docs" / "quickstart.md").read_text("utf-8").split("```yaml")[1].split("```")[0]
    settings = yaml.safe_load(shown)
    known = {*Data.model_fields, *LoraTrainingConfig.model_fields, *TextToLoRAConfig.model_fields}
    assert settings.keys() <= known
    LoraTrainingConfig(**{n: v for n, v in settings.items() if n in LoraTrainingConfig.model_fields})


# What the commands do


@pytest.fixture
def multi_task(shoal: Shoal, tiny_llama: Path, data: Path, tmp_path: Path) -> Path:
    out = tmp_path / "multi-task"
    ended = shoal("train", "multi-task", "--base", tiny_llama, "--tasks", data, "--out", out, *QUICK)
    assert ended.code == 0, ended.err
    return out


@pytest.fixture
def hypernetwork(shoal: Shoal, multi_task: Path, tiny_llama: Path, data: Path, tmp_path: Path) -> Path:
    out = tmp_path / "hypernetwork"
    where = ("--base", tiny_llama, "--tasks", data, "--start", multi_task, "--out", out)
    ended = shoal("train", "text-to-lora", *where, *QUICK_NETWORK, "--max-descriptions", 1, "--json")
    assert ended.code == 0, ended.err
    assert ended.record["steps"] == 2 and ended.record["tasks"] == 2
    return out


def test_train_lora_on_one_task(shoal: Shoal, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "lora"
    arguments = (
        "train",
        "lora",
        "--base",
        tiny_llama,
        "--tasks",
        data / "tasks" / "first.json",
        "--out",
        out,
    )
    ended = shoal(*arguments, *QUICK, "--seed", 3)
    assert ended.code == 0 and "2 steps" in ended.out, ended.err
    stored = load_adapter(out)
    assert stored.base_model == str(tiny_llama) and stored.lora.rank == 2
    card = stored.card
    assert card is not None and card.trained and card.seed == 3
    assert card.scores["training steps"] == 2
    assert {"training tokens", "training seconds", "training loss"} <= card.scores.keys()
    assert (tmp_path / "lora.run" / "checkpoint").is_dir()
    again = shoal(*arguments, *QUICK, "--seed", 3, "--json").record
    assert again["final_loss"] == card.scores["training loss"]  # nothing was left to train


def test_train_lora_needs_one_task(shoal: Shoal, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    where = ("train", "lora", "--base", tiny_llama, "--out", tmp_path / "lora", *QUICK)
    assert_one_line(shoal(*where, "--tasks", data), 2, "4 tasks", "--task")
    assert_one_line(shoal(*where, "--tasks", data, "--task", "nobody"), 2, "nobody")
    assert_one_line(shoal(*where, "--tasks", data / "capitals.jsonl"), 2, "--definition")
    assert shoal(*where, "--tasks", data, "--task", "last").code == 0
    other = ("train", "lora", "--base", tiny_llama, "--out", tmp_path / "jsonl", *QUICK)
    ended = shoal(*other, "--tasks", data / "capitals.jsonl", "--definition", "Write it in capitals.")
    assert ended.code == 0, ended.err
    told = {"tasks": data / "capitals.jsonl", "definition": "Write it in capitals.", "out": tmp_path}
    for kept, trained in (({}, len(WORDS) - len(WORDS) // 2), ({"test_size": 0}, len(WORDS))):
        (task,) = divided(Data(**told, **kept))[0]
        assert len(task.train) == trained


def test_two_hypernetworks_are_averaged(shoal: Shoal, tiny_llama: Path, tmp_path: Path) -> None:
    common = ("train", "text-to-lora", "--base", tiny_llama, *QUICK, "--procedural", 8)
    for seed in (0, 1):
        ended = shoal(*common, "--seed", seed, "--out", tmp_path / str(seed))
        assert ended.code == 0, ended.err
    both = ("--network", tmp_path / "0", "--network", tmp_path / "1")
    ended = shoal("train", "average", *both, "--out", tmp_path / "mean", "--json")
    assert ended.code == 0, ended.err
    assert ended.record == {"averaged": 2, "path": str(tmp_path / "mean")}
    one, other, mean = (
        load_hypernetwork(tmp_path / name).network.state_dict() for name in ("0", "1", "mean")
    )
    for name, tensor in mean.items():
        assert torch.equal(tensor, ((one[name] + other[name]) / 2).bfloat16().float())
    ended = shoal("train", "average", *both[:2], "--out", tmp_path / "alone")
    assert ended.code == 2 and "at least 2 hypernetworks, got 1" in ended.err


def test_a_hypernetwork_gets_an_adapter_for_nonsense(
    shoal: Shoal, multi_task: Path, hypernetwork: Path, tmp_path: Path
) -> None:
    given = ("train", "fallback", "--network", hypernetwork, "--adapter", multi_task)
    ended = shoal(*given, "--out", tmp_path / "both", "--json")
    assert ended.code == 0, ended.err
    assert ended.record == {"path": str(tmp_path / "both")}
    checkpoint, adapter = load_hypernetwork(tmp_path / "both"), load_adapter(multi_task)
    assert checkpoint.multi_task == adapter.lora.to(torch.bfloat16).to(torch.float32)
    assert checkpoint.provenance["multi_task"]["scores"] == adapter.card.scores


def test_train_multi_task_on_the_training_split(multi_task: Path) -> None:
    card = load_adapter(multi_task).card
    assert card is not None and card.trained and card.notes == ("Trained on 2 tasks.",)


def test_train_on_tasks_made_in_code(shoal: Shoal, tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "procedural"
    common = ("train", "multi-task", "--base", tiny_llama, *QUICK, "--json")
    plain = shoal(*common, "--out", out, "--procedural", 8)
    assert plain.code == 0, plain.err
    both = shoal(*common, "--out", tmp_path / "both", "--procedural", 8, "--relabelled", 1)
    assert both.code == 0, both.err
    assert 60 <= plain.record["tasks"] < both.record["tasks"] < 2 * plain.record["tasks"]
    sets = shoal(*common, "--out", tmp_path / "sets", "--procedural", 64, "--label-sets", 3)
    assert sets.code == 0, sets.err
    assert sets.record["tasks"] == plain.record["tasks"] + 3
    texts = shoal(*common, "--out", tmp_path / "texts", "--procedural", 64, "--rewrites", 3)
    assert texts.code == 0, texts.err
    assert texts.record["tasks"] == plain.record["tasks"] + 3


def test_training_goes_on_from_an_adapter(
    shoal: Shoal, multi_task: Path, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    where = ("--base", tiny_llama, "--tasks", data, "--start", multi_task)
    ended = shoal("train", "multi-task", *where, *QUICK, "--out", tmp_path / "on", "--learning-rate", 1e-9)
    assert ended.code == 0, ended.err
    before, after = load_adapter(multi_task), load_adapter(tmp_path / "on")
    for name, factors in before.lora.factors.items():
        for old, new in zip(factors, after.lora.factors[name], strict=True):
            assert torch.allclose(old, new, atol=1e-6)
    assert after.card is not None and "training tokens" in after.card.notes[1]
    other = shoal("train", "multi-task", *where[2:], "--base", "gpt2", *QUICK, "--out", tmp_path / "other")
    assert_one_line(other, 2, "gpt2")


def test_procedural_examples_that_are_evaluation_data_are_left_out(
    shoal: Shoal, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    from shoal.tasks.procedural.catalogue import procedural_tasks

    leaking = procedural_tasks(size=8, test_size=1)[0].train[0]
    tasks = shutil.copytree(data, tmp_path / "data")
    file = tasks / "tasks" / "first.json"
    task = json.loads(file.read_text())
    task["test"] = [{"input": leaking.input, "outputs": list(leaking.outputs)}]
    file.write_text(json.dumps(task))
    where = ("--base", tiny_llama, "--tasks", tasks, "--procedural", 8, "--out", tmp_path / "out")
    ended = shoal("train", "multi-task", *where, *QUICK)
    assert ended.code == 0, ended.err


def test_train_text_to_lora_records_where_it_came_from(hypernetwork: Path) -> None:
    checkpoint = load_hypernetwork(hypernetwork)
    facts = checkpoint.provenance
    assert checkpoint.trained and checkpoint.task_encoder == "hash"
    assert facts["steps"] == 2 and facts["tokens"] > 0 and facts["tasks"] == 2 and facts["seed"] == 0
    assert facts["config"]["batch_size"] == 2 and facts["max_descriptions"] == 1
    assert facts["start"]["generator"] == "multi-task lora training"


def test_training_a_hypernetwork_goes_on_from_another_one(
    shoal: Shoal, hypernetwork: Path, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    still = ("--learning-rate", 1e-9, "--offset-learning-rate", 1e-9)
    where = ("train", "text-to-lora", "--base", tiny_llama, "--tasks", data, "--start", hypernetwork)
    before = load_hypernetwork(hypernetwork)
    for head, whole in (("L", True), ("M", False)):
        out = tmp_path / head
        ended = shoal(*where, *QUICK_NETWORK, *still, "--head", head, "--out", out)
        assert ended.code == 0, ended.err
        after = load_hypernetwork(out)
        assert after.provenance["start"]["tokens"] == before.provenance["tokens"]
        old, new = before.network.state_dict(), after.network.state_dict()
        same = {name for name in old if name in new and torch.equal(old[name], new[name])}
        offsets = {name for name in old if name.startswith("offsets.")}
        assert offsets and offsets <= same and (same == old.keys()) == whole
    lora = ("train", "multi-task", *where[2:], *QUICK, *still[:2], "--out", tmp_path / "lora")
    assert shoal(*lora).code == 0
    kept, shared = load_adapter(tmp_path / "lora"), before.network.offset_lora()
    assert kept.card is not None and "shared adapter" in kept.card.notes[1]
    for name, (a, b) in kept.lora.factors.items():
        torch.testing.assert_close([a, b], list(shared.factors[name]), atol=1e-6, rtol=0)
    louder = (*where, *QUICK_NETWORK, *still, "--adapter-alpha", 64, "--out", tmp_path / "louder")
    assert_one_line(shoal(*louder), 2, "alpha")
    elsewhere = (*where[:3], "gpt2", *where[4:])
    assert_one_line(shoal(*elsewhere, *QUICK_NETWORK, "--out", tmp_path / "other"), 2, "gpt2")


def test_train_by_reconstruction(
    shoal: Shoal, multi_task: Path, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    stored, shape = load_adapter(multi_task), load_shape(str(tiny_llama))
    assert stored.card is not None
    for name in ("upper", "reverse"):
        save_adapter(tmp_path / "adapters" / name, stored.lora, shape=shape, card=stored.card)
    out = tmp_path / "reconstructed"
    arguments = ("train", "text-to-lora", "--base", tiny_llama, "--tasks", data, "--out", out, *QUICK_NETWORK)
    arguments += ("--objective", "reconstruction")
    assert_one_line(shoal(*arguments), 2, "--adapters")
    ended = shoal(*arguments, "--adapters", tmp_path / "adapters")
    assert ended.code == 0, ended.err
    assert load_hypernetwork(out).provenance["config"]["objective"] == "reconstruction"
    reads_states = (*arguments, "--adapters", tmp_path / "adapters", "--head", "reader")
    ended = shoal(*reads_states, "--out", tmp_path / "reader")
    assert ended.code == 0, ended.err
    assert load_hypernetwork(tmp_path / "reader").network.architecture.head == "reader"


def test_train_expert(shoal: Shoal, tiny_llama: Path, data: Path, tmp_path: Path, cache: Path) -> None:
    out = tmp_path / "expert"
    where = ("train", "expert", "--base", tiny_llama, "--tasks", data, "--task", "upper", "--out", out)
    quick = ("--steps", 2, "--batch-size", 2, "--samples", 2, "--max-new-tokens", 2, "--expert-vector-dim", 4)
    assert_one_line(shoal(*where, *quick), 2, "--skill")
    for skill in ("none", " "):
        assert_one_line(shoal(*where, *quick, "--skill", skill), 2, "cannot be dispatched to")
    told = (*where, *quick, "--skill", "shouting", "--json")
    assert_one_line(shoal(*told, "--adaptation-layers", "0,99"), 2, "names layer 99")
    assert_one_line(shoal(*told), 2, "earns 0.00 of 1", "easier or harder")
    ended = shoal(*told, "--least-success", 0)
    assert ended.code == 0, ended.err
    assert ended.record["steps"] == 2 and ended.record["base_success"] == 0
    backbone = load_backbone(str(tiny_llama))
    basis = decompose_model(backbone.model, mlp_modules(backbone.shape), components=4)
    stored = load_expert(out, basis)
    assert (stored.skill, stored.base_model) == ("shouting", str(tiny_llama))
    assert stored.provenance["tasks"] == ["upper"] and stored.provenance["config"]["samples"] == 2
    assert_one_line(shoal(*told, "--least-success", 0, "--start", out), 2, "--start")
    evolving = ("--objective", "evolution", "--population", 4, "--sigma", 0.1, "--least-success", 0)
    assert_one_line(shoal(*told, *evolving), 2, "another run, with other", "objective")
    ended = shoal(*told, *evolving, "--run", tmp_path / "evolved.run")
    assert ended.code == 0 and ended.record["steps"] == 2, ended.err
    assert load_expert(out, basis).provenance["config"]["population"] == 4


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of decompositions."""
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_generate_then_ask(shoal: Shoal, hypernetwork: Path, tiny_llama: Path, tmp_path: Path) -> None:
    where = ("--base", tiny_llama, "--hypernetwork", hypernetwork)
    out, gguf = tmp_path / "adapter", tmp_path / "adapter.gguf"
    ended = shoal("generate", DESCRIPTION, *where, "--out", out, "--gguf", gguf, "--json")
    assert ended.code == 0, ended.err
    assert ended.record["hypernetwork"]["trained"] and ended.record["skills"] == {"debugging": 1.0}
    assert ended.record["written"] == {"gguf": str(gguf), "out": str(out)} and gguf.is_file()
    shown = shoal("generate", DESCRIPTION, *where).out
    for part in (
        DESCRIPTION,
        "debugging (100%)",
        "rank 2",
        "6 modules in 3 layers",
        "trained:      yes",
        " ms",
    ):
        assert part in shown
    asked = ("ask", "apple", "--max-new-tokens", 4, "--json")
    told = shoal(*asked, *where, "--describe", DESCRIPTION)
    kept = shoal(*asked, "--adapter", out)  # the adapter names its base model
    assert told.code == kept.code == 0, told.err + kept.err
    assert told.record["answer"] == kept.record["answer"]
    assert kept.record["base_model"] == str(tiny_llama)


def test_generate_with_examples(
    shoal: Shoal, hypernetwork: Path, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    where = ("--base", tiny_llama, "--hypernetwork", hypernetwork)
    ended = shoal("generate", DESCRIPTION, *where, "--examples", data / "capitals.jsonl", "--json")
    assert ended.code == 0, ended.err
    assert ended.record["hypernetwork"]["few_shot"]["examples"] == len(WORDS) - len(WORDS) // 4
    few = tmp_path / "few.jsonl"
    few.write_text('{"input": "a", "output": "A"}\n')
    assert_one_line(
        shoal("generate", DESCRIPTION, *where, "--examples", few),
        2,
        "1 different examples of at most 256 tokens",
    )
    assert_one_line(shoal("generate", DESCRIPTION, *where, "--examples", tmp_path / "no"), 2, "no")


def test_ask_reads_standard_input(shoal: Shoal, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("apple"))
    ended = shoal("ask", "-", "--base", tiny_llama, "--max-new-tokens", 2, "--json")
    assert ended.code == 0 and ended.record["request"] == "apple", ended.err
    monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
    assert_one_line(shoal("ask", "-", "--base", tiny_llama), 2, "blank")


def test_generate_says_how_to_train(shoal: Shoal, tiny_llama: Path, tmp_path: Path) -> None:
    ended = shoal("generate", DESCRIPTION, "--base", tiny_llama, "--out", tmp_path / "a", *SMALL)
    assert ended.code == 0
    assert "trained:      no" in ended.out and "shoal train text-to-lora" in ended.out
    card = load_adapter(tmp_path / "a").card
    assert card is not None and not card.trained


def test_evaluate(
    shoal: Shoal, hypernetwork: Path, multi_task: Path, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("rouge_score")
    arguments = ["evaluate", "--base", tiny_llama, "--tasks", data, "--examples", 1, "--max-new-tokens", 2]
    arguments += ["--adapter", f"mine={multi_task}", "--hypernetwork", hypernetwork, "--out", tmp_path / "r"]
    ended = shoal(*arguments)
    assert ended.code == 0, ended.err
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    names = [result["name"] for result in report["results"]]
    assert names == [
        "base",
        "base + description",
        "base + 3 examples",
        "mine",
        "Text-to-LoRA",
        "Text-to-LoRA, another task's description",
        "Text-to-LoRA, gibberish",
        "Text-to-LoRA, no description",
    ]
    assert report["tasks"] == ["first", "last"] and "steering_margin" in report
    table = (tmp_path / "r" / "report.md").read_text()
    assert all(f"| {name} |" in table and f"| {name} |" in ended.out for name in names)


def test_evaluate_without_a_hypernetwork(shoal: Shoal, tiny_llama: Path, data: Path) -> None:
    pytest.importorskip("rouge_score")
    task = data / "tasks" / "last.json"
    ended = shoal(
        "evaluate", "--base", tiny_llama, "--tasks", task, "--examples", 1, "--max-new-tokens", 2, "--json"
    )
    assert ended.code == 0 and len(ended.record["results"]) == 3, ended.err


def test_models(shoal: Shoal) -> None:
    record = shoal("models", "--json").record
    assert record["default"]["alias"] == DEFAULT_MODEL
    assert record["known_shapes"]["microsoft/DialoGPT-small"]["model_type"] == "gpt2"
    assert "self_attn.q_proj" in record["roles"]["q_proj"]
    assert DEFAULT_MODEL in shoal("models").out


@pytest.mark.slow  # loads the task encoder
def test_skills(shoal: Shoal) -> None:
    assert len(shoal("skills", "--json").record["skills"]) == 10
    found = shoal("skills", "Make this model excel at code generation and debugging", "--json").record
    assert found["skills"] == ["code_generation", "debugging"]


# Bad input


@pytest.mark.parametrize(
    ("description", "says"),
    [
        ("", "description"),
        ("a", "'a'"),
        ("word " * 10_000, "512"),
        ("Schreibe das gegebene Wort bitte immer ganz in Großbuchstaben auf.", "English"),
    ],
)
def test_bad_descriptions(
    shoal: Shoal, tiny_llama: Path, tmp_path: Path, description: str, says: str
) -> None:
    ended = shoal("generate", description, "--base", tiny_llama, "--out", tmp_path / "out", *SMALL)
    assert_one_line(ended, 2, says)
    assert untouched(tmp_path, set())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--adapter-rank", 0), "--adapter-rank 0"),
        (("--adapter-rank", 4096), "4096"),
        (("--target-modules", "nose_proj"), "nose_proj"),
        (("--num-layers-to-adapt", 99), "99"),
    ],
)
def test_bad_sizes(shoal: Shoal, tiny_llama: Path, tmp_path: Path, arguments: tuple, says: str) -> None:
    sizes = ("--num-layers-to-adapt", "none", *arguments)
    ended = shoal("generate", DESCRIPTION, "--base", tiny_llama, "--out", tmp_path / "out", *sizes)
    assert_one_line(ended, 2, says)
    assert untouched(tmp_path, set())


def test_a_missing_model(shoal: Shoal, tmp_path: Path) -> None:
    ended = shoal("ask", "apple", "--base", tmp_path / "nowhere")
    assert_one_line(ended, 2, "nowhere")


def test_a_half_downloaded_model(shoal: Shoal, tiny_llama: Path, tmp_path: Path) -> None:
    for file in tiny_llama.iterdir():
        content = file.read_bytes()
        whole = file.suffix != ".safetensors"
        (tmp_path / file.name).write_bytes(content if whole else content[: len(content) // 2])
    assert_one_line(shoal("ask", "apple", "--base", tmp_path), 1)
    out = tmp_path / "out"
    assert_one_line(shoal("generate", DESCRIPTION, "--base", tmp_path, "--out", out), 1, "half downloaded")
    assert not out.exists()


def test_a_truncated_hypernetwork(shoal: Shoal, hypernetwork: Path, tiny_llama: Path, tmp_path: Path) -> None:
    weights = hypernetwork / "hypernetwork.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    out = tmp_path / "out"
    ended = shoal("generate", DESCRIPTION, "--base", tiny_llama, "--hypernetwork", hypernetwork, "--out", out)
    assert_one_line(ended, 1, "hypernetwork.safetensors")
    assert not out.exists()


def test_a_hypernetwork_of_another_model(shoal: Shoal, hypernetwork: Path) -> None:
    ended = shoal("generate", DESCRIPTION, "--base", "gpt2", "--hypernetwork", hypernetwork)
    assert_one_line(ended, 2, "gpt2")


def test_a_truncated_adapter(shoal: Shoal, multi_task: Path) -> None:
    weights = multi_task / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert_one_line(shoal("ask", "apple", "--adapter", multi_task), 1, "adapter_model.safetensors")


@pytest.fixture
def unwritable(tmp_path: Path) -> Iterator[Path]:
    """A folder in which nothing can be made, also by root."""
    folder = tmp_path / "sealed"
    if os.geteuid() == 0:
        folder.write_text("a file, where a folder is needed")
        yield folder
    else:
        folder.mkdir(mode=0o555)
        yield folder
        folder.chmod(0o755)


def test_an_unwritable_place(
    shoal: Shoal, unwritable: Path, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    out = unwritable / "out"
    assert_one_line(shoal("generate", DESCRIPTION, "--base", tiny_llama, "--out", out, *SMALL), 1, "sealed")
    where = ("--base", tiny_llama, "--tasks", data, "--out", out)
    assert_one_line(shoal("train", "multi-task", *where, *QUICK), 1, "sealed")
    assert_one_line(shoal("evaluate", *where), 1, "sealed")
    both = ("--gguf", tmp_path / "adapter.gguf", "--out", out)
    assert_one_line(shoal("generate", DESCRIPTION, "--base", tiny_llama, *both, *SMALL), 1, "sealed")
    assert untouched(tmp_path, {"sealed"})


def test_a_place_in_use_leaves_no_gguf(shoal: Shoal, tiny_llama: Path, tmp_path: Path) -> None:
    out, gguf = tmp_path / "mine", tmp_path / "adapter.gguf"
    out.mkdir()
    (out / "thesis.txt").write_text("the only copy")
    where = ("--base", tiny_llama, "--out", out, "--gguf", gguf, *SMALL)
    assert_one_line(shoal("generate", DESCRIPTION, *where), 2, "thesis.txt")
    assert untouched(tmp_path, {"mine"})


def test_an_adapter_that_cannot_be_written_takes_its_gguf_along(
    shoal: Shoal, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise ShoalError("cannot write: the disk is full")

    monkeypatch.setattr("shoal.text_to_lora.generated_adapter.save_adapter", full)
    where = ("--base", tiny_llama, "--out", tmp_path / "a", "--gguf", tmp_path / "a.gguf", *SMALL)
    assert_one_line(shoal("generate", DESCRIPTION, *where), 1, "the disk is full")
    assert untouched(tmp_path, set())


def test_a_run_is_kept_out_of_its_result(
    shoal: Shoal, tiny_llama: Path, data: Path, tmp_path: Path, multi_task: Path
) -> None:
    where = ("train", "multi-task", "--base", tiny_llama, "--tasks", data, *QUICK)
    out = tmp_path / "new"
    for run in (out, out / "run"):
        assert_one_line(shoal(*where, "--out", out, "--run", run), 2, "name one outside it")
    before = {p.name for p in multi_task.iterdir()}
    assert_one_line(shoal(*where, "--out", out, "--run", multi_task), 2, "which is no run's")
    assert not out.exists() and {p.name for p in multi_task.iterdir()} == before


def test_settings_that_could_not_act_are_refused(
    shoal: Shoal, tiny_llama: Path, data: Path, tmp_path: Path, multi_task: Path
) -> None:
    assert_one_line(shoal("ask", "hi", "--hypernetwork", tmp_path / "none"), 2, "give --describe")
    where = ("train", "multi-task", "--base", tiny_llama, "--tasks", data, "--out", tmp_path / "new", *QUICK)
    started = shoal(*where, "--start", multi_task, "--adapter-rank", 3)
    assert_one_line(started, 2, "adapter_rank 3: the LoRA to start from has 2")
    where = ("train", "text-to-lora", "--base", tiny_llama, "--tasks", data, "--out", tmp_path / "new")
    told = ("--objective", "reconstruction", "--adapters", multi_task)
    for flag in ("--contrastive-weight", "--token-dropout", "--nonsense"):
        assert_one_line(shoal(*where, *told, flag, 0.5, *QUICK_NETWORK), 2, f"{flag} 0.5: reconstruction")
    assert not (tmp_path / "new").exists()


def test_an_adapter_of_another_model_is_said(
    shoal: Shoal, tiny_llama: Path, data: Path, multi_task: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = multi_task / "adapter_config.json"
    facts = {**json.loads(config.read_text()), "base_model_name_or_path": "acme/other"}
    config.write_text(json.dumps(facts))
    assert shoal("ask", "hi", "--base", tiny_llama, "--adapter", multi_task, "--max-new-tokens", 2).code == 0
    rows = ("--adapter", f"mine={multi_task}", "--examples", 1, "--max-new-tokens", 2, "--shots", 0)
    assert shoal("evaluate", "--base", tiny_llama, "--tasks", data, *rows).code == 0
    assert caplog.text.count("is for acme/other, and is put on") == 2


def test_evaluate_reads_every_adapter_before_it_scores(
    shoal: Shoal, tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.apps.cli.evaluate.load", None)  # loading the model would fail
    (tmp_path / "each").mkdir()
    where = ("evaluate", "--base", tiny_llama, "--tasks", data, "--adapter", f"mine={tmp_path / 'each'}")
    assert_one_line(shoal(*where), 2, "no directory")


def test_a_device_on_which_nothing_is_computed(shoal: Shoal, tiny_llama: Path) -> None:
    ended = shoal("ask", "hi", "--base", tiny_llama, "--device", "meta")
    assert_one_line(ended, 2, "device 'meta' cannot be used here")


def test_what_nobody_foresaw_is_one_line(shoal: Shoal, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("shoal.apps.cli.ask.load", broken)
    assert_one_line(shoal("ask", "hi"), 1, "unexpected ZeroDivisionError: division by zero", "--verbose")


def test_a_place_in_use_is_refused_before_training(
    shoal: Shoal, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("the only copy")
    for kind, arguments in (("multi-task", QUICK), ("text-to-lora", QUICK_NETWORK)):
        ended = shoal("train", kind, "--base", tiny_llama, "--tasks", data, "--out", out, *arguments)
        assert_one_line(ended, 2, "thesis.txt")
    assert untouched(tmp_path, {"mine"}) and untouched(out, {"thesis.txt"})


def test_ctrl_c_anywhere_is_one_line(shoal: Shoal, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shoal.text_to_lora.generator.TextToLoRA", interrupted)
    assert_one_line(shoal("generate", DESCRIPTION), 1, "interrupted")


def test_ctrl_c_while_training(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "lora", tmp_path / "lora.run" / "log.jsonl"
    arguments = ["train", "multi-task", "--base", tiny_llama, "--tasks", data, "--out", out, *SMALL]
    arguments += ["--steps", 100_000, "--batch-size", 2]
    running = subprocess.Popen(
        [sys.executable, "-m", "shoal.apps.cli.main", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        while not (log.is_file() and log.read_text().count("\n") > 2):
            assert running.poll() is None, running.communicate()[1]
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        printed, said = running.communicate(timeout=300)
    finally:
        running.kill()
    last = said.splitlines(keepends=True)[-1]  # what takes long is said before
    assert_one_line(Ended(running.returncode, printed, last), 1, "interrupted after step", "resume")
    assert not out.exists()
    state = json.loads((log.parent / "checkpoint" / "state.json").read_text())
    assert state["progress"]["step"] == log.read_text().count("\n")
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_the_default_model_from_a_shell(tmp_path: Path) -> None:
    def run(*arguments: str) -> Ended:
        command = [sys.executable, "-m", "shoal.apps.cli.main", *arguments]
        path = {**os.environ, "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=path)
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    made = run("generate", "Decide whether a movie review is positive or negative.", "--out", "a", "--json")
    assert made.code == 0 and made.record["written"] == {"out": "a"}, made.err
    asked = run("ask", "A film that nobody needed.", "--adapter", "a", "--max-new-tokens", "8", "--json")
    assert asked.code == 0 and asked.record["answer"], asked.err

    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": None}))
    again = run("ask", "A film that nobody needed.", "--adapter", "a", "--max-new-tokens", "8", "--json")
    assert again.record["answer"] == asked.record["answer"]
    assert "names no base model" in again.err and "names no base model" not in asked.err


@pytest.mark.slow
def test_two_processes_write_and_print_once(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    where = [
        "--base",
        str(tiny_llama),
        "--tasks",
        str(data),
        "--out",
        str(tmp_path / "out"),
        *map(str, QUICK),
    ]
    command = [*launcher, "-m", "shoal.apps.cli.main", "train", "multi-task", *where, "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    record = json.loads(ended.stdout)
    card = load_adapter(tmp_path / "out").card
    assert card is not None and card.scores["training tokens"] == record["tokens"]


@pytest.fixture
def experts(shoal: Shoal, tiny_llama: Path, data: Path, tmp_path: Path, cache: Path) -> Path:
    """Two experts of the toy tasks, and a probe that chooses between them."""
    place = tmp_path / "experts"
    quick = ("--steps", 1, "--batch-size", 2, "--objective", "sft", "--expert-vector-dim", 4)
    for skill, task in (("shouting", "upper"), ("turning", "reverse")):
        where = ("--base", tiny_llama, "--tasks", data, "--task", task, "--out", place / skill)
        ended = shoal("train", "expert", *where, *quick, "--skill", skill, "--learning-rate", 0.5)
        assert ended.code == 0, ended.err
    told = (
        "--base",
        tiny_llama,
        "--tasks",
        data,
        "--experts",
        place,
        "--out",
        place / "dispatch",
        "--layers",
        1,
    )
    assert_one_line(shoal("train", "dispatch", *told), 2, "--others")
    assert_one_line(shoal("train", "dispatch", *told, "--others", "unknown"), 2, "unknown is not among")
    more = tmp_path / "wordings.yaml"
    wordings = ("--others", "first", "--wordings", more)
    assert_one_line(shoal("train", "dispatch", *told, *wordings), 2, "not a file")
    more.write_text("second: one text\n")
    assert_one_line(shoal("train", "dispatch", *told, *wordings), 2, "second is not a list of texts")
    more.write_text("reverse: [Say it backwards.]\n")
    ended = shoal("train", "dispatch", *told, *wordings, "--requests", 8, "--json")
    assert ended.code == 0, ended.err
    assert ended.record["skills"] == ["shouting", "turning"] and 0 <= ended.record["accuracy"] <= 1
    return place


def test_experts_answer_and_are_mixed(shoal: Shoal, experts: Path, tiny_llama: Path, tmp_path: Path) -> None:
    base = ("--base", tiny_llama, "--max-new-tokens", 4, "--json")
    ended = shoal("ask", "apple", "--transformer2", "--experts", experts, *base)
    assert ended.code == 0, ended.err
    assert ended.record["skill"] in ("shouting", "turning", "none")
    assert ended.record["probabilities"].keys() == {"shouting", "turning", "none"}
    plain = shoal("ask", "apple", *base).record["answer"]
    still = shoal("ask", "apple", "--expert", experts / "turning", "--strength", 0, *base)
    assert still.record["answer"] == plain and still.record["skill"] == "turning"

    shots = tmp_path / "shots.jsonl"
    shots.write_text(
        "".join(f'{{"input": "{w}", "output": "{w.upper()}"}}\n' for w in ("fig", "kale", "oat"))
    )
    out, lora = tmp_path / "mixture", tmp_path / "lora"
    told = ("adapt", "--base", tiny_llama, "--examples", shots, "--experts", experts, "--out", out)
    ended = shoal(*told, "--population", 4, "--iterations", 2, "--lora", lora, "--rank", 4, "--json")
    assert ended.code == 0, ended.err
    assert ended.record["loss"] <= ended.record["base_loss"] and ended.record["shots"] == 3
    assert sum(ended.record["mixture"].values()) == pytest.approx(1, abs=1e-3)
    assert (
        ended.record["lora_error"] == pytest.approx(0, abs=1e-3) and (lora / "adapter_config.json").is_file()
    )
    mixed = shoal("ask", "apple", "--expert", out, *base)
    assert mixed.code == 0, mixed.err
    assert_one_line(shoal(*told, "--describe", "shout", "--population", 1), 2, "--population")


def test_flags_of_experts_that_cannot_act(
    shoal: Shoal, tiny_llama: Path, tmp_path: Path, cache: Path
) -> None:
    ask = ("ask", "hello", "--base", tiny_llama)
    assert_one_line(shoal(*ask, "--transformer2", "--expert", tmp_path), 2, "--expert and --transformer2")
    assert_one_line(shoal(*ask, "--experts", tmp_path), 2, "--transformer2 chooses from")
    assert_one_line(shoal(*ask, "--strength", 0.5), 2, "--strength")
    assert_one_line(shoal(*ask, "--transformer2", "--experts", tmp_path), 2, "holds no experts")
    shots = tmp_path / "shots.jsonl"
    shots.write_text('{"input": "a", "output": "b"}\n')
    told = ("adapt", "--base", tiny_llama, "--examples", shots, "--out", tmp_path / "out")
    assert_one_line(shoal(*told), 2, "no experts are shipped")
