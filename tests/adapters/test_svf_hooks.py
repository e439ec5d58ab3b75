"""Experts at work on a model: attached = merged, z = 1 and detaching restore the bits, batched = looped."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from shoal.adapters.decomposition import Decomposition, decompose
from shoal.adapters.hooks import attach
from shoal.adapters.svf import ExpertVector, expert_as_lora
from shoal.adapters.svf_cache import decompose_model
from shoal.adapters.svf_hooks import attach_expert, dense_weight
from shoal.errors import UsageError
from shoal.models.backbone import shape_of
from shoal.models.modules import is_conv1d

FAMILIES = ("llama", "gemma", "gpt2", "gpt_neox", "opt", "phi")
CLOSE = {"atol": 3e-5, "rtol": 1e-4}


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_models[request.param]).requires_grad_(False).eval()


def basis_of(model: nn.Module, components: int | None = None) -> dict[str, Decomposition]:
    return {
        t.name: decompose(dense_weight(model.get_submodule(t.name))).truncated(components)
        for t in shape_of(model, "tiny").targets
    }


def expert_for(basis: dict[str, Decomposition], seed: int = 0) -> ExpertVector:
    generator = torch.Generator().manual_seed(seed)
    return ExpertVector({n: 1 + 0.5 * torch.randn(d.s.shape, generator=generator) for n, d in basis.items()})


def tokens(rows: int = 4, length: int = 6) -> Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor | None = None) -> Tensor:
    return model(tokens() if ids is None else ids, use_cache=False).logits


@torch.no_grad()
def merged_logits(model: PreTrainedModel, basis: dict[str, Decomposition], expert: ExpertVector) -> Tensor:
    """Of a copy of the model whose weights are `U diag(s z) V^T`."""
    copy = deepcopy(model)
    for name, z in expert.z.items():
        module, (u, s, vt) = copy.get_submodule(name), basis[name]
        weight = (u * (s * z)) @ vt
        module.weight.copy_(weight.T if is_conv1d(module) else weight)
    return logits(copy)


def test_attached_equals_merged_and_detaching_leaves_no_trace(model: PreTrainedModel) -> None:
    basis, before = basis_of(model), logits(model)
    expert, weights = expert_for(basis), {n: p.clone() for n, p in model.named_parameters()}
    with attach_expert(model, basis, expert):
        changed = logits(model)
    assert torch.equal(logits(model), before)
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    assert float((changed - before).abs().max()) > 1e-2
    torch.testing.assert_close(changed, merged_logits(model, basis, expert), **CLOSE)


def test_an_identity_is_exact(llama: PreTrainedModel) -> None:
    basis, before = basis_of(llama), logits(llama)
    with attach_expert(llama, basis, ExpertVector.identity(basis)):
        assert torch.equal(logits(llama), before)


def test_an_error_inside_leaves_the_model_as_it_was(llama: PreTrainedModel) -> None:
    basis, before = basis_of(llama), logits(llama)
    with pytest.raises(RuntimeError, match="inside"), attach_expert(llama, basis, expert_for(basis)):
        raise RuntimeError("inside")
    assert torch.equal(logits(llama), before)


def test_every_sample_may_have_its_own_expert(model: PreTrainedModel) -> None:
    basis, ids = basis_of(model), tokens()
    experts = [expert_for(basis, seed) for seed in range(3)] + [ExpertVector.identity(basis)]
    with attach_expert(model, basis, ExpertVector.stack(experts)):
        batched = logits(model, ids)
    for row, expert in enumerate(experts):
        with attach_expert(model, basis, expert):
            torch.testing.assert_close(batched[row : row + 1], logits(model, ids[row : row + 1]), **CLOSE)


def test_rows_share_experts_in_order(llama: PreTrainedModel) -> None:
    basis, ids = basis_of(llama), tokens(4)
    experts = [expert_for(basis, seed) for seed in range(2)]
    with attach_expert(llama, basis, ExpertVector.stack(experts)):
        batched = logits(llama, ids)
        with pytest.raises(UsageError, match="batch of 3 rows"):
            logits(llama, ids[:3])
    with attach_expert(llama, basis, experts[1]):
        torch.testing.assert_close(batched[2:], logits(llama, ids[2:]), **CLOSE)


def test_a_truncated_delta_is_its_lora(model: PreTrainedModel) -> None:
    basis = basis_of(model, 3)
    expert = expert_for(basis)
    with attach_expert(model, basis, expert):
        own = logits(model)
    with attach(model, expert_as_lora(basis, expert, 3).lora):
        torch.testing.assert_close(logits(model), own, **CLOSE)


def test_the_gradient_of_z_starts_at_the_identity(llama: PreTrainedModel) -> None:
    basis = basis_of(llama)
    z = {name: torch.ones_like(d.s).requires_grad_() for name, d in basis.items()}
    with attach_expert(llama, basis, ExpertVector(z)):
        llama(tokens(), use_cache=False).logits.square().mean().backward()
    name = next(iter(z))
    numeric = []
    for step in (1e-2, -1e-2):
        nudged = {n: v.detach().clone() for n, v in z.items()}
        nudged[name][0] += step
        with attach_expert(llama, basis, ExpertVector(nudged)):
            numeric.append(float(logits(llama).double().square().mean()))
    assert all(float(v.grad.abs().sum()) > 0 for v in z.values())
    assert float(z[name].grad[0]) == pytest.approx((numeric[0] - numeric[1]) / 2e-2, rel=0.05, abs=1e-6)


class Quantised(nn.Module):
    """A linear map with int8 weights, as quantisers leave it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (linear.weight / self.scale).round().to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


def test_experts_that_are_attached_together_end_in_any_order(llama: PreTrainedModel) -> None:
    basis, before = basis_of(llama), logits(llama)
    first, second = (attach_expert(llama, basis, expert_for(basis, seed)) for seed in (0, 1))
    first.detach()
    with attach_expert(llama, basis, expert_for(basis, 1)):
        second.detach()
        alone = logits(llama)
    first.detach()
    assert torch.equal(logits(llama), before) and not torch.equal(alone, before)


def test_quantised_parameters_are_read_through_their_module(llama: PreTrainedModel, tmp_path: Path) -> None:
    name = shape_of(llama, "tiny").targets[0].name
    parent, _, child = name.rpartition(".")
    quantised = Quantised(llama.get_submodule(name))
    whole = quantised.weight
    del quantised.weight
    quantised.weight = nn.Parameter(whole, requires_grad=False)
    setattr(llama.get_submodule(parent), child, quantised)
    (own,) = decompose_model(llama, [name], cache=tmp_path).values()
    assert own.u.dtype == torch.float32
    torch.testing.assert_close((own.u * own.s) @ own.vt, whole * quantised.scale, **CLOSE)


def test_quantised_weights_take_experts(llama: PreTrainedModel) -> None:
    names = [t.name for t in shape_of(llama, "tiny").targets]
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(llama.get_submodule(parent), child, Quantised(llama.get_submodule(name)))
    module = llama.get_submodule(names[0])
    torch.testing.assert_close(dense_weight(module), module.weight * module.scale, **CLOSE)
    basis = {name: decompose(dense_weight(llama.get_submodule(name))) for name in names}
    expert, before = expert_for(basis), logits(llama)
    with attach_expert(llama, basis, expert):
        changed = logits(llama)
    assert torch.equal(logits(llama), before)
    for name in names:
        module = llama.get_submodule(name)
        module.weight, module.scale = (basis[name].u * (basis[name].s * expert.z[name])) @ basis[name].vt, 1.0
    torch.testing.assert_close(changed, logits(llama), **CLOSE)


def test_bad_attachments_leave_the_model_alone(llama: PreTrainedModel, tiny_models: dict[str, Path]) -> None:
    basis, before = basis_of(llama), logits(llama)
    expert = expert_for(basis)
    other = AutoModelForCausalLM.from_pretrained(tiny_models["gpt2"])
    with pytest.raises(UsageError, match="no module"):
        attach_expert(other, basis, expert)
    with pytest.raises(UsageError, match="singular values are kept"):
        attach_expert(llama, basis_of(llama, 3), expert)
    assert torch.equal(logits(llama), before)


def test_what_has_no_weight_to_decompose(llama: PreTrainedModel) -> None:
    with pytest.raises(UsageError, match="LayerNorm"):
        dense_weight(nn.LayerNorm(4))
    with pytest.raises(UsageError, match="no loaded weight"):
        dense_weight(nn.Linear(2, 2, device="meta"))


def test_conv1d_weights_are_read_as_maps(tiny_models: dict[str, Path]) -> None:
    gpt2 = AutoModelForCausalLM.from_pretrained(tiny_models["gpt2"])
    module = gpt2.transformer.h[0].mlp.c_fc
    assert is_conv1d(module)
    x = torch.randn(3, module.nx)
    torch.testing.assert_close(x @ dense_weight(module).T + module.bias, module(x), **CLOSE)
