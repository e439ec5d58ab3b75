"""Rules of aggregation, by identity."""

from collections.abc import Sequence

import pytest
import torch

from shoal.adapters.decomposition import decompose
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.errors import UsageError
from shoal.federated.aggregation import (
    METHODS,
    Contributions,
    Tensors,
    clip,
    distance,
    lora_of,
    lora_tensors,
    method_for,
)


def some_lora(seed: int, rank: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    factors = {
        name: LoraFactors(
            torch.randn(rank, 12, generator=generator), torch.randn(16, rank, generator=generator)
        )
        for name in ("q", "v")
    }
    return lora_tensors(LoRA(factors, alpha=float(rank)))


def together(updates: Sequence[Tensors], weights: Sequence[float] | None = None) -> Contributions:
    start = {name: torch.zeros_like(t) for name, t in updates[0].items()}
    return Contributions(start, updates, weights or [1 / len(updates)] * len(updates))


def deltas(tensors: Tensors) -> dict[str, torch.Tensor]:
    lora = lora_of(tensors)
    return {name: lora.delta_weight(name) for name in lora.factors}


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"krum"}))
def test_one_client_is_itself_bit_for_bit(name: str) -> None:
    update = some_lora(1)
    result = METHODS[name].run(together([update])).tensors
    assert all(torch.equal(result[key], update[key]) for key in update)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_equal_clients_are_any_one_of_them(name: str) -> None:
    update = some_lora(1)
    result = METHODS[name].run(together([update] * 5)).tensors
    for module, delta in deltas(update).items():
        torch.testing.assert_close(deltas(result)[module], delta, atol=2e-5, rtol=1e-5)


def test_exact_is_the_mean_of_deltas_where_the_rank_holds_it() -> None:
    ones = [some_lora(seed, rank=2) for seed in (1, 2)]
    padded = []
    for update in ones:
        a = {k: torch.cat([t, torch.zeros_like(t)], 0) for k, t in update.items() if k.endswith(".a")}
        b = {k: torch.cat([t, torch.zeros_like(t)], 1) for k, t in update.items() if k.endswith(".b")}
        padded.append({**a, **b})
    result = METHODS["exact"].run(together(padded, [0.25, 0.75]))
    assert result.truncation_error < 1e-6
    for module, delta in deltas(result.tensors).items():
        wanted = 0.25 * deltas(ones[0])[module] + 0.75 * deltas(ones[1])[module]
        assert float((delta - wanted).norm() / wanted.norm()) < 1e-6


def test_the_truncation_error_is_what_the_cut_dropped() -> None:
    updates = [some_lora(seed) for seed in (1, 2, 3)]
    result = METHODS["exact"].run(together(updates))
    dropped = whole = 0.0
    for module, delta in deltas(result.tensors).items():
        wanted = sum(deltas(update)[module] for update in updates) / 3
        dropped += float((delta - wanted).square().sum())
        whole += float(wanted.square().sum())
    assert result.truncation_error == pytest.approx((dropped / whole) ** 0.5, rel=1e-4)


def test_averaged_factors_are_not_the_mean_of_deltas() -> None:
    updates = [some_lora(seed) for seed in (1, 2, 3)]
    averaged = deltas(METHODS["averaged"].run(together(updates)).tensors)
    wanted = sum(deltas(update)["q"] for update in updates) / 3
    assert float((averaged["q"] - wanted).norm() / wanted.norm()) > 0.3


def test_with_one_shared_a_the_mean_of_b_is_exact() -> None:
    updates = [some_lora(seed) for seed in (1, 2, 3)]
    updates = [{**u, **{k: updates[0][k] for k in u if k.endswith(".a")}} for u in updates]
    result = deltas(METHODS["ffa"].run(together(updates)).tensors)
    wanted = sum(deltas(update)["v"] for update in updates) / 3
    torch.testing.assert_close(result["v"], wanted, atol=1e-5, rtol=1e-5)


def test_the_mean_of_z_is_the_mean_of_weights() -> None:
    basis = decompose(torch.randn(10, 8))
    updates = [{"w": 1 + 0.1 * torch.randn(8)} for _ in range(4)]
    weight = [(basis.u * (basis.s * u["w"])) @ basis.vt for u in updates]
    z = METHODS["z"].run(together(updates)).tensors["w"]
    torch.testing.assert_close((basis.u * (basis.s * z)) @ basis.vt, sum(weight) / 4, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "krum"])
def test_a_liar_does_not_move_a_robust_rule(name: str) -> None:
    honest = [{"z": torch.full((3,), 3.0) + 0.1 * torch.randn(3)} for _ in range(7)]
    liar = {"z": torch.full((3,), -150.0)}
    result = METHODS[name].run(together([*honest, liar])).tensors["z"]
    assert float((result - 3).abs().max()) < 0.3
    assert float(METHODS["z"].run(together([*honest, liar])).tensors["z"].max()) < -10


def test_clipping_bounds_what_one_client_moves() -> None:
    honest = [{"z": torch.full((4,), 0.5)} for _ in range(4)]
    result = METHODS["clipped"].run(together([*honest, {"z": torch.full((4,), 1000.0)}])).tensors["z"]
    torch.testing.assert_close(result, torch.full((4,), 0.5))


def test_a_clipped_step_has_the_length_of_the_limit() -> None:
    start, update = {"z": torch.ones(5)}, {"z": torch.full((5,), 9.0)}
    assert float(distance(clip(update, start, 0.25), start)) == pytest.approx(0.25)


def test_krum_needs_five_clients() -> None:
    with pytest.raises(UsageError, match="Krum tells 1 liar among 5 clients or more, got 4"):
        METHODS["krum"].run(together([some_lora(1)] * 4))


def test_a_rule_for_something_else_is_refused() -> None:
    with pytest.raises(
        UsageError, match="'exact' is no aggregation of what=expert; choose one of z, clipped"
    ):
        method_for("expert", "exact")


def test_nothing_is_no_round() -> None:
    with pytest.raises(UsageError, match="0 updates with 0 weights"):
        Contributions({}, [], [])
