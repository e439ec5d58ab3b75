"""LoRAs of a model's embedding and output layer: as in PEFT attached, merged, in rows, and on disk."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from shoal.adapters.batched import RowAdapters
from shoal.adapters.card import AdapterCard
from shoal.adapters.export import export_gguf, export_merged
from shoal.adapters.files import load_adapter, save_adapter
from shoal.adapters.hooks import attach, merge
from shoal.adapters.lora import LoRA
from shoal.adapters.merging import stack
from shoal.errors import UsageError
from shoal.inference.decoding import Rows
from shoal.inference.scoring import reference_losses
from shoal.models.backbone import Backbone, load_backbone, shape_of
from shoal.registry.importing import read_foreign

peft = pytest.importorskip("peft")

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
TIED, UNTIED = ("gemma", "gpt2", "opt"), ("llama", "qwen3", "gpt_neox", "phi")
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # PEFT warns of every adapted end
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False).eval()


def ends(model: PreTrainedModel) -> dict[str, str]:
    """The last parts of the names of both ends."""
    shape = shape_of(model, "tiny")
    names = {("embedding" if end.embedding else "head"): end.name.split(".")[-1] for end in shape.ends}
    return names | {"query": shape.targets[0].type.split(".")[-1]}


def tokens() -> Tensor:
    return torch.randint(0, 256, (3, 7), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(tokens(), use_cache=False).logits


def by_peft(folder: Path, to: Path, parts: tuple[str, ...], **settings: Any) -> Tensor:
    """The logits of an adapter that PEFT itself makes, of large random factors, and writes to a folder."""
    model = load(folder)
    targets = [ends(model)[part] for part in parts]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=targets, task_type="CAUSAL_LM", **settings)
        wrapped = peft.get_peft_model(model, config).eval()
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(0, 0.1)
        wrapped.peft_config["default"].base_model_name_or_path = str(folder)
        wrapped.save_pretrained(to)
    return logits(wrapped)


PARTS = {"head": ("head",), "embedding": ("embedding",), "all": ("head", "embedding", "query")}


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("family", [*TIED, *UNTIED])
def test_ends_compute_what_they_do_in_peft_attached_and_merged(
    family: str, parts: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    expected = by_peft(tiny_models[family], tmp_path / "adapter", PARTS[parts])
    model = load(tiny_models[family])
    shape = shape_of(model, str(tiny_models[family]))
    lora, base = read_foreign(tmp_path / "adapter", shape).lora, logits(model)
    assert (expected - base).abs().max() > 0.01
    with attach(model, lora):
        torch.testing.assert_close(logits(model), expected, **CLOSE)
    with merge(model, lora):
        torch.testing.assert_close(logits(model), expected, **CLOSE)
    assert torch.equal(logits(model), base)
    assert all(end.tied == (family in TIED) for end in shape_of(model, "tiny").ends)


@pytest.mark.parametrize("parts", ["head", "embedding", "all"])
def test_tied_factors_of_peft_are_taken_at_both_ends(
    parts: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    expected = by_peft(tiny_models["gemma"], tmp_path / "a", PARTS[parts], ensure_weight_tying=True)
    model = load(tiny_models["gemma"])
    lora = read_foreign(tmp_path / "a", shape_of(model, str(tiny_models["gemma"]))).lora
    assert {"lm_head", "model.embed_tokens"} <= lora.factors.keys()
    with attach(model, lora):
        torch.testing.assert_close(logits(model), expected, **CLOSE)


@pytest.mark.parametrize("family", ["gemma", "llama", "gpt2"])
def test_peft_reads_ends_that_are_written_here(
    family: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    folder = tiny_models[family]
    expected = by_peft(folder, tmp_path / "adapter", PARTS["all"], layers_to_transform=None)
    shape = shape_of(load(folder), str(folder))
    lora = read_foreign(tmp_path / "adapter", shape).lora
    outer = [name for name in lora.factors if name in {end.name for end in shape.ends}]
    first = next(name for name in lora.factors if name not in outer)
    for kept, logits_of in (
        (lora, expected),
        (LoRA({n: lora.factors[n] for n in [*outer, first]}, 3.0), None),
    ):
        save_adapter(tmp_path / "own", kept, shape=shape, card=AdapterCard(generator="t", trained=True))
        with attach(model := load(folder), kept):
            here = logits(model)
        there = logits(peft.PeftModel.from_pretrained(load(folder), tmp_path / "own").eval())
        torch.testing.assert_close(there, here, **CLOSE)
        if logits_of is not None:
            torch.testing.assert_close(here, logits_of, **CLOSE)
            assert load_adapter(tmp_path / "own").lora == kept


@pytest.mark.parametrize("family", ["gemma", "llama"])
def test_a_merged_model_on_disk_has_two_weights_where_an_end_is_adapted(
    family: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    expected = by_peft(tiny_models[family], tmp_path / "adapter", PARTS["embedding"])
    backbone = load_backbone(str(tiny_models[family]), device="cpu", dtype=torch.float32)
    base, tied = logits(backbone.model), backbone.model.config.tie_word_embeddings
    lora = read_foreign(tmp_path / "adapter", backbone.shape).lora
    export_merged(backbone.model, backbone.tokenizer, lora, tmp_path / "merged")
    torch.testing.assert_close(logits(load(tmp_path / "merged")), expected, **CLOSE)
    assert torch.equal(logits(backbone.model), base)
    assert backbone.model.config.tie_word_embeddings == tied


@pytest.fixture
def adapters(tiny_models: dict[str, Path], tmp_path: Path) -> Callable[[str], tuple[Backbone, list[LoRA]]]:
    """A backbone with adapters of its head, its embedding, and both and layers."""

    def made(family: str) -> tuple[Backbone, list[LoRA]]:
        backbone = load_backbone(str(tiny_models[family]), device="cpu", dtype=torch.float32)
        loras = []
        for parts in PARTS:
            by_peft(tiny_models[family], tmp_path / parts, PARTS[parts])
            loras.append(read_foreign(tmp_path / parts, backbone.shape).lora)
        return backbone, loras

    return made


@pytest.mark.parametrize("family", ["gemma", "llama", "gpt2"])
def test_rows_with_ends_of_their_own_are_what_they_are_alone(
    family: str, adapters: Callable[[str], tuple[Backbone, list[LoRA]]]
) -> None:
    backbone, (head, embedding, both) = adapters(family)
    layers = LoRA(
        {n: f for n, f in both.factors.items() if n in {t.name for t in backbone.shape.targets}}, 3.0
    )
    chosen = [head, None, both, embedding, layers, both, head]
    prompts = [list(range(5, 9 + place)) for place in range(len(chosen))]

    def answers(rows: Rows) -> list[list[float]]:
        found = [rows.read(2), rows.read(), rows.step(torch.full((len(rows),), 7))]
        return torch.stack(found[1:], dim=1).tolist()

    together = answers(Rows(backbone, prompts, chosen))
    for place, (prompt, lora) in enumerate(zip(prompts, chosen, strict=True)):
        alone = answers(Rows(backbone, [prompt], [lora]))[0]
        torch.testing.assert_close(torch.tensor(together[place]), torch.tensor(alone), atol=1e-4, rtol=1e-4)


def test_rows_that_leave_take_their_ends_along(
    llama: PreTrainedModel, adapters: Callable[[str], tuple[Backbone, list[LoRA]]]
) -> None:
    _, (head, embedding, both) = adapters("llama")
    rows = RowAdapters(llama, {}, [head, None, both])
    rows.drop(0)
    rows.extend([embedding])
    with rows.attached():
        found = logits(llama)
    for place, lora in enumerate([both, None, embedding]):
        with attach(llama, lora) if lora else RowAdapters(llama, {}).attached():
            torch.testing.assert_close(found[place], logits(llama)[place], **CLOSE)
    assert RowAdapters(llama, {}, []).rows == []


def test_references_under_heads_of_their_own_lose_what_they_lose_alone(
    adapters: Callable[[str], tuple[Backbone, list[LoRA]]],
) -> None:
    backbone, (head, _, both) = adapters("llama")
    asked, right = ["a", "bcd", "ef"], ["short", "a much longer one", "mid"]
    together = reference_losses(backbone, asked, right, [head, None, both])
    for place, lora in enumerate([head, None, both]):
        alone = reference_losses(backbone, asked[place : place + 1], right[place : place + 1], lora)
        assert together[place] == pytest.approx(alone[0], abs=1e-4)


def test_a_batch_of_embeddings_is_refused(adapters: Callable[[str], tuple[Backbone, list[LoRA]]]) -> None:
    backbone, (_, embedding, _) = adapters("llama")
    with pytest.raises(UsageError, match="cannot change an embedding"):
        attach(backbone.model, stack([embedding, embedding]))


def test_gguf_holds_ends_of_two_weights_alone(
    adapters: Callable[[str], tuple[Backbone, list[LoRA]]], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    backbone, (_, _, both) = adapters("llama")
    export_gguf(both, tmp_path / "a.gguf", config=backbone.model.config, name="x")
    tensors = {t.name: np.array(t.data) for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    vocabulary = backbone.model.config.vocab_size
    # llama.cpp looks up rows of an embedding's A, so it expects it transposed (llama-adapter.cpp).
    assert tensors["token_embd.weight.lora_a"].shape == (vocabulary, 2)
    assert tensors["token_embd.weight.lora_b"].shape == (32, 2)
    assert tensors["output.weight.lora_a"].shape == (2, 32)
    assert tensors["output.weight.lora_b"].shape == (vocabulary, 2)
    tied = AutoConfig.from_pretrained(tiny_models["llama"])
    tied.tie_word_embeddings = True
    with pytest.raises(UsageError, match="one weight, which llama.cpp cannot split; export merged"):
        export_gguf(both, tmp_path / "b.gguf", config=tied, name="x")
