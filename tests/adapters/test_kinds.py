"""A new kind of adapter is one module and one row of the table: here a bias on the output of some modules."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from shoal.adapters.base import (
    Adapter,
    Attachment,
    Hook,
    Kind,
    LoadedAdapter,
    fingerprint_of,
    nbytes_of,
)
from shoal.adapters.card import AdapterCard
from shoal.adapters.decomposition import Decompositions
from shoal.adapters.kinds import KINDS, attach_adapter, basis_for, compose_adapters, load, save
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.adapters.svf import ExpertVector
from shoal.adapters.svf_cache import decompose_model
from shoal.adapters.svf_files import read_expert
from shoal.errors import ShoalError, UsageError
from shoal.file_formats import read_json, read_tensors
from shoal.files import read_directory, write_directory
from shoal.inference.engine.adapter_cache import AdapterCache
from shoal.inference.engine.core import Engine
from shoal.inference.engine.records import Request, TokenScore
from shoal.inference.generate import generate_greedy
from shoal.inference.sampling import Sampling
from shoal.inference.scoring import reference_losses
from shoal.models.backbone import Backbone, load_backbone
from shoal.models.modules import module_sizes
from shoal.models.shapes import BackboneShape

TOLERANCE = 1e-4  # of log-probabilities, float32: other batches are other orders of summation
CARD = AdapterCard(generator="test", trained=True, description="say it otherwise")


@dataclass(frozen=True, eq=False)
class OutputBias:
    """A vector that is added to the output of each module that it names."""

    bias: Mapping[str, Tensor]

    @property
    def rank(self) -> int:
        return 0

    @property
    def nbytes(self) -> int:
        return nbytes_of(self.bias)

    def fingerprint(self) -> str:
        return fingerprint_of(self.bias, "OutputBias")


class BiasRows:
    """Rows with biases of their own."""

    def __init__(self, model: nn.Module, basis: Decompositions) -> None:
        self._model = model
        self._stacked: dict[str, Tensor] = {}

    def update(self, rows: Sequence[OutputBias | None], changed: Sequence[int]) -> None:
        sizes = {name: len(b) for row in rows if row for name, b in row.bias.items()}
        self._stacked = {
            name: torch.stack([row.bias.get(name, torch.zeros(k)) if row else torch.zeros(k) for row in rows])
            for name, k in sizes.items()
        }

    def hooks(self) -> Iterator[tuple[nn.Module, Hook]]:
        for name, bias in self._stacked.items():
            yield self._model.get_submodule(name), adding(bias)


def adding(bias: Tensor) -> Hook:
    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return (output.reshape(len(bias), -1, bias.shape[1]) + bias[:, None]).view_as(output)

    return add


def check(model: nn.Module, adapter: OutputBias, basis: Decompositions) -> None:
    for name, bias in adapter.bias.items():
        if (module_sizes(model.get_submodule(name)) or (0, 0))[1] != len(bias):
            raise UsageError(f"a bias of {len(bias)} numbers does not fit {name}; use its base model")


def attach_bias(model: nn.Module, adapter: OutputBias, basis: Decompositions) -> Attachment:
    check(model, adapter, basis)
    with ExitStack() as undo:
        for name, bias in adapter.bias.items():
            undo.callback(model.get_submodule(name).register_forward_hook(adding(bias[None])).remove)
        return Attachment(undo.pop_all())


def save_bias(
    directory: Path, adapter: OutputBias, shape: BackboneShape, basis: Decompositions, card: AdapterCard
) -> None:
    def write(folder: Path) -> None:
        save_file(dict(adapter.bias), folder / "bias.safetensors")
        (folder / "bias.json").write_text(json.dumps({"base_model": shape.base_model}), "utf-8")

    write_directory(directory, write)


def load_bias(directory: Path) -> LoadedAdapter[OutputBias]:
    def read(folder: Path) -> LoadedAdapter[OutputBias]:
        adapter = OutputBias(read_tensors(folder / "bias.safetensors"))
        return LoadedAdapter(adapter, read_json(folder / "bias.json")["base_model"])

    return read_directory(directory, read)


ROW = Kind("bias", "bias.json", check, attach_bias, BiasRows, save_bias, load_bias)


@pytest.fixture(autouse=True)
def _third_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, OutputBias, ROW)


class Zoo:
    """A tiny model with an adapter of every kind, each strong enough to change answers."""

    def __init__(self, path: Path) -> None:
        self.backbone: Backbone = load_backbone(str(path), device="cpu", dtype=torch.float32)
        generator = torch.Generator().manual_seed(3)
        shape = self.backbone.shape
        names = [t.name for t in shape.select(("up_proj", "down_proj"), None)]
        self.basis: Decompositions = decompose_model(self.backbone.model, names)
        lora = LoRA.identity(shape.select(("q_proj", "v_proj"), None), 2, 4.0, generator=generator)
        factors = {
            n: LoraFactors(f.a, torch.randn(f.b.shape, generator=generator)) for n, f in lora.factors.items()
        }
        biased = shape.select(("o_proj", "up_proj"), None)
        self.adapters: dict[str, Adapter | None] = {
            "plain": None,
            "lora": LoRA(factors, 4.0),
            "expert": ExpertVector({n: torch.linspace(0, 3, d.s.numel()) for n, d in self.basis.items()}),
            "bias": OutputBias({t.name: torch.randn(t.out_features, generator=generator) for t in biased}),
        }


@pytest.fixture(scope="module", params=["llama", "opt"])  # opt flattens (batch, sequence)
def zoo(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Zoo:
    return Zoo(tiny_models[request.param])


def answers(engine: Engine, requests: Sequence[Request]) -> list[list[TokenScore]]:
    tickets = [engine.submit(request) for request in requests]
    found: dict[int, list[TokenScore]] = {ticket: [] for ticket in tickets}
    while engine.busy:
        for event in engine.step():
            assert event.error is None
            found[event.ticket] += event.delta.tokens if event.delta else ()
    return [found[ticket] for ticket in tickets]


def test_a_mixed_batch_answers_as_each_adapter_does_alone(zoo: Zoo) -> None:
    engine = Engine(zoo.backbone, basis=zoo.basis)
    requests = [
        Request(
            [5, 9 + place, 7], adapter, 6, sampling=Sampling(temperature=0), logprobs=0, stop_at_end=False
        )
        for place, adapter in enumerate([*zoo.adapters.values(), *zoo.adapters.values()])
    ]
    together = answers(engine, requests)
    for request, tokens in zip(requests, together, strict=True):
        (alone,) = answers(engine, [request])
        assert [t.token for t in tokens] == [t.token for t in alone] and len(tokens) == 6
        assert [t.logprob for t in tokens] == pytest.approx([t.logprob for t in alone], abs=TOLERANCE)
    assert not any(m._forward_hooks for m in zoo.backbone.model.modules())


def test_one_adapter_for_all_and_one_for_each_agree(zoo: Zoo) -> None:
    texts = ["one", "two", "three"]
    plain = reference_losses(zoo.backbone, texts, texts)
    for name, adapter in zoo.adapters.items():
        shared = reference_losses(zoo.backbone, texts, texts, adapter, basis=zoo.basis)
        own = reference_losses(zoo.backbone, texts, texts, [adapter] * 3, basis=zoo.basis)
        assert own == pytest.approx(shared, abs=TOLERANCE)
        assert (shared == plain) is (name == "plain")
        given = {"basis": zoo.basis, "max_new_tokens": 5}
        assert generate_greedy(zoo.backbone, texts, adapter, **given) == generate_greedy(
            zoo.backbone, texts, [adapter] * 3, **given
        )


@pytest.mark.parametrize("kind", ["lora", "expert", "bias"])
@torch.no_grad()
def test_attaching_changes_the_model_and_detaching_restores_it(zoo: Zoo, kind: str) -> None:
    ids, model = torch.tensor([[1, 2, 3]]), zoo.backbone.model
    before = model(ids).logits
    with attach_adapter(model, zoo.adapters[kind], zoo.basis):
        assert not torch.equal(model(ids).logits, before)
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("kind", ["lora", "expert", "bias"])
def test_the_cache_counts_the_bytes_of_every_kind(zoo: Zoo, kind: str) -> None:
    adapter = zoo.adapters[kind]
    cache = AdapterCache(lambda name: adapter, 2 * adapter.nbytes + 1)
    for name in "abc":
        assert cache.get(name) is adapter
    held = cache.statistics()
    assert (held.adapters, held.evictions, held.bytes) == (2, 1, 2 * adapter.nbytes)


@pytest.mark.parametrize("kind", ["lora", "expert", "bias"])
def test_what_is_saved_comes_back(zoo: Zoo, kind: str, tmp_path: Path) -> None:
    adapter, shape = zoo.adapters[kind], zoo.backbone.shape
    save(tmp_path / "a", adapter, shape=shape, card=CARD, basis=zoo.basis)
    again = load(tmp_path / "a")
    assert type(again.adapter) is type(adapter) and again.base_model == shape.base_model
    assert again.adapter.fingerprint() == adapter.fingerprint()
    assert again.card == (None if kind == "bias" else CARD)
    model, ids = zoo.backbone.model, torch.tensor([[1, 2, 3]])
    with attach_adapter(model, adapter, zoo.basis), torch.no_grad():
        before = model(ids).logits
    with attach_adapter(model, again.adapter, basis_for(model, again)), torch.no_grad():
        torch.testing.assert_close(model(ids).logits, before, atol=1e-4, rtol=1e-4)


def test_an_expert_is_saved_under_the_name_of_its_directory(zoo: Zoo, tmp_path: Path) -> None:
    save(tmp_path / "riddles", zoo.adapters["expert"], shape=zoo.backbone.shape, card=CARD, basis=zoo.basis)
    assert read_expert(tmp_path / "riddles").skill == "riddles"


def test_an_adapter_of_another_model_is_refused(
    zoo: Zoo, tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    other = load_backbone(str(tiny_models["gpt2"]), device="cpu")
    for kind in ("lora", "expert"):
        save(tmp_path / kind, zoo.adapters[kind], shape=zoo.backbone.shape, card=CARD, basis=zoo.basis)
        with pytest.raises(UsageError, match="no (such )?module"):
            basis_for(other.model, load(tmp_path / kind))


def test_a_batch_of_experts_is_no_adapter_for_every_row(zoo: Zoo) -> None:
    expert = zoo.adapters["expert"]
    assert isinstance(expert, ExpertVector)
    pair = ExpertVector.stack([expert, expert])
    with pytest.raises(UsageError, match="a batch of 2 experts is not one expert"):
        attach_adapter(zoo.backbone.model, pair, zoo.basis)
    with pytest.raises(UsageError, match="a batch of 2 experts is not one expert"):
        generate_greedy(zoo.backbone, ["one", "two"], pair, basis=zoo.basis, max_new_tokens=2)


def test_a_fingerprint_is_of_the_content(zoo: Zoo) -> None:
    prints = [adapter.fingerprint() for adapter in zoo.adapters.values() if adapter is not None]
    assert len(set(prints)) == 3
    lora = zoo.adapters["lora"]
    assert lora.copy().fingerprint() == lora.fingerprint() != (lora * 2.0).fingerprint()


def test_kinds_that_are_not_there_or_do_not_add_up_are_refused(zoo: Zoo, tmp_path: Path) -> None:
    lora, expert, bias = zoo.adapters["lora"], zoo.adapters["expert"], zoo.adapters["bias"]
    assert compose_adapters([lora, lora], [1.0, -0.5]).rank == 2 * lora.rank
    with pytest.raises(UsageError, match="one kind, got LoRA, bias"):
        compose_adapters([lora, bias], [1.0, 1.0])
    with pytest.raises(UsageError, match="kind expert are not mixed by name; .* `shoal adapt`"):
        compose_adapters([expert, expert], [1.0, 1.0])
    with pytest.raises(UsageError, match="a str is no adapter; give one of LoRA, ExpertVector, OutputBias"):
        attach_adapter(zoo.backbone.model, "lora")
    with pytest.raises(UsageError, match="no directory"):
        load(tmp_path / "none")
    with pytest.raises(ShoalError, match="holds 0 of adapter_config.json, expert.json, bias.json"):
        load(tmp_path)
