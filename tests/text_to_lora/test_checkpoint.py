"""Hypernetworks on disk: the same bits back, and anything else refused in one line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shoal.adapters.lora import LoRA, LoraFactors
from shoal.errors import ShoalError, UsageError
from shoal.models.modules import TargetModule
from shoal.text_to_lora.checkpoint import (
    CONFIG_FILE,
    KNOWN_TASKS_FILE,
    MULTI_TASK_FILE,
    WEIGHTS_FILE,
    HypernetworkCheckpoint,
    average,
    load_hypernetwork,
    save_hypernetwork,
)
from shoal.text_to_lora.familiarity import KnownTasks
from shoal.text_to_lora.heads import HEADS, Architecture
from shoal.text_to_lora.hypernetwork import Hypernetwork
from shoal.text_to_lora.refining import REFINING_FILE, Refining, group_modules

ARCHITECTURE = Architecture(task_dim=12, rank=2, alpha=4.0, latent_size=8, hidden_size=12)
TARGETS = tuple(TargetModule(f"layers.{n}.q", n, "q", 8, 16) for n in range(2))


def checkpoint_of(head: str = "L", offset: bool = True) -> HypernetworkCheckpoint:
    network = Hypernetwork(TARGETS, dataclasses.replace(ARCHITECTURE, head=head, offset=offset))
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    facts = {"tokens": 123, "scores": {"rouge_l": 0.5}, "description": "Ünïcode"}
    return HypernetworkCheckpoint(network, "someone/model", "some/encoder", True, facts)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_hypernetwork(checkpoint_of(), tmp_path / "network")
    return tmp_path / "network"


def state_of(checkpoint: HypernetworkCheckpoint) -> dict[str, Tensor]:
    return checkpoint.network.state_dict()


@pytest.mark.parametrize("offset", [True, False], ids=["offset", "no offset"])
@pytest.mark.parametrize("head", HEADS)
def test_what_was_saved_comes_back_bit_for_bit(head: str, offset: bool, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(head, offset)
    save_hypernetwork(checkpoint, tmp_path / "network")
    loaded = load_hypernetwork(tmp_path / "network", base_model="someone/model", targets=TARGETS)
    assert loaded.network.architecture == checkpoint.network.architecture
    assert loaded.network.targets == TARGETS
    facts = ("base_model", "task_encoder", "trained", "provenance")
    assert all(getattr(loaded, name) == getattr(checkpoint, name) for name in facts)
    assert state_of(loaded).keys() == state_of(checkpoint).keys()
    assert all(torch.equal(value, state_of(checkpoint)[name]) for name, value in state_of(loaded).items())
    assert not loaded.network.training
    shape = (2, 3, loaded.network.input_width) if head == "reader" else (ARCHITECTURE.task_dim,)
    tasks = torch.randn(2, *shape)
    assert loaded.network(tasks).row(1) == checkpoint.network.eval()(tasks).row(1)
    trained = [p.requires_grad for p in checkpoint.network.parameters()]
    assert [p.requires_grad for p in loaded.network.parameters()] == trained


def test_half_precision_halves_the_file(saved: Path, tmp_path: Path) -> None:
    checkpoint = load_hypernetwork(saved)
    save_hypernetwork(checkpoint, tmp_path / "half", torch.bfloat16)
    sizes = [(folder / WEIGHTS_FILE).stat().st_size for folder in (tmp_path / "half", saved)]
    assert sizes[0] < 0.7 * sizes[1]
    loaded = state_of(load_hypernetwork(tmp_path / "half"))
    for name, value in state_of(checkpoint).items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], value.bfloat16().float())


def test_a_checkpoint_holds_the_hypernetwork_and_nothing_else(saved: Path) -> None:
    assert sorted(p.name for p in saved.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    with torch.device("meta"):
        names = Hypernetwork(TARGETS, ARCHITECTURE).state_dict().keys()
    assert load_file(saved / WEIGHTS_FILE).keys() == names


def test_whole_numbers_are_numbers(saved: Path) -> None:
    change_description(architecture__alpha=4)(saved)
    architecture = load_hypernetwork(saved).network.architecture
    assert architecture == ARCHITECTURE and isinstance(architecture.alpha, float)


def test_loading_leaves_the_random_numbers_alone(saved: Path) -> None:
    before = torch.get_rng_state()
    load_hypernetwork(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_saving_again_replaces(saved: Path) -> None:
    other = checkpoint_of("mixture")
    save_hypernetwork(other, saved)
    assert load_hypernetwork(saved).network.architecture.head == "mixture"


def test_nothing_else_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match=r"would lose its thesis\.txt"):
        save_hypernetwork(checkpoint_of(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_another_base_model_is_refused(saved: Path) -> None:
    with pytest.raises(UsageError, match="is for someone/model, not for someone/else; choose"):
        load_hypernetwork(saved, base_model="someone/else")


@pytest.mark.parametrize(
    "targets",
    [TARGETS[:1], tuple(dataclasses.replace(t, out_features=8) for t in TARGETS)],
    ids=["missing", "another shape"],
)
def test_other_modules_are_refused(saved: Path, targets: tuple[TargetModule, ...]) -> None:
    with pytest.raises(UsageError, match=r"adapts layers\..\.q \(16 x 8\), which someone/model lacks here"):
        load_hypernetwork(saved, targets=targets)


def test_a_larger_model_is_no_matter(saved: Path) -> None:
    more = (*TARGETS, TargetModule("layers.0.v", 0, "v", 8, 8))
    assert load_hypernetwork(saved, targets=more).network.targets == TARGETS


def change_tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], object]:
    def changed(folder: Path) -> None:
        state = load_file(folder / WEIGHTS_FILE)
        change(state)
        save_file(state, folder / WEIGHTS_FILE)

    return changed


def change_description(**values: Any) -> Callable[[Path], object]:
    def changed(folder: Path) -> None:
        description = json.loads((folder / CONFIG_FILE).read_text())
        for path, value in values.items():
            *parents, key = path.split("__")
            place = description
            for parent in parents:
                place = place[parent]
            place[key] = value
        (folder / CONFIG_FILE).write_text(json.dumps(description))

    return changed


FIRST = "task_encoder.0.weight"
TARGET = {"name": "x", "layer": 0, "type": "q", "in_features": 8, "out_features": 16, "fan_in_fan_out": False}
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda f: (f / WEIGHTS_FILE).unlink(), "there is no such file"),
    "no description": (lambda f: (f / CONFIG_FILE).unlink(), "there is no such file"),
    "truncated": (
        lambda f: (f / WEIGHTS_FILE).write_bytes((f / WEIGHTS_FILE).read_bytes()[:-8]),
        "not a whole safetensors file",
    ),
    "a pickle": (lambda f: (f / WEIGHTS_FILE).write_bytes(b"\x80\x04\x95" * 99), "not a whole safetensors"),
    "broken JSON": (lambda f: (f / CONFIG_FILE).write_text("{"), "not valid JSON"),
    "foreign JSON": (lambda f: (f / CONFIG_FILE).write_text('{"model_type": "llama"}'), "format None"),
    "a later format": (change_description(format=2), "is of format 2, this version reads 1"),
    "no architecture": (
        lambda f: (f / CONFIG_FILE).write_text('{"format": 1, "targets": []}'),
        "architecture",
    ),
    "alpha of another kind": (change_description(architecture__alpha="4"), r"'4' is no int \| float"),
    "unknown field": (change_description(architecture__secret=1), "secret"),
    "unknown head": (change_description(architecture__head="XL"), "unknown head"),
    "odd size": (change_description(architecture__latent_size=10), "multiple of 4"),
    "size of another kind": (change_description(architecture__rank="8"), "does not describe"),
    "huge size": (change_description(architecture__hidden_size=10**12), "does not describe|not this network"),
    "rank above the modules": (change_description(architecture__rank=9), "rank 9 is outside 1..8"),
    "base model of another kind": (change_description(base_model=None), "None is no str"),
    "trained of another kind": (change_description(trained="yes"), "'yes' is no bool"),
    "shots of another kind": (change_description(shots="8"), "'8' is no int"),
    "shots for another head": (change_description(shots=8), "head L reads no solved examples"),
    "no targets": (change_description(targets=[]), "at least one target"),
    "target in no layer": (change_description(targets=[{**TARGET, "layer": -1}]), "layer -1"),
    "layer of another kind": (change_description(targets=[{**TARGET, "layer": "0"}]), "'0' is no int"),
    "target of negative size": (change_description(targets=[{**TARGET, "in_features": -8}]), "rank"),
    "other shapes": (
        change_description(architecture__hidden_size=16),
        "is not this network's .*size mismatch",
    ),
    "a tensor missing": (change_tensors(lambda s: s.pop(FIRST)), f"not this network's .*Missing .*{FIRST}"),
    "a tensor too many": (
        change_tensors(lambda s: s.update(extra=torch.zeros(1))),
        "not this network's .*Unexpected .*extra",
    ),
    "not a number": (change_tensors(lambda s: s[FIRST].fill_(torch.nan)), "not finite"),
    "infinity": (change_tensors(lambda s: s[FIRST].fill_(torch.inf)), "not finite"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoints(damage: str, saved: Path) -> None:
    inflict, message = DAMAGE[damage]
    inflict(saved)
    with pytest.raises(ShoalError, match=message) as caught:
        load_hypernetwork(saved)
    assert not isinstance(caught.value, UsageError)
    assert "\n" not in str(caught.value) and str(saved) in str(caught.value)


def test_there_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no directory .*missing; check the path"):
        load_hypernetwork(tmp_path / "missing")


def known() -> KnownTasks:
    centres = torch.nn.functional.normalize(torch.ones(2, ARCHITECTURE.task_dim), dim=-1)
    return KnownTasks(("one", "other"), centres, 0.5, 1.5, torch.ones(ARCHITECTURE.task_dim + 1))


def test_known_tasks_come_back(tmp_path: Path) -> None:
    save_hypernetwork(dataclasses.replace(checkpoint_of(), known_tasks=known()), tmp_path / "network")
    loaded = load_hypernetwork(tmp_path / "network").known_tasks
    assert loaded is not None and (loaded.names, loaded.near, loaded.far) == (("one", "other"), 0.5, 1.5)
    torch.testing.assert_close(loaded.centres, known().centres, atol=1e-3, rtol=0)
    assert torch.equal(loaded.sense, known().sense)
    save_hypernetwork(checkpoint_of(), tmp_path / "without")
    assert load_hypernetwork(tmp_path / "without").known_tasks is None


def multi_task(alpha: float = ARCHITECTURE.alpha) -> LoRA:
    lora = LoRA.identity(TARGETS, ARCHITECTURE.rank, alpha, generator=torch.Generator().manual_seed(5))
    return LoRA({n: LoraFactors(f.a, f.b + 0.25) for n, f in lora.factors.items()}, alpha)


def test_a_multi_task_lora_comes_back(tmp_path: Path) -> None:
    save_hypernetwork(dataclasses.replace(checkpoint_of(), multi_task=multi_task()), tmp_path / "network")
    assert load_hypernetwork(tmp_path / "network").multi_task == multi_task()
    save_hypernetwork(checkpoint_of(), tmp_path / "without")
    assert load_hypernetwork(tmp_path / "without").multi_task is None
    assert not (tmp_path / "without" / MULTI_TASK_FILE).exists()


def test_a_checkpoint_names_the_file_that_it_was_read_from(saved: Path) -> None:
    loaded = load_hypernetwork(saved)
    assert loaded.sha256 == hashlib.sha256((saved / WEIGHTS_FILE).read_bytes()).hexdigest()
    assert checkpoint_of().sha256 is None and average([loaded, loaded]).sha256 is None


def test_the_weights_are_read_once(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def counted(self: Path, *arguments: Any, **options: Any) -> Any:
        opened.append(self.name)
        return open(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", counted)
    load_hypernetwork(saved)
    assert sorted(opened) == sorted([CONFIG_FILE, WEIGHTS_FILE])


def test_a_multi_task_lora_that_does_not_fit_is_refused() -> None:
    with pytest.raises(
        UsageError, match="alpha 3, 2 modules. does not fit the hypernetwork .rank 2, alpha 4"
    ):
        dataclasses.replace(checkpoint_of(), multi_task=multi_task(alpha=3.0))


@pytest.mark.parametrize("damage", ["missing", "a tensor missing", "other shapes", "not a number"])
def test_damaged_multi_task_loras(damage: str, tmp_path: Path) -> None:
    save_hypernetwork(dataclasses.replace(checkpoint_of(), multi_task=multi_task()), tmp_path / "network")
    path = tmp_path / "network" / MULTI_TASK_FILE
    state = load_file(path)
    name = f"{TARGETS[0].name}.a"
    if damage == "missing":
        path.unlink()
    elif damage == "a tensor missing":
        save_file({n: t for n, t in state.items() if n != name}, path)
    else:
        broken = torch.full_like(state[name], torch.nan) if damage == "not a number" else torch.ones(3, 8)
        save_file({**state, name: broken}, path)
    with pytest.raises(ShoalError, match="multi_task"):
        load_hypernetwork(tmp_path / "network")


def test_an_average_has_mean_weights_and_the_last_ones_facts() -> None:
    one, other = checkpoint_of(), dataclasses.replace(checkpoint_of(), known_tasks=known())
    one.network.architecture = dataclasses.replace(ARCHITECTURE, dropout=0.4)  # which no weight shows
    before = {name: tensor.clone() for name, tensor in state_of(other).items()}
    mean = average([dataclasses.replace(one, provenance={"tokens": 1}), other])
    for name, tensor in state_of(mean).items():
        torch.testing.assert_close(tensor, (state_of(one)[name] + before[name]) / 2)
        assert torch.equal(state_of(other)[name], before[name])
    assert mean.known_tasks is other.known_tasks and mean.trained
    assert mean.provenance == {**other.provenance, "averaged_with": [{"tokens": 1}]}


def test_what_has_no_average() -> None:
    one = checkpoint_of()
    with pytest.raises(UsageError, match="at least 2 hypernetworks, got 1"):
        average([one])
    with pytest.raises(UsageError, match="of another base model have no average"):
        average([dataclasses.replace(one, base_model="someone/other"), one])
    with pytest.raises(UsageError, match="of another architecture have no average"):
        average([checkpoint_of("M"), one])


@pytest.mark.parametrize("damage", ["missing", "shape", "probe", "short probe", "names", "ends"])
def test_damaged_known_tasks(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "network"
    save_hypernetwork(dataclasses.replace(checkpoint_of(), known_tasks=known()), folder)
    if damage == "missing":
        (folder / KNOWN_TASKS_FILE).unlink()
    elif damage == "shape":
        save_file({"centres": torch.ones(2, 5), "sense": torch.ones(13)}, folder / KNOWN_TASKS_FILE)
    elif damage == "probe":
        save_file({"centres": torch.ones(2, 12)}, folder / KNOWN_TASKS_FILE)
    elif damage == "short probe":
        save_file({"centres": torch.ones(2, 12), "sense": torch.ones(12)}, folder / KNOWN_TASKS_FILE)
    else:
        change = {"names": ["one", 2], "near": 0.1, "far": 1} if damage == "names" else {"names": ["a", "b"]}
        change_description(known_tasks=change)(folder)
    with pytest.raises(ShoalError, match="known_tasks"):
        load_hypernetwork(folder)


def test_learned_refining_is_kept_beside_the_network(tmp_path: Path) -> None:
    rates = dict.fromkeys(group_modules(TARGETS).values(), 1e-3)
    learned = Refining("someone/model", "unknown before it is written", rates, 0.01, {4: 8})
    folder = tmp_path / "network"
    save_hypernetwork(dataclasses.replace(checkpoint_of(), refining=learned), folder)
    loaded = load_hypernetwork(folder)
    assert loaded.refining == dataclasses.replace(learned, network=loaded.sha256)
    assert average([loaded, loaded]).refining is None


def test_refining_of_other_weights_is_refused(tmp_path: Path, saved: Path) -> None:
    rates = dict.fromkeys(group_modules(TARGETS).values(), 1e-3)
    learned = Refining("someone/model", "00" * 32, rates, 0.01, {4: 8})
    (saved / REFINING_FILE).write_text(json.dumps(learned.to_json()))
    with pytest.raises(ShoalError, match="learned for the network 0000"):
        load_hypernetwork(saved)
