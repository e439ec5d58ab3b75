"""Six tasks of different form and an adapter for each: merges and their controls, cell by cell."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from _merging_bench import Bench, divided, inputs_of

from shoal.adapters.lora import LoRA
from shoal.adapters.merging import merge, run_recipe, truncate
from shoal.adapters.merging.closed_form import RANK
from shoal.evaluation.predictors import Predictor
from shoal.evaluation.retention import base_ability
from shoal.inference.covariances import input_covariances
from shoal.merging.config import MergeSearchConfig
from shoal.merging.levels import levels_of
from shoal.merging.mixtures import Sum
from shoal.merging.population import MergePopulation
from shoal.merging.search import evolve_merge
from shoal.tasks.loading import load_split
from shoal.training.batches import tokenise
from shoal.training.evolution import evolve

TASKS = (
    "worldcities_country",
    "unimorph_verb_forms",
    "clickbait_headline",
    "ii_number_to_words",
    "sls_negate_sentence",
    "snips_music_service",
)
SELECTION = 30  # examples of every task that parents never see
WEIGHTS = (0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
LAMBDAS = (1.0, 1.2, 1.4, 1.6)
SEARCH = {"steps": 8, "population": 8, "batch_size": 18}  # 64 candidates


class Apart:
    """The tasks, their parents of one seed, and what is made of them."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench, self.seed = bench, seed
        known = {t.name: t for t in load_split(bench.args.data).train}
        pairs = [divided(known[name], SELECTION) for name in TASKS[: bench.args.tasks]]
        self.tasks, self.selection = [own for own, _ in pairs], [chosen for _, chosen in pairs]
        self.config = MergeSearchConfig(seed=seed, max_length=160, **SEARCH)
        self._measured: dict[int, dict[str, dict[str, torch.Tensor]]] = {}
        self.whole = 2 * bench.start.rank * len(self.tasks) + bench.start.rank  # no rank is cut

    @property
    def parents(self) -> dict[str, LoRA]:
        """An adapter of every task."""
        return {t.name: self.bench.trained(f"{t.name}-{self.seed}", [t], seed=self.seed) for t in self.tasks}

    def covariances(self, inputs: int) -> dict[str, dict[str, torch.Tensor]]:
        """Of every parent's inputs under it."""
        if inputs not in self._measured:
            self._measured[inputs] = {
                task.name: input_covariances(self.bench.backbone, lora, inputs_of(task, inputs))
                for task, lora in zip(self.tasks, self.parents.values(), strict=True)
            }
        return self._measured[inputs]

    def score(self, row: str, make: LoRA | Callable[[], LoRA] | None) -> None:
        """The cell of one row on all tasks."""
        self.bench.scored(f"apart/{self.seed}/{row}", self.tasks, make)

    def merge(self, row: str, make: Callable[[], LoRA], *, cut: bool = False) -> None:
        """The cell of one merge, whose rank is not cut, and with `cut` another where it is."""
        lora = partial(self.bench.merged, f"{row.replace(' ', '_')}-{self.seed}", make)
        self.score(row, lora)
        if cut:
            self.score(f"{row}, rank {RANK}", lambda: truncate(lora(), min(RANK, lora().rank)))

    def regmean(self, inputs: int, **parameters: float) -> LoRA:
        """RegMean, whole."""
        return merge(
            self.parents,
            covariances=self.covariances(inputs),
            rank=self.whole,
            start=self.bench.start,
            **parameters,
        ).lora

    def run(self, name: str) -> Path:
        """Folder of a search."""
        return self.bench.args.out / "runs" / f"{name}-{self.seed}"

    def search(self, name: str, by_inputs: bool, method: str | None = None) -> LoRA:
        """Evolved weights, whole, and densities where the method has them; facts are in `search/NAME`."""

        def make() -> LoRA:
            found = evolve_merge(
                self.bench.backbone,
                self.parents,
                self.selection,
                self.run(name),
                self.config,
                rank=self.whole,
                start=self.bench.start,
                covariances=self.covariances(48) if by_inputs else None,
                method=method,
                show_progress=False,
            )
            facts = ("kept_before", "kept_after", "optimism", "weights", "density")
            self.bench.cell(
                f"search/{self.seed}/{name}",
                lambda: {
                    **{k: found.merged.report[k] for k in facts if k in found.merged.report},
                    "search_seconds": found.run.seconds,
                },
            )
            return found.merged.lora

        return self.bench.merged(f"{name}-{self.seed}", make)

    def population(self, parents: Mapping[str, LoRA]) -> tuple[Sum, MergePopulation]:
        """A population over terms of RegMean, judged by what the true parents do."""
        corpus = tokenise(self.selection, self.bench.backbone, self.config.max_length)
        levels = levels_of(self.bench.backbone, self.parents, corpus, self.bench.start)
        mixture = Sum(
            self.bench.backbone,
            parents,
            self.config.layer_groups,
            start=self.bench.start,
            covariances=self.covariances(48),
        )
        return mixture, MergePopulation(self.bench.backbone, mixture, corpus, self.config, levels)

    def found(self, mixture: Sum, parents: Mapping[str, LoRA], weights: torch.Tensor) -> LoRA:
        """The merge of some weights, whole."""
        measured = self.covariances(48)
        return run_recipe(
            mixture.recipe(weights),
            list(parents.values()),
            rank=self.whole + 99,
            covariances=[measured[name] for name in parents],
            start=self.bench.start,
            num_layers=self.bench.backbone.shape.num_layers,
        ).lora

    def random_search(self) -> LoRA:
        """The best of as many candidates around the same start, all on the same examples."""
        mixture, population = self.population(self.parents)
        config, centre = self.config, population.genome
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(config.steps * config.population, len(centre), generator=generator)
        candidates = centre + config.sigma * noise
        parts = candidates.split(config.population)
        rewards = [r for part in parts for r in population.judge(part, population.examples(0)).rewards]
        best = candidates[max(range(len(rewards)), key=lambda i: rewards[i])]
        (kept,) = population.judge(best[None], population.kept_back()).rewards
        self.bench.cell(
            f"search/{self.seed}/random search",
            lambda: {"kept_after": kept, "optimism": max(rewards) - kept},
        )
        return self.found(mixture, self.parents, best.view_as(population.genome))

    def random_parents(self) -> LoRA:
        """The same search over adapters of random numbers with the parents' norms."""
        parents = {
            name: self.bench.random_like(lora, 1000 * self.seed + number)
            for number, (name, lora) in enumerate(self.parents.items())
        }
        mixture, population = self.population(parents)
        evolve(population, self.config, self.run("random parents"), show_progress=False)
        (kept,) = population.judge(population.genome[None], population.kept_back()).rewards
        self.bench.cell(f"search/{self.seed}/random parents", lambda: {"kept_after": kept})
        return self.found(mixture, parents, population.genome)


def of_seed(bench: Bench, seed: int) -> Apart:
    """What parts share of one seed, inputs' covariances among it."""
    return bench.kept.setdefault(seed, Apart(bench, seed))


def closed_forms(bench: Bench, seed: int) -> None:
    """Base, start, parents and what no search is needed for."""
    own = of_seed(bench, seed)
    own.score("base", None)
    own.score("start", bench.start)
    for name, lora in own.parents.items():
        own.score(f"parent {name}", lora)
    parents = list(own.parents.values())
    own.merge("regmean 48", partial(own.regmean, 48), cut=True)
    tried: dict[str, Callable[[], LoRA]] = {str(x): partial(bench.sum_of, parents, x) for x in WEIGHTS}
    weight = float(bench.chosen(f"{seed}/arithmetic", own.selection, tried))
    own.merge("arithmetic", lambda: bench.sum_of(parents, weight), cut=True)
    own.merge("mean", lambda: bench.sum_of(parents, 1 / len(parents)))
    tried = {str(x): partial(own.regmean, 48, **{"lambda": x}) for x in LAMBDAS}
    scale = float(bench.chosen(f"{seed}/lambda of RegMean", own.selection, tried))
    own.merge("regmean 48, lambda chosen", partial(own.regmean, 48, **{"lambda": scale}), cut=True)
    own.merge("regmean 16", partial(own.regmean, 16))


def ties(bench: Bench, seed: int) -> None:
    """TIES, with density and lambda chosen."""
    own = of_seed(bench, seed)

    @cache
    def made(density: float, scale: float) -> LoRA:
        parameters = {"density": density, "lambda": scale}
        return merge(own.parents, method="ties", rank=own.whole, start=bench.start, **parameters).lora

    tried = {f"{d} {x}": partial(made, d, x) for d in (0.2, 0.5) for x in (1.0, 2.0)}
    density, scale = map(float, bench.chosen(f"{seed}/ties", own.selection, tried).split())
    own.merge("ties", partial(made, density, scale))


def searches(bench: Bench, seed: int) -> None:
    """What evolution finds, and a new LoRA on its examples for the same seconds."""
    own = of_seed(bench, seed)
    own.merge("evolved", lambda: own.search("evolved", True), cut=True)
    minutes = max(0.05, bench.cells[f"search/{seed}/evolved"]["search_seconds"] / 60)
    settings: dict[str, Any] = {"minutes": minutes, "checkpoint_every": 1000, "seed": seed}
    own.score(
        "new LoRA on selection", lambda: bench.trained(f"new-{seed}", own.selection, steps=10**5, **settings)
    )


def random_search(bench: Bench, seed: int) -> None:
    """The best of as many random candidates."""
    own = of_seed(bench, seed)
    own.merge("random search", own.random_search)


def random_parents(bench: Bench, seed: int) -> None:
    """The same evolution over adapters of random numbers."""
    own = of_seed(bench, seed)
    own.merge("random parents", own.random_parents)


def joint(bench: Bench, seed: int) -> None:
    """One LoRA of all tasks, in the steps of all parents."""
    own = of_seed(bench, seed)
    steps = bench.args.steps * len(own.tasks)
    own.score("joint LoRA", lambda: bench.trained(f"joint-{seed}", own.tasks, steps=steps, seed=seed))


def general(bench: Bench, seed: int) -> None:
    """General questions before and after; a merge that was not measured is left out."""
    loras: dict[str, Callable[[], LoRA | None]] = {"base": lambda: None, "start": lambda: bench.start}
    for row, name in {"RegMean": "regmean_48", "evolved": "evolved"}.items():
        if bench.has(f"{name}-{seed}"):
            loras[row] = partial(bench.kept_lora, f"{name}-{seed}")
    for row, lora in loras.items():
        bench.cell(
            f"general/{seed}/{row}",
            lambda lora=lora: dataclasses.asdict(base_ability(Predictor(bench.backbone, lora()))),
        )


def plain_search(bench: Bench, seed: int) -> None:
    """Evolution over the plain sum instead of RegMean's."""
    own = of_seed(bench, seed)
    own.merge("evolved sum", lambda: own.search("evolved_sum", False))


def ties_search(bench: Bench, seed: int) -> None:
    """Evolution over TIES: weights, and a density of every parent."""
    own = of_seed(bench, seed)
    own.merge("evolved ties", lambda: own.search("evolved_ties", False, "ties"))
