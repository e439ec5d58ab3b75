"""The search for a merge: an evolution strategy moves weights of parents, and its mean is what remains.

The best candidate that was met owes its place to the examples that it met; the mean of the distribution does
not, and the examples are other ones in every generation. Knows parents and tasks; nothing of files of
adapters, of reports or of the command line.

Source: Akiba et al., "Evolutionary Optimization of Model Merging Recipes", arXiv 2403.13187.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from shoal.adapters.lora import LoRA
from shoal.adapters.merging import Merged, run_recipe
from shoal.adapters.merging.closed_form import RANK
from shoal.adapters.merging.regmean import Covariances
from shoal.errors import UsageError
from shoal.merging.config import MergeSearchConfig
from shoal.merging.front import FrontMember, pareto_front
from shoal.merging.levels import levels_of
from shoal.merging.population import MergePopulation, Mixture
from shoal.merging.verdict import Verdict, judge, with_verdict
from shoal.models.backbone import Backbone
from shoal.tasks.loading import Task, check_no_leakage
from shoal.training.batches import tokenise
from shoal.training.evolution import evolve
from shoal.training.loop import RunSummary


@dataclass(frozen=True, eq=False)
class FoundMerge:
    """The merge that a search found.

    Attributes:
        merged: the adapter, its recipe and card. Its report has the weights, and the share of the best
            parents' gain that the first ones and those found keep on examples that no generation saw; the
            optimism is what those found keep more of it on the examples of the last generation.
        run: how the search went.
        verdict: merge, mix or route; None where a task has no test examples.
        front: other trade-offs between the tasks, each as an adapter by its niche.
    """

    merged: Merged
    run: RunSummary
    verdict: Verdict | None = None
    front: Mapping[str, Merged] = field(default_factory=dict)


def evolve_merge(
    backbone: Backbone,
    parents: Mapping[str, LoRA],
    tasks: Sequence[Task],
    folder: Path,
    config: MergeSearchConfig | None = None,
    *,
    rank: int = RANK,
    start: LoRA | None = None,
    covariances: Mapping[str, Covariances] | None = None,
    held_out: Sequence[Task] = (),
    show_progress: bool = True,
) -> FoundMerge:
    """Search for weights of adapters, by groups of layers, that keep most of what each of them can do.

    Args:
        backbone: the frozen model.
        parents: name -> adapter; at least 2.
        tasks: whose `train` lists judge candidates; what the parents are for. Their `test` lists, where all
            have one, decide between merging, mixing and routing.
        folder: of this run; a search that was stopped goes on there, bit for bit.
        config: settings; None means the defaults.
        rank: of the result, at most.
        start: adapter that every parent was trained on from; deltas count from it, and it is in the result.
        covariances: name -> those of the parent's inputs (`shoal.inference.covariances`); the search then
            goes on from RegMean, and weighs the parts of its sum.
        held_out: tasks that must share no example with `tasks`.
        show_progress: a progress bar on standard error.

    Raises:
        LeakageError: a held-out task, or a `test` example, is among the examples that judge.
        UsageError: no tasks, fewer than 2 parents, parents that do not fit the model or each other, none that
            is better than the start on a task, a rank below 1, or the folder of another search.
        Interrupted: Ctrl-C; calling again goes on.
    """
    config = config or MergeSearchConfig()
    if not tasks:
        raise UsageError("candidates need tasks that judge them, got 0; give those of the parents")
    if rank < 1:
        raise UsageError(f"a merge cannot have rank {rank}; choose 1 or more")
    check_no_leakage(tasks, held_out)
    mixture = Mixture(backbone, parents, config.layer_groups, start=start, covariances=covariances)
    corpus = tokenise(tasks, backbone, config.max_length)
    levels = levels_of(backbone, parents, corpus, start)
    population = MergePopulation(backbone, mixture, corpus, config, levels)
    before = population.weights
    run = evolve(population, config, folder, show_progress=show_progress, until=config.steps)
    weights = population.weights
    pair = torch.stack([before.flatten(), weights.flatten()])
    kept_before, kept_after = population.judge(pair, population.kept_back()).rewards
    last = population.examples(max(0, run.steps * config.accumulation - 1))
    optimism = population.judge(pair[1:], last).rewards[0] - kept_after

    def run_weights(own: Tensor) -> Merged:
        return run_recipe(
            mixture.recipe(own),
            list(parents.values()),
            rank=rank,
            covariances=None if covariances is None else [covariances[name] for name in parents],
            start=start,
            num_layers=backbone.shape.num_layers,
        )

    merged = run_weights(weights)
    note = (
        f"The weights were searched for in {run.steps} generations on {len(tasks)} tasks; on other examples "
        f"of them the sum keeps {kept_after:.0%} of the best parents' gain in loss, the first "
        f"weights {kept_before:.0%}."
    )
    front = pareto_front(population, mixture, last, config.seed)
    report = {
        **merged.report,
        "front": [
            {"niche": m.niche, "kept": dict(m.kept), "weights": m.weights.tolist(), "dominated": m.dominated}
            for m in front
        ],
        "weights": dict(zip(mixture.names, weights.tolist(), strict=True)),
        "layers": mixture.layers,
        "tasks": {task.name: asdict(level) for task, level in zip(tasks, levels, strict=True)},
        "kept_before": kept_before,
        "kept_after": kept_after,
        "optimism": optimism,
        "generations": run.steps,
    }
    card = merged.card.model_copy(update={"notes": (*merged.card.notes, note)})
    merged = replace(merged, card=card, report=report)
    verdict = None
    if all(task.test for task in tasks):
        verdict = judge(backbone, parents, merged.lora, tasks, start)
        merged = with_verdict(merged, verdict)
    members = {m.niche: _described(m, run_weights(m.weights)) for m in front}
    return FoundMerge(merged, run, verdict, members)


def _described(member: FrontMember, merged: Merged) -> Merged:
    """One trade-off, whose card has what it keeps of every task."""
    kept = ", ".join(f"{share:.0%} of {task}" for task, share in member.kept.items())
    note = f"The trade-off {member.niche} of a search; before rank was cut it keeps {kept} on other examples."
    scores = {f"kept_{task}": share for task, share in member.kept.items()}
    card = merged.card.model_copy(
        update={"notes": (*merged.card.notes, note), "scores": {**merged.card.scores, **scores}}
    )
    return replace(merged, card=card, report={**merged.report, "kept": dict(member.kept)})
