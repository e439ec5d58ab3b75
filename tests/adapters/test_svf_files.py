"""Experts on disk: what was saved comes back, and another model's or a damaged one is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shoal.adapters.decomposition import Decomposition, decompose
from shoal.adapters.svf import ExpertVector
from shoal.adapters.svf_files import CONFIG_FILE, WEIGHTS_FILE, StoredExpert, load_expert, save_expert
from shoal.errors import ShoalError, UsageError


def basis(seed: int = 0, components: int | None = None) -> dict[str, Decomposition]:
    generator = torch.Generator().manual_seed(seed)
    return {
        n: decompose(torch.randn(6, 4, generator=generator)).truncated(components) for n in ("one", "two")
    }


def stored() -> StoredExpert:
    z = {"one": torch.tensor([1.0, 0.5, 2.0, 1.1]), "two": torch.ones(4)}
    return StoredExpert(ExpertVector(z), "acme/tiny", "mathematics", {"steps": 3})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_expert(tmp_path / "e", stored(), basis())
    return tmp_path / "e"


def test_what_was_saved_comes_back(saved: Path) -> None:
    again, before = load_expert(saved, basis()), stored()
    assert again.expert == before.expert
    assert (again.base_model, again.skill, again.provenance) == ("acme/tiny", "mathematics", {"steps": 3})


def test_small_differences_of_machines_are_no_mismatch(saved: Path) -> None:
    near = {n: d._replace(s=d.s * (1 + 1e-5)) for n, d in basis().items()}
    assert load_expert(saved, near).expert == stored().expert


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (basis(seed=1), "other weights: the singular values of one sum to"),
        (basis(components=2), "4 numbers, but 2"),
        ({"one": basis()["one"]}, "not decomposed"),
    ],
)
def test_an_expert_of_other_weights_is_refused(saved: Path, other: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load_expert(saved, other)


def test_damaged_directories_are_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no directory"):
        load_expert(tmp_path / "none", basis())
    weights, config = saved / WEIGHTS_FILE, saved / CONFIG_FILE
    whole, facts = weights.read_bytes(), json.loads(config.read_text())

    def refused(says: str) -> None:
        with pytest.raises(ShoalError, match=says):
            load_expert(saved, basis())
        weights.write_bytes(whole)
        config.write_text(json.dumps(facts))

    weights.write_bytes(whole[:-2])
    refused(WEIGHTS_FILE)
    save_file({"one": torch.tensor([1.0, float("nan"), 1.0, 1.0])}, weights)
    refused("NaN")
    save_file({"one": torch.ones(4)}, weights)
    refused("do not belong together")
    for change in (
        {"format": 2},
        {"fingerprint": 3},
        {"fingerprint": {"one": None}},
        {"fingerprint": {"one": [1.0]}},
    ):
        config.write_text(json.dumps({**facts, **change}))
        refused("format 2" if "format" in change else "holds no expert")
    assert load_expert(saved, basis()).skill == "mathematics"


def test_what_is_not_one_expert_is_not_saved(tmp_path: Path) -> None:
    both = ExpertVector.stack([stored().expert] * 2)
    with pytest.raises(UsageError, match="batch of 2"):
        save_expert(tmp_path / "e", StoredExpert(both, "acme/tiny", "x"), basis())
    with pytest.raises(UsageError, match="but 2"):
        save_expert(tmp_path / "e", stored(), basis(components=2))
    broken = ExpertVector({name: z * float("inf") for name, z in stored().expert.z.items()})
    with pytest.raises(UsageError, match="z of one holds NaN"):
        save_expert(tmp_path / "e", StoredExpert(broken, "acme/tiny", "x"), basis())
    assert not (tmp_path / "e").exists()
