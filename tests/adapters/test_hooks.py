"""Adapters at work on a model: attached = merged = PEFT, detach restores the bits, batched = looped."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from shoal.adapters.hooks import attach, merge
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.adapters.merging import compose, stack
from shoal.errors import UsageError
from shoal.models.backbone import shape_of
from shoal.models.modules import TargetModule, is_conv1d, module_sizes

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gpt2", "gpt_neox", "opt", "phi")
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> PreTrainedModel:
    """A tiny model of each family in float32, without gradients."""
    return AutoModelForCausalLM.from_pretrained(tiny_models[request.param]).requires_grad_(False).eval()


def targets_of(model: PreTrainedModel) -> tuple[TargetModule, ...]:
    return shape_of(model, "tiny").targets


def random_lora(targets: Sequence[TargetModule], rank: int = 4, alpha: float = 8.0, seed: int = 0) -> LoRA:
    """An adapter large enough to change the logits of a tiny model plainly."""
    generator = torch.Generator().manual_seed(seed)
    factors = {
        t.name: LoraFactors(
            torch.randn(rank, t.in_features, generator=generator) / t.in_features**0.5,
            torch.randn(t.out_features, rank, generator=generator) * 0.1,
        )
        for t in targets
    }
    return LoRA(factors, alpha)


def tokens(rows: int = 3, length: int = 7) -> Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor | None = None) -> Tensor:
    return model(tokens() if ids is None else ids, use_cache=False).logits


def difference(x: Tensor, y: Tensor) -> float:
    return (x - y).abs().max().item()


def peft_logits(model: PreTrainedModel, lora: LoRA) -> Tensor:
    """The logits of the same factors inside PEFT's own layers."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(lora.factors),
        fan_in_fan_out=any(is_conv1d(model.get_submodule(name)) for name in lora.factors),
    )
    wrapped = peft.get_peft_model(model, config)
    for name, (a, b) in lora.factors.items():
        layer = wrapped.get_submodule(f"base_model.model.{name}")
        layer.lora_A.default.weight.data.copy_(a)
        layer.lora_B.default.weight.data.copy_(b)
    return logits(wrapped.eval())


# PEFT reads a property that transformers 5.23 deprecates.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_attached_equals_merged_equals_peft(model: PreTrainedModel) -> None:
    lora = random_lora(targets_of(model))
    base = logits(model)
    with attach(model, lora):
        attached = logits(model)
    with merge(model, lora):
        merged = logits(model)
    assert difference(attached, base) > 0.05
    torch.testing.assert_close(merged, attached, **CLOSE)
    torch.testing.assert_close(peft_logits(model, lora), attached, **CLOSE)


def test_detaching_and_unmerging_restore_bit_for_bit(model: PreTrainedModel) -> None:
    lora = random_lora(targets_of(model))
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        base, weights = logits(model), {n: w.clone() for n, w in model.state_dict().items()}
        with attach(model, lora):
            assert not torch.equal(logits(model), base)
        assert torch.equal(logits(model), base)
        with merge(model, lora):
            assert not torch.equal(logits(model), base)
        assert torch.equal(logits(model), base)
        assert all(torch.equal(w, weights[n]) for n, w in model.state_dict().items())


def test_an_error_inside_still_restores(llama: PreTrainedModel) -> None:
    lora, base = random_lora(targets_of(llama)), logits(llama)
    for use in (attach, merge):
        with pytest.raises(KeyboardInterrupt), use(llama, lora):
            raise KeyboardInterrupt
        assert torch.equal(logits(llama), base)


def test_identity_changes_nothing_bit_for_bit(model: PreTrainedModel) -> None:
    identity = LoRA.identity(targets_of(model), rank=4, alpha=8.0)
    base = logits(model)
    assert all(f.a.abs().max() > 0 and not f.b.any() for f in identity.factors.values())
    with attach(model, identity):
        assert torch.equal(logits(model), base)
    with merge(model, identity):
        assert torch.equal(logits(model), base)


def test_merging_adds_the_delta_weight(model: PreTrainedModel) -> None:
    lora = random_lora(targets_of(model))
    before = {name: model.get_submodule(name).weight.clone() for name in lora.factors}
    with merge(model, lora):
        for name, weight in before.items():
            module = model.get_submodule(name)
            change = module.weight - weight
            delta = lora.delta_weight(name)
            torch.testing.assert_close(change.T if is_conv1d(module) else change, delta, atol=1e-6, rtol=1e-4)


def test_several_attached_add_up_to_their_composition(model: PreTrainedModel) -> None:
    targets = targets_of(model)
    first, second = random_lora(targets, rank=2), random_lora(targets[::2], rank=5, alpha=3.0, seed=1)
    with attach(model, compose([first, second], [0.5, -2.0])):
        composed = logits(model)
    with attach(model, first * 0.5), attach(model, -2.0 * second):
        both = logits(model)
    torch.testing.assert_close(both, composed, **CLOSE)


def test_detaching_one_of_several_leaves_the_others(llama: PreTrainedModel) -> None:
    targets = targets_of(llama)
    first, second = attach(llama, random_lora(targets)), attach(llama, random_lora(targets, seed=1))
    first.detach()
    left = logits(llama)
    second.detach()
    with attach(llama, random_lora(targets, seed=1)):
        assert torch.equal(logits(llama), left)


def test_batched_equals_looped(model: PreTrainedModel) -> None:
    targets = targets_of(model)
    loras = [random_lora(targets, rank=1 + i, alpha=4.0 + i, seed=i) for i in range(3)]
    looped = []
    for lora, row in zip(loras, tokens(), strict=True):
        with attach(model, lora):
            looped.append(logits(model, row[None]))
    with attach(model, stack(loras)):
        batched = logits(model)
    torch.testing.assert_close(batched, torch.cat(looped), **CLOSE)


def test_consecutive_rows_share_an_adapter(model: PreTrainedModel) -> None:
    targets = targets_of(model)
    pair = stack([random_lora(targets), random_lora(targets, seed=1)])
    with attach(model, pair):
        shared = logits(model, tokens(rows=4))
    with attach(model, pair.select(torch.tensor([0, 0, 1, 1]))):
        torch.testing.assert_close(logits(model, tokens(rows=4)), shared, **CLOSE)


def test_batched_generation_equals_looped(model: PreTrainedModel) -> None:
    targets = targets_of(model)
    loras = [random_lora(targets, seed=i) for i in range(2)]
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    ids = tokens(rows=2)
    with attach(model, stack(loras)):
        together = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    for lora, row, expected in zip(loras, ids, together, strict=True):
        with attach(model, lora):
            alone = model.generate(row[None], attention_mask=torch.ones_like(row[None]), **options)
        assert alone[0].tolist() == expected.tolist()


def gradients(model: PreTrainedModel, lora: LoRA, *, batched: bool) -> list[Tensor]:
    """Gradients of the language-model loss by every factor, taken while the adapter is attached."""
    leaves = [x.clone().requires_grad_() for f in lora.factors.values() for x in f]
    pairs = zip(leaves[::2], leaves[1::2], strict=True)
    trained = LoRA({n: LoraFactors(*pair) for n, pair in zip(lora.factors, pairs, strict=True)}, lora.alpha)
    ids = tokens(rows=2)
    torch.manual_seed(0)  # of the model's own dropout
    with attach(model, stack([trained, trained]) if batched else trained):
        loss = model(ids, labels=ids, use_cache=False).loss
        return list(torch.autograd.grad(loss, leaves))


def checkpoint_activations(model: PreTrainedModel) -> None:
    with (
        warnings.catch_warnings()
    ):  # transformers 5.23 renames the method, earlier versions have this one only
        warnings.simplefilter("ignore", FutureWarning)
        model.train().gradient_checkpointing_enable({"use_reentrant": False})


@pytest.mark.parametrize("batched", [False, True])
def test_gradient_checkpointing_gives_equal_gradients(model: PreTrainedModel, batched: bool) -> None:
    lora = random_lora(targets_of(model))
    model.train()
    plain = gradients(model, lora, batched=batched)
    checkpoint_activations(model)
    checkpointed = gradients(model, lora, batched=batched)
    assert all(g.abs().max() > 0 for g in plain)
    for expected, got in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(got, expected)


def test_gradients_are_those_of_the_delta_weight(llama: PreTrainedModel) -> None:
    target = next(t for t in targets_of(llama) if t.type == "self_attn.q_proj")
    lora = random_lora([target])
    by_a, by_b = gradients(llama, lora, batched=False)
    with merge(llama, lora):
        weight = llama.get_submodule(target.name).weight.requires_grad_()
        (by_weight,) = torch.autograd.grad(llama(tokens(2), labels=tokens(2)).loss, [weight])
        weight.requires_grad_(False)
    a, b = lora.factors[target.name]
    torch.testing.assert_close(by_a, lora.scaling * b.T @ by_weight, atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(by_b, lora.scaling * by_weight @ a.T, atol=1e-6, rtol=1e-3)


def test_backward_after_detach_is_an_error_not_another_gradient(llama: PreTrainedModel) -> None:
    lora = random_lora(targets_of(llama))
    for f in lora.factors.values():
        f.b.requires_grad_()
    checkpoint_activations(llama)
    with attach(llama, lora):
        loss = llama(tokens(), labels=tokens(), use_cache=False).loss
    with pytest.raises(torch.utils.checkpoint.CheckpointError):
        loss.backward()


def test_what_does_not_fit_is_named(llama: PreTrainedModel) -> None:
    lora = random_lora([TargetModule("x", 0, "x", 6, 5)])
    named = LoRA({"model.layers.0.self_attn.q_proj": lora.factors["x"]}, 8.0)
    embedding = LoRA({"model.embed_tokens": lora.factors["x"]}, 8.0)
    base = logits(llama)
    for use in (attach, merge):
        with pytest.raises(UsageError, match="no module 'x'"):
            use(llama, lora)
        with pytest.raises(UsageError, match=r"\(32, 32\) \(in, out\) but the adapter has \(6, 5\)"):
            use(llama, named)
        with pytest.raises(UsageError, match="use its base model"):
            use(llama, embedding)
    assert torch.equal(logits(llama), base)


def test_integer_weights_are_not_merged(llama: PreTrainedModel) -> None:
    target = targets_of(llama)[0]
    module = llama.get_submodule(target.name)
    module.weight = nn.Parameter(torch.zeros(32, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UsageError, match="int8 weights; merge into a float copy"):
        merge(llama, random_lora([target]))


def test_module_sizes_know_linear_maps_only(tiny_models: dict[str, Path]) -> None:
    gpt2 = AutoModelForCausalLM.from_pretrained(tiny_models["gpt2"])
    assert module_sizes(gpt2.get_submodule("transformer.h.0.attn.c_attn")) == (32, 96)
    assert module_sizes(nn.Linear(3, 5)) == (3, 5)
    assert module_sizes(nn.LayerNorm(3)) is None
