"""The search for a merge: candidates in one batch are single merges, and runs resume to the bit."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from shoal.adapters.hooks import attach, attach_scaled
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.adapters.merging import compose, run_recipe
from shoal.errors import UsageError
from shoal.inference.forward import answer_losses, pad_sequences
from shoal.merging.config import MergeSearchConfig
from shoal.merging.levels import levels_of
from shoal.merging.mixtures import Sum
from shoal.merging.population import MergePopulation
from shoal.merging.search import evolve_merge
from shoal.models.backbone import Backbone
from shoal.tasks.loading import LeakageError, Task
from shoal.training.batches import tokenise
from shoal.training.evolution import evolve
from tests.fixtures.merging import covariances

RULES = ("upper", "double")
QUICK: dict[str, Any] = {"steps": 3, "batch_size": 6, "population": 4, "layer_groups": 2}


def random_parents(backbone: Backbone, *ranks: int) -> dict[str, LoRA]:
    generator = torch.Generator().manual_seed(0)
    parents = {}
    for number, rank in enumerate(ranks):
        factors = {
            t.name: LoraFactors(
                torch.randn(rank, t.in_features, generator=generator) / 4,
                torch.randn(t.out_features, rank, generator=generator) / 4,
            )
            for t in backbone.shape.select(("q_proj", "down_proj") if number else ("q_proj",), None)
        }
        parents[f"parent {number}"] = LoRA(factors, 2.0 * rank)
    return parents


def losses_of(backbone: Backbone, lora: LoRA, examples: Any) -> torch.Tensor:
    pairs = [(e.prompt, e.completion) for e in examples]
    with torch.no_grad(), attach(backbone.model, lora):
        return answer_losses(backbone, pad_sequences(pairs, backbone.end_of_turn, backbone.device))


def test_scaled_ranks_are_the_weighted_composition(toy: ModuleType, backbone: Backbone) -> None:
    parents = random_parents(backbone, 2, 3)
    mixture = Sum(backbone, parents, 1)
    examples = tokenise([toy.toy_task("upper")], backbone, 64).examples[0][:3]
    weights = torch.tensor([[[0.5], [2.0]], [[1.0], [0.0]]])
    pairs = [(e.prompt, e.completion) for e in examples] * 2
    batch = pad_sequences(pairs, backbone.end_of_turn, backbone.device)
    with torch.no_grad(), attach_scaled(backbone.model, mixture.joined, mixture.scales(weights)):
        both = answer_losses(backbone, batch)
    for row, shares in enumerate(weights):
        wanted = losses_of(backbone, compose(list(parents.values()), shares[:, 0].tolist()), examples)
        assert torch.allclose(both[3 * row : 3 * row + 3], wanted, atol=1e-5)
        merged = run_recipe(mixture.recipe(shares), list(parents.values()), rank=5)
        assert torch.allclose(losses_of(backbone, merged.lora, examples), wanted, atol=1e-4)


@pytest.mark.parametrize("by_inputs", [False, True])
def test_terms_count_from_the_start_and_are_those_of_the_closed_form(
    by_inputs: bool, backbone: Backbone
) -> None:
    parents, start = random_parents(backbone, 2, 3), random_parents(backbone, 2)["parent 0"]
    measured = {name: covariances(lora) for name, lora in parents.items()} if by_inputs else None
    if measured is not None:  # a module that a parent lacks has inputs too
        measured["parent 0"] |= {n: g for n, g in measured["parent 1"].items() if "down" in n}
    mixture = Sum(backbone, parents, 2, start=start, covariances=measured)
    weights = torch.tensor([[0.5, 1.0], [2.0, -0.5]])
    values = list(parents.values())
    merged = run_recipe(
        mixture.recipe(weights),
        values,
        rank=99,
        start=start,
        covariances=None if measured is None else [measured[name] for name in parents],
        num_layers=backbone.shape.num_layers,
    ).lora
    for name, scale in mixture.scales(weights[None]).items():
        a, b = mixture.joined.factors[name]
        assert torch.allclose((b * scale) @ a, merged.delta_weight(name), atol=1e-4)


def test_examples_that_no_generation_sees_are_kept_back(
    toy: ModuleType, sharp: Backbone, parents: dict[str, LoRA]
) -> None:
    corpus = tokenise([toy.toy_task(rule) for rule in RULES], sharp, 64)
    levels, mixture = levels_of(sharp, parents, corpus), Sum(sharp, parents, 2)
    population = MergePopulation(sharp, mixture, corpus, MergeSearchConfig(**QUICK), levels)
    kept = {(e.task, e.place) for e in population.kept_back()}
    seen = {(e.task, e.place) for number in range(40) for e in population.examples(number)}
    assert kept and not kept & seen


def test_layers_have_weights_of_their_own(backbone: Backbone) -> None:
    parents = random_parents(backbone, 2, 2)
    mixture = Sum(backbone, parents, 99)
    assert len(mixture.layers) == len(backbone.layers)
    weights = torch.zeros(2, len(mixture.layers))
    weights[0, 1] = 1
    layers = backbone.shape.num_layers
    merged = run_recipe(mixture.recipe(weights), list(parents.values()), rank=4, num_layers=layers).lora
    for target in backbone.shape.select(("q_proj",), None):
        a, b = merged.factors[target.name]
        own = parents["parent 0"].factors[target.name]
        wanted = parents["parent 0"].scaling * own.b @ own.a if target.layer == 1 else torch.zeros_like(b @ a)
        assert torch.allclose(merged.scaling * b @ a, wanted, atol=1e-5)


@pytest.mark.parametrize("count", [4, 17])
def test_candidates_of_a_population_are_judged_as_alone(
    count: int, toy: ModuleType, sharp: Backbone, parents: dict[str, LoRA]
) -> None:
    mixture = Sum(sharp, parents, 2)
    corpus = tokenise([toy.toy_task(rule) for rule in RULES], sharp, 64)
    levels = levels_of(sharp, parents, corpus)
    assert [level.parent for level in levels] == list(RULES)
    population = MergePopulation(sharp, mixture, corpus, MergeSearchConfig(**QUICK), levels)
    candidates = torch.rand(count, 4, generator=torch.Generator().manual_seed(1))
    tried = population.fitness(candidates, 0)
    examples = population.examples(0)
    for row in (0, count - 1):
        recipe = mixture.recipe(candidates[row].view(2, 2))
        layers = sharp.shape.num_layers
        merged = run_recipe(recipe, list(parents.values()), rank=8, num_layers=layers)
        losses = losses_of(sharp, merged.lora, examples).tolist()
        own = [levels[e.task] for e in examples]
        shares = [(level.base - loss) / level.gain for level, loss in zip(own, losses, strict=True)]
        assert tried.rewards[row] == pytest.approx(sum(shares) / len(shares), rel=1e-3, abs=1e-4)
    assert tried == population.fitness(candidates, 0) != population.fitness(candidates, 1)


def test_a_search_keeps_more_than_equal_weights_and_goes_on_bit_for_bit(
    toy: ModuleType,
    sharp: Backbone,
    parents: dict[str, LoRA],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = [toy.toy_task(rule) for rule in RULES]
    config = MergeSearchConfig(**{**QUICK, "steps": 6})
    whole = evolve_merge(sharp, parents, tasks, tmp_path / "whole", config, rank=8, show_progress=False)
    assert whole.merged.report["kept_after"] > whole.merged.report["kept_before"]
    assert whole.merged.report["truncation_error"] < 1e-6 and whole.merged.lora.rank == 8
    judge = MergePopulation.fitness

    def killed(self: MergePopulation, candidates: Any, forward_pass: int) -> Any:
        if forward_pass == 3:
            raise RuntimeError("killed")
        return judge(self, candidates, forward_pass)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(MergePopulation, "fitness", killed)
        evolve_merge(sharp, parents, tasks, tmp_path / "parts", config, rank=8, show_progress=False)
    resumed = evolve_merge(sharp, parents, tasks, tmp_path / "parts", config, rank=8, show_progress=False)
    assert whole.merged.report["weights"] == resumed.merged.report["weights"]
    cut = evolve_merge(sharp, parents, tasks, tmp_path / "whole", config, rank=4, show_progress=False)
    assert cut.merged.lora.rank == 4 and 0 < cut.merged.report["truncation_error"] < 1
    assert set(cut.merged.report["weights"]) == set(RULES) == set(cut.merged.card.parents)
    assert cut.verdict is not None and cut.merged.report["verdict"]["choice"] == cut.verdict.choice
    assert set(cut.front) == {*RULES, "balanced"} and whole.front["upper"].lora == resumed.front["upper"].lora
    for niche, other in (RULES, RULES[::-1]):  # what leans to a task keeps more of it
        assert cut.front[niche].report["kept"][niche] > cut.front[other].report["kept"][niche]
    assert any("searched for in 6 generations" in note for note in cut.merged.card.notes)


def test_twenty_kills_at_random_moments_change_no_bit(
    toy: ModuleType,
    sharp: Backbone,
    parents: dict[str, LoRA],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corpus = tokenise([toy.toy_task(rule) for rule in RULES], sharp, 64)
    levels, mixture = levels_of(sharp, parents, corpus), Sum(sharp, parents, 2)
    config = MergeSearchConfig(**{**QUICK, "steps": 5})

    def searched(folder: str) -> torch.Tensor:
        population = MergePopulation(sharp, mixture, corpus, config, levels)
        evolve(population, config, tmp_path / folder, show_progress=False)
        return population.genome

    whole, judge, chance, kills = searched("whole"), MergePopulation.fitness, random.Random(0), 0

    def killed(self: MergePopulation, candidates: Any, forward_pass: int) -> Any:
        found = judge(self, candidates, forward_pass)
        last = forward_pass == config.steps - 1  # which is not reached before the last kill
        if kills < 20 and (last or chance.random() < 0.85):
            raise RuntimeError("killed")
        return found

    monkeypatch.setattr(MergePopulation, "fitness", killed)
    while True:
        try:
            weights = searched("parts")
            break
        except RuntimeError:
            kills += 1
    assert kills == 20 and torch.equal(weights, whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": []}, "got 0"),
        ({"parents": 1}, "2 parents or more, got 1"),
        ({"rank": 0}, "rank 0"),
        ({"identity": True}, "no parent is 0.05 nats"),
    ],
)
def test_bad_input_is_one_line(
    changes: dict[str, Any], message: str, toy: ModuleType, backbone: Backbone, tmp_path: Path
) -> None:
    parents = random_parents(backbone, *[2] * changes.get("parents", 2))
    if "identity" in changes:
        parents = {name: _without_effect(lora) for name, lora in parents.items()}
    tasks = changes.get("tasks", toy.toy_tasks(2))
    with pytest.raises(UsageError, match=message) as error:
        evolve_merge(backbone, parents, tasks, tmp_path, rank=changes.get("rank", 16), show_progress=False)
    assert "\n" not in str(error.value)


def test_candidates_that_earn_the_same_are_refused_at_once(
    toy: ModuleType, sharp: Backbone, parents: dict[str, LoRA]
) -> None:
    corpus = tokenise([toy.toy_task(rule) for rule in RULES], sharp, 64)
    mixture = Sum(sharp, {name: _without_effect(lora) for name, lora in parents.items()}, 2)
    levels = levels_of(sharp, parents, corpus)
    population = MergePopulation(sharp, mixture, corpus, MergeSearchConfig(**QUICK), levels)
    with pytest.raises(UsageError, match="all 4 candidates keep .* give other parents"):
        population.fitness(torch.rand(4, 4), 0)


def test_examples_that_judge_are_no_test_examples(
    toy: ModuleType, backbone: Backbone, tmp_path: Path
) -> None:
    task: Task = toy.toy_task("upper")
    held_out = dataclasses.replace(task, name="held-out", train=task.test, test=task.train)
    with pytest.raises(LeakageError):
        evolve_merge(
            backbone,
            random_parents(backbone, 2, 2),
            [task],
            tmp_path,
            held_out=[held_out],
            show_progress=False,
        )


def test_another_searchs_folder_is_refused(
    toy: ModuleType, sharp: Backbone, parents: dict[str, LoRA], tmp_path: Path
) -> None:
    tasks = [toy.toy_task(rule) for rule in RULES]
    config = MergeSearchConfig(**QUICK)
    evolve_merge(sharp, parents, tasks, tmp_path / "run", config, show_progress=False)
    swapped = {"upper": parents["double"], "double": parents["upper"]}
    with pytest.raises(UsageError, match="another"):
        evolve_merge(sharp, swapped, tasks, tmp_path / "run", config, show_progress=False)


def _without_effect(lora: LoRA) -> LoRA:
    factors = {name: f._replace(b=torch.zeros_like(f.b)) for name, f in lora.factors.items()}
    return dataclasses.replace(lora, factors=factors)
