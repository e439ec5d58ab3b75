"""Every merge method by identities: what it gives for one parent, for equal ones, and in another order."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch

from shoal.adapters.lora import LoRA, LoraFactors
from shoal.adapters.merging import METHODS, compose, merge
from shoal.adapters.merging.modules import generator_of, merge_by_inputs, merge_module
from shoal.adapters.merging.recipe import Recipe
from shoal.adapters.merging.regmean import RegMeanSums
from tests.fixtures.merging import covariances, distance, random_lora

# A mean of equal deltas is that delta; sums and equal singular values are not.
MEANS = (
    "linear",
    "ties",
    "della",
    "sce",
    "slerp",
    "nuslerp",
    "multislerp",
    "karcher",
    "model_stock",
    "knots_ties",
    "tsv",
    "regmean",
)


def merged(method: str, loras: list[LoRA], **settings: object) -> LoRA:
    if METHODS[method].form == "covariances":
        settings["covariances"] = [covariances(lora) for lora in loras]
    return merge(loras, method=method, rank=64, **settings).lora


@pytest.mark.parametrize("method", MEANS)
def test_equal_parents_give_themselves(method: str) -> None:
    one = random_lora(0)
    assert distance(merged(method, [one, one]), one) < 1e-5


@pytest.mark.parametrize("method", [m for m in METHODS if m != "iso_c"])
def test_one_parent_of_weight_1_is_itself(method: str) -> None:
    one, recipe = random_lora(0), Recipe.of(method, ["one"])
    factors = {}
    for name, f in one.factors.items():
        own, values = LoraFactors(f.a, f.b * one.scaling), recipe.values(name)
        values.pop("lambda", None)
        if method == "regmean":
            factors[name] = merge_by_inputs([own], [covariances(one)[name]], name, values)
        elif method == "slerp":  # of two by definition; the second does not count at t = 0
            other = random_lora(1).factors[name]
            factors[name] = merge_module(METHODS[method], [own, other], {"t": 0.0}, [])
        elif method == "nuslerp":
            other, values = random_lora(1).factors[name], {"weight": torch.tensor([1.0, 0.0])}
            factors[name] = merge_module(METHODS[method], [own, other], values, [])
        else:
            factors[name] = merge_module(METHODS[method], [own], values, [generator_of(0, name, "one")])
    for name, f in factors.items():
        torch.testing.assert_close(f.b @ f.a, one.delta_weight(name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_parents_does_not_matter(method: str) -> None:
    loras = [random_lora(seed) for seed in range(METHODS[method].most or 3)]
    settings = {"density": 0.6} if METHODS[method].parameter("density") else {}
    assert distance(merged(method, loras, **settings), merged(method, loras[::-1], **settings)) < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_the_table_names_what_the_functions_take(method: str) -> None:
    own = METHODS[method]
    function = RegMeanSums.add if own.function is None else own.function
    taken = set(inspect.signature(function).parameters) - {
        *("self", "gram", "deltas", "factors", "generators", "covariance"),
        *(function.keywords if isinstance(function, partial) else ()),
    }
    # Thinning by one function takes more than each method offers.
    extra = {"gamma", "epsilon", "rescale_by_density"} if own.form == "elements" else set()
    named = {p.name for p in own.parameters} - {"lambda"}
    assert taken - extra <= named <= taken


def test_lambda_scales_the_result() -> None:
    loras = [random_lora(0), random_lora(1)]
    half = merge(loras, method="ties", rank=64, **{"density": 0.5, "lambda": 0.5}).lora
    assert distance(half, merge(loras, method="ties", rank=64, density=0.5).lora * 0.5) < 1e-5


def test_random_masks_come_from_the_seed() -> None:
    loras = [random_lora(0), random_lora(1)]
    dare = [merge(loras, method="dare_linear", density=0.5, rank=64, seed=s).lora for s in (0, 0, 1)]
    assert dare[0] == dare[1] and distance(dare[2], dare[0]) > 0.1


@pytest.mark.parametrize("by_density", [True, False])
def test_dare_agrees_with_the_sum_in_the_mean(by_density: bool) -> None:
    loras = [random_lora(0), random_lora(1)]
    drawn = [
        merge(loras, method="dare_linear", density=0.8, rank=64, seed=s, rescale_by_density=by_density).lora
        for s in range(64)
    ]
    assert distance(compose(drawn, [1 / 64] * 64), compose(loras, [1, 1])) < 0.1


def test_a_difference_of_signs_is_settled_by_the_larger_sum() -> None:
    ones = torch.ones(1, 2)
    loras = [
        LoRA({"q": LoraFactors(ones, torch.tensor([[x], [y]]))}, 1.0) for x, y in ((3.0, 1.0), (-1.0, 2.0))
    ]
    delta = merge(loras, method="ties").lora.delta_weight("q")
    torch.testing.assert_close(delta, torch.tensor([[3.0, 3.0], [1.5, 1.5]]))


def test_regmean_is_the_least_squares_solution() -> None:
    loras = [random_lora(0), random_lora(1)]
    inputs = [torch.randn(200, 12, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    given = [{name: x.T @ x for name in loras[0].factors} for x in inputs]
    found = merge(loras, rank=64, covariances=given, shrink=1.0, ridge=1e-6).lora
    for name in found.factors:
        scaled = [x / x.square().sum().sqrt() for x in inputs]
        outputs = [x @ lora.delta_weight(name).T for x, lora in zip(scaled, loras, strict=True)]
        best = torch.linalg.lstsq(torch.cat(scaled), torch.cat(outputs)).solution.T
        torch.testing.assert_close(found.delta_weight(name), best, rtol=1e-3, atol=1e-3)


def test_deltas_count_from_a_common_start() -> None:
    start = random_lora(9)
    parents = [compose([start, random_lora(seed)], [1, 1]) for seed in (0, 1)]
    found = merge(parents, method="task_arithmetic", start=start, rank=64, **{"lambda": 0.5}).lora
    expected = compose([start, random_lora(0), random_lora(1)], [1, 0.5, 0.5])
    assert distance(found, expected) < 1e-5


def test_stacked_experts_are_merged_one_by_one() -> None:
    loras = [random_lora(0), random_lora(1)]
    own = [lora.factors["model.layers.0.q"] for lora in loras]
    stacked = LoRA({"experts": LoraFactors(*(torch.stack(pair) for pair in zip(*own, strict=True)))}, 4.0)
    found = merge([stacked, stacked], method="ties", density=1.0).lora
    torch.testing.assert_close(found.delta_weight("experts"), stacked.delta_weight("experts"))


def test_the_truncation_error_is_in_card_and_report() -> None:
    loras = [random_lora(0), random_lora(1)]
    cut, whole = merge(loras, rank=2), merge(loras, rank=64)
    assert cut.lora.rank == 2 and whole.lora.rank == 6
    lost = distance(cut.lora, whole.lora)
    assert (
        cut.card.scores["truncation_error"] == cut.report["truncation_error"] == pytest.approx(lost, rel=1e-3)
    )
    assert cut.card.parents == {str(i): lora.fingerprint() for i, lora in enumerate(loras)}


def test_every_parent_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed, fingerprint = [], LoRA.fingerprint

    def counted(self: LoRA) -> str:
        hashed.append(id(self))
        return fingerprint(self)

    monkeypatch.setattr(LoRA, "fingerprint", counted)
    loras, start = [random_lora(0), random_lora(1)], random_lora(9)
    merge(loras, method="dare_ties", density=0.5, start=start)
    assert sorted(hashed) == sorted(map(id, [*loras, start]))


def test_iso_c_is_the_sum_with_equal_singular_values() -> None:
    loras = [random_lora(0), random_lora(1)]
    found, summed = merged("iso_c", loras), compose(loras, [1, 1])
    for name in found.factors:
        u, s, vt = torch.linalg.svd(summed.delta_weight(name), full_matrices=False)
        rank = int((s > 1e-4 * s[0]).sum())
        wanted = s[:rank].mean() * u[:, :rank] @ vt[:rank]
        torch.testing.assert_close(found.delta_weight(name), wanted, rtol=1e-3, atol=1e-3)


def test_tsv_of_parents_that_share_no_direction_is_their_sum() -> None:
    def own(place: int) -> LoRA:
        a, b = torch.zeros(2, 6), torch.zeros(5, 2)
        for row in range(2):
            a[row, place + row], b[place + row, row] = 1.0, 2.0 + row
        return LoRA({"q": LoraFactors(a, b)}, 2.0)

    loras = [own(0), own(2)]
    assert distance(merged("tsv", loras), compose(loras, [1, 1])) < 1e-5
    only_largest = merged("tsv", loras, keep=0.5).delta_weight("q")
    torch.testing.assert_close(only_largest.diagonal(), torch.tensor([0.0, 3.0, 0.0, 3.0, 0.0]))


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bits(method: str) -> None:
    loras = [random_lora(seed) for seed in range(METHODS[method].most or 3)]
    settings = {"density": 0.6} if METHODS[method].parameter("density") else {}
    one, other = (merged(method, loras, seed=3, **settings) for _ in range(2))
    assert all(
        torch.equal(x, y)
        for name in one.factors
        for x, y in zip(one.factors[name], other.factors[name], strict=True)
    )
