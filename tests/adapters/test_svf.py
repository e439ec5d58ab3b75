"""Singular values and expert vectors as values: products, signs, arithmetic, mixtures, the best LoRA."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoal.adapters.decomposition import Decomposition, decompose
from shoal.adapters.svf import ExpertVector, check_fits, expert_as_lora, mix
from shoal.errors import UsageError

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def basis(components: int | None = None) -> dict[str, Decomposition]:
    return {
        name: decompose(matrix(*shape, seed=seed)).truncated(components)
        for seed, (name, shape) in enumerate({"wide": (6, 10), "tall": (9, 5)}.items())
    }


def expert(seed: int, components: int | None = None) -> ExpertVector:
    generator = torch.Generator().manual_seed(seed)
    return ExpertVector(
        {n: 1 + 0.3 * torch.randn(d.s.shape, generator=generator) for n, d in basis(components).items()}
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10_000))
def test_the_parts_multiply_to_the_weight(rows: int, columns: int, seed: int) -> None:
    weight = matrix(rows, columns, seed)
    u, s, vt = decompose(weight)
    torch.testing.assert_close((u * s) @ vt, weight, **CLOSE)
    assert s.numel() == min(rows, columns) and bool((s[:-1] >= s[1:]).all())
    torch.testing.assert_close(u.T @ u, torch.eye(s.numel()), **CLOSE)
    largest = u.gather(0, u.abs().argmax(0, keepdim=True))
    assert bool((largest > 0).all())


def test_signs_do_not_depend_on_the_weight_s_sign_convention() -> None:
    u, s, vt = decompose(matrix(6, 4))
    flip = torch.tensor([1.0, -1.0, 1.0, -1.0])
    again = decompose(((u * flip) * s) @ (flip[:, None] * vt))
    torch.testing.assert_close(again.u, u, **CLOSE)
    torch.testing.assert_close(again.vt, vt, **CLOSE)


def test_truncation_is_the_nearest_matrix_of_that_rank() -> None:
    weight = matrix(6, 10)
    part = decompose(weight).truncated(2)
    assert part.s.numel() == 2
    assert part.u.untyped_storage().nbytes() == part.u.numel() * 4  # what was dropped is not kept in memory
    missing = torch.linalg.norm(weight - (part.u * part.s) @ part.vt)
    torch.testing.assert_close(missing, torch.linalg.svdvals(weight)[2:].norm(), **CLOSE)
    assert decompose(weight).truncated(None).s.numel() == 6
    with pytest.raises(UsageError, match="expert_vector_dim 0"):
        decompose(weight).truncated(0)


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (torch.tensor([[1.0, float("nan")]]), "NaN or infinity"),
        (torch.ones(3), "a matrix"),
        (torch.ones(2, 2, device="meta"), "on meta"),
        (torch.ones(2, 2, dtype=torch.int8), "int8"),
    ],
)
def test_what_cannot_be_decomposed(weight: Tensor, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        decompose(weight)


def test_experts_are_values() -> None:
    a, b = expert(0), expert(1)
    before = {name: z.clone() for name, z in a.z.items()}
    assert a == expert(0) and a != b and a != "expert"
    assert (a + b) - b == a + (b - b) or torch.allclose(((a + b) - b).z["wide"], a.z["wide"])
    assert 2 * a == a * 2 == a + a
    assert a.strengthened(0) == ExpertVector.identity(basis()) and a.strengthened(1) == a
    torch.testing.assert_close(a.strengthened(0.5).z["tall"], (a.z["tall"] + 1) / 2)
    assert all(torch.equal(z, before[name]) for name, z in a.z.items())
    with pytest.raises(TypeError):
        hash(a)


def test_batches_of_experts() -> None:
    a, b = expert(0), expert(1)
    both = ExpertVector.stack([a, b])
    assert a.batch is None and both.batch == 2 and both.row(0) == a and both.row(1) == b


def test_experts_of_other_weights_do_not_mix() -> None:
    a = expert(0)
    with pytest.raises(UsageError, match="tall"):
        a + ExpertVector({"wide": a.z["wide"]})
    with pytest.raises(UsageError, match="6 and 2 numbers"):
        a - expert(0, components=2)
    with pytest.raises(UsageError, match="0 weights"):
        ExpertVector({})


def test_a_one_hot_mixture_is_the_expert() -> None:
    experts = [expert(seed) for seed in range(3)]
    for number, single in enumerate(experts):
        assert mix(experts, torch.eye(3)[number]) == single
    halves = mix(experts, torch.tensor([0.5, 0.5, 0.0]))
    torch.testing.assert_close(halves.z["wide"], (0.5 * experts[0] + 0.5 * experts[1]).z["wide"])
    batch = mix(experts, torch.eye(3))
    assert batch.batch == 3 and batch.row(2) == experts[2]
    each = mix(experts, {"wide": torch.eye(3)[0], "tall": torch.eye(3)[1]})
    assert torch.equal(each.z["wide"], experts[0].z["wide"])
    assert torch.equal(each.z["tall"], experts[1].z["tall"])


def test_weights_are_linear_in_z() -> None:
    a, b = expert(0), expert(1)
    u, s, vt = basis()["wide"]
    weights = [(u * s * e.z["wide"]) @ vt for e in (a, b, mix([a, b], torch.tensor([0.3, 0.7])))]
    torch.testing.assert_close(weights[2], 0.3 * weights[0] + 0.7 * weights[1], **CLOSE)


@pytest.mark.parametrize(
    ("coefficients", "says"),
    [
        ([0.0, 0.0], "sum to"),
        ([0.5, 0.6], "sum to"),
        ([1.0], "do not fit 2"),
        ([float("nan"), 1.0], "sum to"),
    ],
)
def test_bad_mixtures(coefficients: list[float], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        mix([expert(0), expert(1)], torch.tensor(coefficients))
    with pytest.raises(UsageError, match="got 0"):
        mix([], torch.ones(0))


def test_an_expert_of_another_model_does_not_fit() -> None:
    with pytest.raises(UsageError, match="not decomposed"):
        check_fits(basis(), ExpertVector({"other": torch.ones(3)}))
    with pytest.raises(UsageError, match="2 numbers, but 6"):
        check_fits(basis(), expert(0, components=2))


def test_the_lora_of_an_expert_is_the_best_of_its_rank() -> None:
    own, vector = basis(), expert(3)
    for rank in range(1, 6):
        low_rank = expert_as_lora(own, vector, rank)
        lora, predicted, measured = low_rank.lora, low_rank.predicted_error, low_rank.measured_error
        best = 0.0
        for name, (u, s, vt) in own.items():
            delta = (u * (s * (vector.z[name] - 1))) @ vt
            best += float(torch.linalg.svdvals(delta)[rank:].square().sum())
            assert torch.linalg.matrix_rank(lora.delta_weight(name)) <= rank
        assert predicted == pytest.approx(best**0.5, abs=1e-4) == pytest.approx(measured, abs=1e-4)
        assert low_rank.norm > predicted
    assert lora.rank == 5 and lora.scaling == 1
    torch.testing.assert_close(lora.delta_weight("tall"), delta, **CLOSE)


@pytest.mark.parametrize("rank", [0, 6])
def test_a_lora_of_an_impossible_rank(rank: int) -> None:
    with pytest.raises(UsageError, match=f"rank {rank} is outside 1 to 5"):
        expert_as_lora(basis(), expert(0), rank)
    with pytest.raises(UsageError, match="choose a row"):
        expert_as_lora(basis(), ExpertVector.stack([expert(0), expert(1)]), 1)
