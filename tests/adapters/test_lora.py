"""LoRA values: composition, truncation and scaling are what they do to the delta weight."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.adapters.lora import LoRA, LoraFactors
from shoal.adapters.merging import compose, stack, truncate
from shoal.errors import UsageError
from shoal.models.modules import TargetModule, check_rank

shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))
ranks = st.integers(1, 5)
seeds = st.integers(0, 2**16)


def random_lora(targets: Sequence[TargetModule], rank: int = 4, alpha: float = 8.0, seed: int = 0) -> LoRA:
    generator = torch.Generator().manual_seed(seed)
    factors = {
        t.name: LoraFactors(
            torch.randn(rank, t.in_features, generator=generator),
            torch.randn(t.out_features, rank, generator=generator),
        )
        for t in targets
    }
    return LoRA(factors, alpha)


def drawn_lora(names: Sequence[str], shape: tuple[int, int], rank: int, alpha: float, seed: int) -> LoRA:
    return random_lora([TargetModule(name, 0, name, *shape) for name in names], rank, alpha, seed).to(
        torch.float64
    )


@settings(deadline=None)
@given(
    shapes, st.lists(st.tuples(ranks, st.floats(0.1, 64), st.floats(-4, 4), seeds), min_size=1, max_size=4)
)
def test_composition_is_the_weighted_sum(
    shape: tuple[int, int], parts: list[tuple[int, float, float, int]]
) -> None:
    names = [("x", "y"), ("x",), ("y",), ("x", "y")]
    loras = [drawn_lora(n, shape, r, a, s) for n, (r, a, _, s) in zip(names, parts, strict=False)]
    weights = [weight for *_, weight, _ in parts]
    composed = compose(loras, weights)
    assert composed.rank == sum(lora.rank for lora in loras) and composed.scaling == 1
    for name in composed.factors:
        own = [(lora, w) for lora, w in zip(loras, weights, strict=True) if name in lora.factors]
        expected = sum(w * lora.delta_weight(name) for lora, w in own)
        torch.testing.assert_close(composed.delta_weight(name), expected, atol=1e-9, rtol=1e-9)


@settings(deadline=None)
@given(shapes, ranks, st.floats(0.1, 64), seeds, st.data())
def test_truncation_is_the_best_approximation(
    shape: tuple[int, int], rank: int, alpha: float, seed: int, data: st.DataObject
) -> None:
    lora = drawn_lora("x", shape, rank, alpha, seed)
    smaller = data.draw(st.integers(1, min(rank, *shape)))
    truncated = truncate(lora, smaller)
    delta = lora.delta_weight("x")
    assert truncated.rank == smaller and truncated.delta_weight("x").dtype == delta.dtype
    error = torch.linalg.matrix_norm(delta - truncated.delta_weight("x"))
    least = torch.linalg.svdvals(delta)[smaller:].square().sum().sqrt()  # Eckart and Young
    torch.testing.assert_close(
        error, least, atol=1e-4 * torch.linalg.matrix_norm(delta).item() + 1e-6, rtol=1e-3
    )


@settings(deadline=None)
@given(shapes, ranks, st.floats(0.1, 64), st.floats(-8, 8), seeds)
def test_scaling_scales_the_delta_weight(
    shape: tuple[int, int], rank: int, alpha: float, scale: float, seed: int
) -> None:
    lora = drawn_lora("x", shape, rank, alpha, seed)
    torch.testing.assert_close((lora * scale).delta_weight("x"), scale * lora.delta_weight("x"))
    assert lora * scale == scale * lora and lora.scaling == alpha / rank
    assert (lora * 2.0) * 0.5 == lora


def test_loras_are_values() -> None:
    lora = random_lora([TargetModule("x", 0, "x", 6, 5)])
    same = LoRA({n: LoraFactors(f.a.clone(), f.b.clone()) for n, f in lora.factors.items()}, lora.alpha)
    assert lora == same and lora != same * 2.0 and lora != "x"
    assert lora.to(torch.bfloat16).factors["x"].a.dtype == torch.bfloat16
    with pytest.raises(TypeError, match="unhashable"):
        hash(lora)


def test_identity_is_reproducible() -> None:
    targets = [TargetModule("x", 0, "x", 6, 5)]
    first, second = (
        LoRA.identity(targets, 2, 4.0, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("rank", [-1, 0, 6, 1000])
def test_a_bad_rank_names_the_limit(rank: int) -> None:
    targets = [TargetModule("x", 0, "x", 16, 5), TargetModule("y", 0, "y", 16, 16)]
    with pytest.raises(UsageError, match=rf"rank {rank} is outside 1\.\.5 \(x is 5 x 16\); choose"):
        check_rank(targets, rank)
    with pytest.raises(UsageError, match=r"1\.\.5"):
        LoRA.identity(targets, rank, 8.0)


@pytest.mark.parametrize("rank", [-1, 0, 5])
def test_a_bad_truncation_names_the_limit(rank: int) -> None:
    with pytest.raises(UsageError, match=rf"rank-4 adapter to rank {rank}; choose 1\.\.4"):
        truncate(random_lora([TargetModule("x", 0, "x", 6, 5)]), rank)


def test_a_batch_knows_its_rows() -> None:
    target = TargetModule("x", 0, "x", 6, 5)
    loras = [random_lora([target], rank=r, alpha=a, seed=r) for r, a in ((2, 3.0), (4, 1.0))]
    batch = stack(loras)
    assert len(batch) == 2 and len(batch.select(torch.tensor([1, 1, 0]))) == 3
    for i, lora in enumerate(loras):
        torch.testing.assert_close(batch.row(i).delta_weight("x"), lora.delta_weight("x"))
    assert batch.select(torch.tensor([1, 0])).row(1) == batch.row(0)


def test_what_does_not_combine_is_named() -> None:
    x, y = (random_lora([TargetModule(name, 0, name, 6, 5)]) for name in "xy")
    with pytest.raises(UsageError, match="same modules"):
        stack([x, y])
    with pytest.raises(UsageError, match="one at least"):
        stack([])
    with pytest.raises(UsageError, match="2 adapters .*got 1"):
        compose([x, x], [1.0])
    with pytest.raises(UsageError, match="0 adapters"):
        compose([], [])
    with pytest.raises(UsageError, match=r"one rank, got ranks \[2, 4\]"):
        LoRA({**x.factors, "z": truncate(y, 2).factors["y"]}, 8.0)
    with pytest.raises(UsageError, match="one rank"):
        LoRA({}, 8.0)


def test_adapters_of_other_sizes_do_not_join() -> None:
    one, other = (
        LoRA({"layer": LoraFactors(torch.ones(2, wide), torch.ones(4, 2))}, alpha=2.0) for wide in (3, 5)
    )
    for join in (lambda: compose([one, other], [1.0, 1.0]), lambda: stack([one, other])):
        with pytest.raises(UsageError, match=r"layer is \(3, 4\) .* and \(5, 4\) in another"):
            join()
    with pytest.raises(UsageError, match="at least one target module"):
        LoRA.identity((), 4, 1.0)
