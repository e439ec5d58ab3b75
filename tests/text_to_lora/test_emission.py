"""From descriptions to adapters: what nonsense gets, and in which dtype the network computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.adapters.lora import LoRA, LoraFactors
from shoal.models.modules import TargetModule
from shoal.text_to_lora.checkpoint import HypernetworkCheckpoint
from shoal.text_to_lora.emission import Emitter
from shoal.text_to_lora.familiarity import KnownTasks
from shoal.text_to_lora.heads import Architecture
from shoal.text_to_lora.hypernetwork import Hypernetwork

ARCHITECTURE = Architecture(task_dim=12, rank=2, alpha=4.0, latent_size=8, hidden_size=12)
TARGETS = tuple(TargetModule(f"layers.{n}.q", n, "q", 8, 16) for n in range(2))


class FixedEncoder:
    """Two descriptions: one where a known task is; one far away, nonsense to the probe of `KNOWN`."""

    dim, name = ARCHITECTURE.task_dim, "fixed"

    def encode(self, texts: list[str]) -> Tensor:
        return torch.stack([torch.ones(self.dim) * (1 if text == "near" else -1) for text in texts])


CENTRES = torch.nn.functional.normalize(torch.ones(2, ARCHITECTURE.task_dim), dim=-1)
KNOWN = KnownTasks(("one", "other"), CENTRES, 0.5, 1.5, torch.ones(ARCHITECTURE.task_dim + 1))


def emitter(
    head: str = "L",
    provenance: Mapping[str, Any] | None = None,
    known_tasks: KnownTasks | None = None,
    multi_task: LoRA | None = None,
) -> Emitter:
    """A network with noise in every weight, always the same."""
    torch.manual_seed(0)
    network = Hypernetwork(TARGETS, replace(ARCHITECTURE, head=head)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    facts = provenance or {}
    checkpoint = HypernetworkCheckpoint(network, "a/model", "fixed", True, facts, known_tasks, multi_task)
    return Emitter(checkpoint, FixedEncoder())  # type: ignore[arg-type]


def test_nonsense_gets_the_shared_adapter() -> None:
    plain = emitter().emit(["near", "strange"])
    guarded = emitter(known_tasks=KNOWN)
    emission = guarded.emit(["near", "strange"])
    assert plain.familiarities is None
    assert emission.adapters.row(0) == plain.adapters.row(0)
    shared = guarded.checkpoint.network.offset_lora()
    assert emission.adapters.row(1) == shared != plain.adapters.row(1)
    assert [f.confidence for f in emission.familiarities or ()] == [1, 0]


def test_where_no_description_was_trained_nonsense_gets_its_adapter() -> None:
    facts = {"config": {"description_dropout": 0.05}}
    guarded = emitter(provenance=facts, known_tasks=KNOWN)
    emission = guarded.emit(["near", "strange"])
    assert emission.adapters.row(0) == emitter().emit(["near", "strange"]).adapters.row(0)
    shared = guarded.checkpoint.network.offset_lora()
    assert emission.adapters.row(1) == guarded.emit_null() == guarded.fallback != shared


def test_a_network_of_reconstruction_was_shown_no_null_description() -> None:
    own = emitter(provenance={"config": {"description_dropout": 0.05, "objective": "reconstruction"}})
    assert own.fallback == own.checkpoint.network.offset_lora() != own.emit_null()


def test_a_far_description_keeps_its_own_adapter() -> None:
    sensible = replace(KNOWN, sense=torch.zeros(ARCHITECTURE.task_dim + 1))
    emission = emitter(known_tasks=sensible).emit(["strange"])
    assert emission.familiarities is not None and emission.familiarities[0].confidence == 0
    assert emission.adapters.row(0) == emitter().emit(["strange"]).adapters.row(0)


def test_a_multi_task_lora_serves_nonsense() -> None:
    lora = LoRA.identity(TARGETS, ARCHITECTURE.rank, ARCHITECTURE.alpha)
    lora = LoRA({n: LoraFactors(f.a, f.b + 0.25) for n, f in lora.factors.items()}, ARCHITECTURE.alpha)
    guarded = emitter(known_tasks=KNOWN, multi_task=lora)
    emission, plain = (e.emit(["near", "strange", "near"]).adapters for e in (guarded, emitter()))
    assert emission.row(1) == guarded.fallback == lora
    for row in (0, 2):
        assert emission.row(row) == plain.row(row) != lora


class FixedReader:
    """States of two tokens per description, in a dtype."""

    small = False

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        self.width, self.dtype = width, dtype

    def read(self, texts: list[str]) -> list[Tensor]:
        return [
            torch.randn(2, 2, self.width, generator=torch.Generator().manual_seed(len(text))).to(self.dtype)
            for text in texts
        ]


def test_states_in_bfloat16_are_computed_with_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    loras = []
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(
            "shoal.text_to_lora.emission.description_reader",
            lambda network, *_, dtype=dtype: FixedReader(network.input_width, dtype),
        )
        own = emitter("reader")
        before = {name: tensor.clone() for name, tensor in own.checkpoint.network.state_dict().items()}
        loras.append(own.emit(["near", "strange"]).adapters.row(1))
        after = own.checkpoint.network.state_dict()
        assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    exact, short = loras
    for name, factors in exact.factors.items():
        for whole, rounded in zip(factors, short.factors[name], strict=True):
            assert whole.dtype == rounded.dtype == torch.float32
            assert 0 < float((rounded - whole).norm() / whole.norm()) < 0.03
            assert torch.equal(rounded, rounded.bfloat16().float())
