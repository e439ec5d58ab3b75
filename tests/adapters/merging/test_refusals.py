"""Merges that are refused, each in one line with value, limit and fix."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from shoal.adapters.card import AdapterCard
from shoal.adapters.lora import LoRA
from shoal.adapters.merging import merge
from shoal.adapters.merging.experts import merge_experts
from shoal.adapters.merging.recipe import Recipe
from shoal.adapters.merging.starts import check_start
from shoal.adapters.svf import ExpertVector
from shoal.errors import UsageError
from tests.fixtures.merging import random_lora


def pair() -> list[LoRA]:
    return [random_lora(0), random_lora(1)]


def with_nan() -> list[LoRA]:
    one, other = pair()
    other.factors["model.layers.0.q"].b[0, 0] = float("nan")
    return [one, other]


NAN = float("nan")
WIDE = {"model.layers.0.q": (11, 10)}
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "one parent": (lambda: merge([random_lora(0)]), "linear merges 2 or more adapters, got 1"),
    "three for two": (lambda: merge([*pair(), random_lora(2)], method="slerp"), "merges 2 adapters, got 3"),
    "other shapes": (lambda: merge([random_lora(0), random_lora(1, WIDE)]), r"\(12, 10\).*\(11, 10\)"),
    "NaN": (lambda: merge(with_nan()), "model.layers.0.q of 1 holds NaN"),
    "weights of sum 0": (lambda: merge(pair(), weights=[1, -1]), "1, -1 sum to 0"),
    "too many weights": (lambda: merge(pair(), weights=[1, 1, 1]), "3 weights for 2 adapters"),
    "density 0": (lambda: merge(pair(), method="ties", density=0.0), r"density 0 is outside \(0, 1\]"),
    "density above 1": (
        lambda: merge(pair(), method="ties", density=1.5),
        r"density 1.5 is outside \(0, 1\]",
    ),
    "density NaN": (lambda: merge(pair(), method="ties", density=float("nan")), "density nan is outside"),
    "epsilon": (
        lambda: merge(pair(), method="della", density=0.9, epsilon=0.2),
        "density 0.9 with epsilon 0.2 gives chances from 0.7 to 1.1",
    ),
    "rank 0": (lambda: merge(pair(), rank=0), "rank 0 is below 1"),
    "no such method": (lambda: merge(pair(), method="passthrough"), "no merge method; choose from linear"),
    "no such parameter": (lambda: merge(pair(), gamma=0.5), "linear has no parameter 'gamma'"),
    "a number for a switch": (lambda: merge(pair(), normalize=0.5), "normalize 0.5 must be true or false"),
    "no inputs": (lambda: merge(pair(), method="regmean"), "needs the covariances of inputs"),
    "no covariance of a module": (
        lambda: merge(pair(), covariances=[{}, {}]),
        "model.layers.0.q has no covariance of 12 x 12",
    ),
    "empty covariance": (
        lambda: merge(pair(), covariances=[{n: torch.zeros(12, 12) for n in random_lora(0).factors}] * 2),
        "mean diagonal 0",
    ),
    "another start": (
        lambda: check_start(
            {"a": AdapterCard(generator="test", trained=True, start_sha256="0" * 64)}, random_lora(0)
        ),
        "a was trained on from 000000000000",
    ),
    "matrices of experts": (
        lambda: merge_experts(Recipe.of("tsv", ["a", "b"]), [ExpertVector({"q": torch.ones(3)})] * 2),
        "tsv needs matrices",
    ),
    "experts of other lengths": (
        lambda: merge_experts(
            Recipe.of("linear", ["a", "b"]), [ExpertVector({"q": torch.ones(n)}) for n in (3, 4)]
        ),
        "3 and 4 numbers",
    ),
    "NaN in an expert": (
        lambda: merge_experts(
            Recipe.of("linear", ["a", "b"]), [ExpertVector({"q": torch.tensor([1.0, x])}) for x in (1.0, NAN)]
        ),
        "z of q holds NaN",
    ),
    "NaN in inputs": (
        lambda: merge(
            pair(), covariances=[{n: torch.full((12, 12), NAN) for n in random_lora(0).factors}] * 2
        ),
        "mean diagonal nan",
    ),
    "infinity in the start": (
        lambda: merge(pair(), start=random_lora(0) * float("inf")),
        "of the start holds NaN or infinity",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_in_one_line(case: str) -> None:
    run, message = REFUSED[case]
    with pytest.raises(UsageError, match=message) as error:
        run()
    assert "\n" not in str(error.value)


def test_a_module_that_one_parent_lacks_counts_as_zero_and_is_named() -> None:
    whole, part = random_lora(0), random_lora(1, {"model.layers.0.q": (12, 10)})
    found = merge({"whole": whole, "part": part})
    torch.testing.assert_close(
        found.lora.delta_weight("model.layers.1.v"), whole.delta_weight("model.layers.1.v") / 2
    )
    assert any("part lacks 2 modules, such as model.layers.1.q" in note for note in found.card.notes)


def test_a_rank_above_16_is_for_those_who_ask() -> None:
    loras = [random_lora(s, {"model.layers.0.q": (40, 40)}, rank=12) for s in (0, 1)]
    assert merge(loras).lora.rank == 16
    asked = merge(loras, rank=24)
    assert asked.lora.rank == 24 and any("above 16" in note for note in asked.card.notes)


def test_a_common_start_that_is_not_given_is_said() -> None:
    card = AdapterCard(generator="test", trained=True, start_sha256="a" * 64)
    assert "trained on from aaaaaaaaaaaa" in check_start({"one": card, "two": card}, None)[0]
    assert check_start({"one": card, "two": None}, None) == ()
    assert "No card says that two" in check_start({"two": None}, random_lora(0))[0]
