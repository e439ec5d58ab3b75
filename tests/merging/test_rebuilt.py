"""Searches with methods that drop elements: candidates are merges of the table, and densities move too."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from shoal.adapters.lora import LoRA
from shoal.adapters.merging import run_recipe
from shoal.errors import UsageError
from shoal.merging.config import MergeSearchConfig
from shoal.merging.levels import losses_under
from shoal.merging.rebuilt import Rebuilt
from shoal.merging.search import evolve_merge
from shoal.models.backbone import Backbone
from shoal.training.batches import tokenise
from tests.fixtures.merging import distance

RULES = ("upper", "double")


@pytest.mark.parametrize("method", ["ties", "della", "knots_ties"])
def test_a_candidate_is_the_merge_of_its_recipe(
    method: str, toy: ModuleType, sharp: Backbone, parents: dict[str, LoRA]
) -> None:
    mixture = Rebuilt(sharp, parents, 2, method, {}, start=parents["upper"] * 0.1, seed=3)
    genome = mixture.centre + 0.3 * torch.randn(6, generator=torch.Generator().manual_seed(0))
    merged = run_recipe(
        mixture.recipe(genome),
        list(parents.values()),
        rank=999,
        start=parents["upper"] * 0.1,
        seed=3,
        num_layers=sharp.shape.num_layers,
    ).lora
    examples = tokenise([toy.toy_task("upper")], sharp, 64).examples[0][:3]
    wanted = losses_under(sharp, merged, examples)
    with mixture.attach(sharp.model, genome[None]):
        assert torch.allclose(losses_under(sharp, None, examples), wanted, atol=1e-4)
    assert not torch.allclose(losses_under(sharp, None, examples), wanted, atol=1e-4)


def test_densities_stay_in_their_range_and_one_that_is_given_stays(
    sharp: Backbone, parents: dict[str, LoRA]
) -> None:
    mixture = Rebuilt(sharp, parents, 1, "della", {"epsilon": 0.2})
    far = torch.tensor([1.0, 1.0, -50.0, 50.0])
    found = mixture.described(far)["density"]
    assert 0.2 < found["upper"] < 0.21 and 0.79 < found["double"] < 0.8
    mixture.recipe(far).values("model.layers.0.q_proj")  # as its check wants them
    assert mixture.described(mixture.centre)["density"] == {"upper": 0.5, "double": 0.5}
    given = Rebuilt(sharp, parents, 1, "ties", {"density": 0.3})
    assert given.centre.numel() == 2 and "density" not in given.described(given.centre)
    assert given.recipe(given.centre).values("model.layers.0.q_proj")["density"].tolist() == [0.3, 0.3]


def test_candidates_hash_no_parent_again(
    sharp: Backbone, parents: dict[str, LoRA], monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture = Rebuilt(sharp, parents, 1, "dare_ties", {})
    monkeypatch.setattr(LoRA, "fingerprint", lambda self: pytest.fail("hashed again"))
    with mixture.attach(sharp.model, mixture.centre[None]):
        pass


def test_a_search_finds_densities_under_masks_that_stay(
    toy: ModuleType,
    sharp: Backbone,
    parents: dict[str, LoRA],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shoal.merging.front.ROUNDS", 0)  # of the front, which is another's test
    config = MergeSearchConfig(steps=2, batch_size=4, population=4, layer_groups=1, seed=1)
    tasks = [toy.toy_task(rule) for rule in RULES]
    found = evolve_merge(
        sharp, parents, tasks, tmp_path, config, method="dare_linear", rank=64, show_progress=False
    )
    report = found.merged.report
    assert report["method"] == "dare_linear" and set(report["density"]) == set(RULES)
    assert all(0 < share < 1 and share != 0.5 for share in report["density"].values())
    again = run_recipe(found.merged.recipe, list(parents.values()), rank=64, seed=1).lora
    assert distance(again, found.merged.lora) == 0
    other = run_recipe(found.merged.recipe, list(parents.values()), rank=64, seed=2).lora
    assert distance(other, found.merged.lora) > 0.1


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("linear", {}, "moves no weights of linear; choose from task_arithmetic, regmean, ties"),
        ("regmean", {}, "regmean needs inputs"),
        ("ties", {"weight": 1.0}, "takes no parameter 'weight'"),
        ("ties", {"density": 0.0}, "density 0 is outside"),
        ("ties", {"gamma": 0.1}, "takes no parameter 'gamma'; it keeps density, normalize"),
        ("task_arithmetic", {"lambda": 0.5}, "takes no parameter 'lambda'; it keeps none"),
    ],
)
def test_what_no_search_moves_is_refused(
    method: str,
    parameters: dict[str, float | bool],
    message: str,
    toy: ModuleType,
    sharp: Backbone,
    parents: dict[str, LoRA],
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError, match=message):
        evolve_merge(sharp, parents, [toy.toy_task("upper")], tmp_path, method=method, parameters=parameters)
