"""The search for a merge: an evolution strategy moves weights of parents, and its mean is what remains.

The best candidate that was met owes its place to the examples that it met; the mean of the distribution does
not, and the examples are other ones in every generation. Knows parents and tasks; nothing of files of
adapters, of reports or of the command line.

Source: Akiba et al., "Evolutionary Optimization of Model Merging Recipes", arXiv 2403.13187.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.adapters.lora import LoRA
from shoal.adapters.merging import Merged, run_recipe
from shoal.adapters.merging.closed_form import RANK
from shoal.errors import UsageError
from shoal.merging.config import MergeSearchConfig
from shoal.merging.population import MergePopulation, Mixture, TaskLevels
from shoal.models.backbone import Backbone
from shoal.tasks.loading import Task, check_no_leakage
from shoal.training.batches import tokenise
from shoal.training.evolution import evolve
from shoal.training.loop import RunSummary


@dataclass(frozen=True, eq=False)
class FoundMerge:
    """The merge that a search found.

    Attributes:
        merged: the adapter, its recipe, report and card.
        weights: of every parent in every group of layers.
        levels: task name -> what base model and best parent do on its first examples.
        kept_before: mean share of the best parents' gain that equal weights keep, on one batch.
        kept_after: the same of what was found, before its rank was cut, on the same batch; no generation was
            tried on it.
        run: how the search went.
    """

    merged: Merged
    weights: Float[Tensor, "parents groups"]
    levels: Mapping[str, TaskLevels]
    kept_before: float
    kept_after: float
    run: RunSummary


def evolve_merge(
    backbone: Backbone,
    parents: Mapping[str, LoRA],
    tasks: Sequence[Task],
    folder: Path,
    config: MergeSearchConfig | None = None,
    *,
    rank: int = RANK,
    held_out: Sequence[Task] = (),
    show_progress: bool = True,
) -> FoundMerge:
    """Search for weights of adapters, by groups of layers, that keep most of what each of them can do.

    Args:
        backbone: the frozen model.
        parents: name -> adapter; at least 2.
        tasks: whose `train` lists judge candidates; what the parents are for.
        folder: of this run; a search that was stopped goes on there, bit for bit.
        config: settings; None means the defaults.
        rank: of the result, at most.
        held_out: tasks that must share no example with `tasks`.
        show_progress: a progress bar on standard error.

    Raises:
        LeakageError: a held-out task, or a `test` example, is among the examples that judge.
        UsageError: no tasks, fewer than 2 parents, parents that do not fit the model or each other, none that
            is better than the base model on a task, a rank below 1, or the folder of another search.
        Interrupted: Ctrl-C; calling again goes on.
    """
    config = config or MergeSearchConfig()
    if not tasks:
        raise UsageError("candidates need tasks that judge them, got 0; give those of the parents")
    if rank < 1:
        raise UsageError(f"a merge cannot have rank {rank}; choose 1 or more")
    check_no_leakage(tasks, held_out)
    mixture = Mixture(backbone, parents, config.layer_groups)
    corpus = tokenise(tasks, backbone, config.max_length)
    population = MergePopulation(backbone, mixture, corpus, config, 1 / math.sqrt(len(parents)))
    before = population.weights
    run = evolve(population, config, folder, show_progress=show_progress)
    weights = population.weights
    fresh = max(run.steps, config.steps) * config.accumulation
    pair = torch.stack([before.flatten(), weights.flatten()])
    kept_before, kept_after = population.fitness(pair, fresh).rewards
    merged = run_recipe(
        mixture.recipe(weights), list(parents.values()), rank=rank, num_layers=backbone.shape.num_layers
    )
    levels = {task.name: level for task, level in zip(tasks, population.levels, strict=True)}
    note = (
        f"The weights were searched for in {run.steps} generations on {len(tasks)} tasks; on other examples "
        f"of them the sum keeps {kept_after:.0%} of the best parents' gain in loss, equal weights "
        f"{kept_before:.0%}."
    )
    report = {
        **merged.report,
        "weights": dict(zip(mixture.names, weights.tolist(), strict=True)),
        "layers": mixture.layers,
        "tasks": {name: asdict(level) for name, level in levels.items()},
        "kept_before": kept_before,
        "kept_after": kept_after,
        "generations": run.steps,
    }
    card = merged.card.model_copy(update={"notes": (*merged.card.notes, note)})
    merged = replace(merged, card=card, report=report)
    return FoundMerge(merged, weights, levels, kept_before, kept_after, run)
