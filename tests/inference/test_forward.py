"""Less computed, the same numbers: losses, resumed layers and recomputed activations, on every family."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoal.adapters.hooks import attach
from shoal.adapters.lora import BatchedLoRA, LoRA, LoraFactors
from shoal.adapters.merging import stack
from shoal.inference.forward import (
    Sequences,
    adapted,
    answer_logits,
    answer_losses,
    hidden_before,
    pad_sequences,
)
from shoal.models.backbone import Backbone, load_backbone
from shoal.models.modules import TargetModule

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gpt2", "gpt_neox", "opt", "phi")
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
PAIRS = [([7, 8, 9, 10, 11], [12, 13, 14]), ([20, 21], [22]), ([30], [31, 32, 33, 34, 35, 36, 37, 38, 39])]
MODULES = ("q_proj", "v_proj", "o_proj", "down_proj")


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Backbone:
    return load_backbone(str(tiny_models[request.param]), device="cpu", dtype=torch.float32)


@pytest.fixture
def llama(tiny_llama: Path) -> Backbone:
    return load_backbone(str(tiny_llama), device="cpu", dtype=torch.float32)


def batch_of(pairs: list[tuple[list[int], list[int]]]) -> Sequences:
    return pad_sequences(pairs, 258, torch.device("cpu"))


@pytest.fixture(params=["padded", "without padding"])
def batch(request: pytest.FixtureRequest) -> Sequences:
    return batch_of(PAIRS if request.param == "padded" else [PAIRS[0], (PAIRS[0][0][:3], PAIRS[2][1][:5])])


def reference_losses(model: nn.Module, batch: Sequences, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of the answer tokens from the logits of every position, row by row."""
    logits = model(input_ids=batch.ids, attention_mask=batch.real.long()).logits
    rows = []
    for row in range(len(batch.ids)):
        places = batch.answer[row].nonzero()[:, 0]
        given, wanted = logits[row, places - 1], batch.ids[row, places]
        rows.append(F.cross_entropy(given, wanted, label_smoothing=label_smoothing))
    return torch.stack(rows)


def trainable(targets: tuple[TargetModule, ...], rows: int | None, seed: int = 0) -> LoRA | BatchedLoRA:
    """An adapter, or one a row, whose factors ask for gradients."""
    generator = torch.Generator().manual_seed(seed)
    shape = () if rows is None else (rows,)
    factors = {
        t.name: LoraFactors(
            (torch.randn(*shape, 2, t.in_features, generator=generator) / 8).requires_grad_(),
            (torch.randn(*shape, t.out_features, 2, generator=generator) / 8).requires_grad_(),
        )
        for t in targets
    }
    return LoRA(factors, 4.0) if rows is None else BatchedLoRA(factors, 4.0)


def gradients(lora: LoRA | BatchedLoRA, losses: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(losses.sum(), [t for f in lora.factors.values() for t in f]))


def state_of(model: nn.Module) -> list[object]:
    """Everything that a forward pass with hooks could leave behind."""
    return [
        (name, "forward" in vars(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks))
        for name, m in model.named_modules()
    ]


def test_sequences_are_padded_on_the_right() -> None:
    batch = batch_of([([1, 2], [3]), ([4], [5, 6, 7]), ([], [8, 9])])
    assert batch.ids.tolist() == [[1, 2, 3, 258], [4, 5, 6, 7], [8, 9, 258, 258]]
    assert batch.real.tolist() == [[True] * 3 + [False], [True] * 4, [True] * 2 + [False] * 2]
    wanted = [[False, False, True, False], [False, True, True, True], [False, True, False, False]]
    assert batch.answer.tolist() == wanted  # nothing predicts a first token
    assert batch.tokens == 9


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_answer_losses_are_those_of_all_logits(
    backbone: Backbone, batch: Sequences, smoothing: float
) -> None:
    losses = answer_losses(backbone, batch, label_smoothing=smoothing)
    assert losses.dtype == torch.float32 and losses.shape == (len(batch.ids),)
    torch.testing.assert_close(losses, reference_losses(backbone.model, batch, smoothing), **CLOSE)


def test_logits_are_computed_at_answers_only(llama: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of(PAIRS)
    rows: list[int] = []
    forward = llama.model.lm_head.forward
    monkeypatch.setattr(llama.model.lm_head, "forward", lambda x: (rows.append(len(x)), forward(x))[1])
    logits = answer_logits(llama, batch)
    assert rows == [int(batch.answer.sum())] == [len(logits)]


def test_soft_capping_stays(tiny_models: dict[str, Path]) -> None:
    backbone = load_backbone(str(tiny_models["gemma2"]), device="cpu", dtype=torch.float32)
    batch = batch_of(PAIRS)
    backbone.model.config.final_logit_softcapping = 0.5
    capped = answer_losses(backbone, batch)
    assert answer_logits(backbone, batch).abs().max() < 0.5
    torch.testing.assert_close(capped, reference_losses(backbone.model, batch), **CLOSE)


@pytest.mark.parametrize("start", [1, 2])
@pytest.mark.parametrize("batched", [False, True], ids=["one adapter", "one a row"])
def test_resuming_at_a_layer_is_the_full_run(backbone: Backbone, batched: bool, start: int) -> None:
    batch = batch_of(PAIRS)
    targets = backbone.shape.select(MODULES, 3 - start)
    lora = trainable(targets, len(PAIRS) if batched else None)
    with attach(backbone.model, lora):
        full = answer_losses(backbone, batch)
        hidden = hidden_before(backbone.model, batch, start)
        resumed = answer_losses(backbone, batch, start=start, hidden=hidden)
    torch.testing.assert_close(resumed, full, **CLOSE)
    assert not torch.allclose(resumed, answer_losses(backbone, batch), **CLOSE)  # the adapter acts
    torch.testing.assert_close(gradients(lora, resumed), gradients(lora, full), **CLOSE)


def test_hidden_states_are_those_of_the_model(backbone: Backbone, batch: Sequences) -> None:
    states = backbone.model(
        input_ids=batch.ids, attention_mask=batch.real.long(), output_hidden_states=True
    ).hidden_states
    for layer in (1, 2):
        hidden = hidden_before(backbone.model, batch, layer)
        torch.testing.assert_close(hidden[batch.real], states[layer][batch.real], **CLOSE)
        assert hidden.dtype == backbone.dtype and not hidden.requires_grad


def test_frozen_layers_are_not_computed_twice(llama: Backbone) -> None:
    batch = batch_of(PAIRS)
    ran: list[int] = []
    hooks = [
        layer.self_attn.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, layer in enumerate(llama.layers)
    ]
    hidden = hidden_before(llama.model, batch, 2)
    assert ran == [0, 1]
    answer_losses(llama, batch, start=2, hidden=hidden)
    assert ran == [0, 1, 2]
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("batched", [False, True], ids=["one adapter", "one a row"])
def test_recomputed_activations_give_the_same_gradients(backbone: Backbone, batched: bool) -> None:
    """Also where the backward pass runs after the adapter is detached."""
    batch = batch_of(PAIRS)
    lora = trainable(backbone.shape.select(MODULES, None), len(PAIRS) if batched else None)
    before = state_of(backbone.model)
    with adapted(backbone, lora):
        kept = answer_losses(backbone, batch)
    with adapted(backbone, lora, recompute=True):
        recomputed = answer_losses(backbone, batch)
    assert state_of(backbone.model) == before
    assert torch.equal(recomputed, kept)
    for ours, theirs in zip(gradients(lora, recomputed), gradients(lora, kept), strict=True):
        assert ours.abs().max() > 0 and torch.equal(ours, theirs)
    assert state_of(backbone.model) == before


def test_recomputing_keeps_fewer_activations(llama: Backbone) -> None:
    batch = batch_of(PAIRS)
    lora = trainable(llama.shape.select(MODULES, None), None)

    def kept_bytes(recompute: bool) -> int:
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        watch = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with watch, adapted(llama, lora, recompute=recompute):
            losses = answer_losses(llama, batch)
        assert losses.requires_grad
        return sum(kept.values())

    assert kept_bytes(True) < 0.5 * kept_bytes(False)


def test_recomputing_works_with_resumed_layers(llama: Backbone) -> None:
    batch = batch_of(PAIRS)
    lora = trainable(llama.shape.select(("q_proj",), 1), None)
    hidden = hidden_before(llama.model, batch, 2)
    losses = []
    for recompute in (False, True):
        with adapted(llama, lora, recompute=recompute):
            losses.append(answer_losses(llama, batch, start=2, hidden=hidden))
    for ours, theirs in zip(gradients(lora, losses[1]), gradients(lora, losses[0]), strict=True):
        assert torch.equal(ours, theirs)


@pytest.fixture
def failing(llama: Backbone) -> Iterator[Backbone]:
    """A backbone whose last layer fails."""

    def fail(module: nn.Module, args: object) -> None:
        raise RuntimeError("out of memory")

    with llama.layers[2].mlp.register_forward_pre_hook(fail):
        yield llama


def test_a_failing_pass_leaves_the_model_as_it_was(failing: Backbone) -> None:
    batch = batch_of(PAIRS)
    before = state_of(failing.model)
    lora = trainable(failing.shape.select(MODULES, 2), None)
    hidden = hidden_before(failing.model, batch, 1)
    for recompute in (False, True):
        with pytest.raises(RuntimeError, match="out of memory"), adapted(failing, lora, recompute=recompute):
            answer_losses(failing, batch, start=1, hidden=hidden)
        assert state_of(failing.model) == before
    with pytest.raises(IndexError):
        hidden_before(failing.model, Sequences(batch.ids + 10_000, batch.real, batch.answer), 1)
    assert state_of(failing.model) == before


def test_a_forward_that_another_library_set_is_put_back(llama: Backbone) -> None:
    batch = batch_of(PAIRS)
    hidden, layer = hidden_before(llama.model, batch, 1), llama.layers[0]
    own = layer.forward
    layer.forward = lambda *args, **kwargs: own(*args, **kwargs)
    theirs = layer.forward
    answer_losses(llama, batch, start=1, hidden=hidden)
    assert layer.forward is theirs


def test_half_precision_losses_are_float32(tiny_llama: Path) -> None:
    backbone = load_backbone(str(tiny_llama), device="cpu", dtype=torch.bfloat16)
    losses = answer_losses(backbone, batch_of(PAIRS))
    assert losses.dtype == torch.float32
    full = load_backbone(str(tiny_llama), device="cpu", dtype=torch.float32)
    torch.testing.assert_close(losses, answer_losses(full, batch_of(PAIRS)), atol=0.1, rtol=0.02)


def test_rows_do_not_see_each_other(llama: Backbone) -> None:
    loras = [trainable(llama.shape.select(MODULES, None), None, seed) for seed in range(len(PAIRS))]
    with attach(llama.model, stack(loras)):
        together = answer_losses(llama, batch_of(PAIRS))
    for row, lora in enumerate(loras):
        with attach(llama.model, lora):
            alone = answer_losses(llama, batch_of([PAIRS[row]]))
        torch.testing.assert_close(together[row : row + 1], alone, **CLOSE)
