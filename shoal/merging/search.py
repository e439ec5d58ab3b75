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
from shoal.merging.config import SUMS, MergeSearchConfig, check_searched
from shoal.merging.front import FrontMember, pareto_front
from shoal.merging.levels import levels_of
from shoal.merging.mixtures import Mixture, Sum, alone
from shoal.merging.population import MergePopulation
from shoal.merging.rebuilt import Rebuilt
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
    method: str | None = None,
    parameters: Mapping[str, float | bool] | None = None,
    prior: Sequence[str] = (),
    held_out: Sequence[Task] = (),
    show_progress: bool = True,
) -> FoundMerge:
    """Search for weights of adapters, by groups of layers, that keep most of what each of them can do.

    Methods that drop elements have a density of every parent to be found too.

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
        method: of `shoal.merging.config`; None is `regmean` with covariances, else `task_arithmetic`.
        parameters: of the method, which stay; a density among them is not searched for.
        prior: names of parents that stand for the whole, such as one from a sentence of all that is wanted.
            Each alone is where the search may start, beside even weights; the first examples decide.
        held_out: tasks that must share no example with `tasks`.
        show_progress: a progress bar on standard error.

    Raises:
        LeakageError: a held-out task, or a `test` example, is among the examples that judge.
        UsageError: no tasks, fewer than 2 parents, parents that do not fit the model or each other, none that
            is better than the start on a task, a rank below 1, a method or parameter that no search takes, a
            prior that is no parent, or the folder of another search.
        Interrupted: Ctrl-C; calling again goes on.
    """
    config = config or MergeSearchConfig()
    if not tasks:
        raise UsageError("candidates need tasks that judge them, got 0; give those of the parents")
    if rank < 1:
        raise UsageError(f"a merge cannot have rank {rank}; choose 1 or more")
    method = method or ("task_arithmetic" if covariances is None else "regmean")
    check_searched(method, parameters or {}, by_inputs=covariances is not None)
    if odd := sorted(set(prior) - parents.keys()):
        raise UsageError(f"the prior {odd[0]!r} is no parent; choose from {', '.join(parents)}")
    check_no_leakage(tasks, held_out)
    groups = config.layer_groups
    mixture: Mixture = (
        Sum(backbone, parents, groups, start=start, covariances=covariances)
        if method in SUMS
        else Rebuilt(backbone, parents, groups, method, parameters or {}, start=start, seed=config.seed)
    )
    corpus = tokenise(tasks, backbone, config.max_length)
    levels = levels_of(backbone, parents, corpus, start)
    population = MergePopulation(backbone, mixture, corpus, config, levels)
    started = _start(population, mixture, prior)
    before = population.genome
    run = evolve(population, config, folder, show_progress=show_progress, until=config.steps)
    genome = population.genome
    pair = torch.stack([before, genome])
    kept_before, kept_after = population.judge(pair, population.kept_back()).rewards
    last = population.examples(max(0, run.steps * config.accumulation - 1))
    optimism = population.judge(pair[1:], last).rewards[0] - kept_after

    def run_genome(own: Tensor) -> Merged:
        return run_recipe(
            mixture.recipe(own),
            list(parents.values()),
            rank=rank,
            covariances=None if covariances is None else [covariances[name] for name in parents],
            start=start,
            seed=config.seed,
            num_layers=backbone.shape.num_layers,
        )

    merged = run_genome(genome)
    note = (
        f"The weights were searched for in {run.steps} generations on {len(tasks)} tasks; on other examples "
        f"of them the sum keeps {kept_after:.0%} of the best parents' gain in loss, the first "
        f"weights {kept_before:.0%}. It started from {started or 'even weights'}."
    )
    front = pareto_front(population, mixture, last, config.seed)
    report = {
        **merged.report,
        "front": [
            {
                "niche": m.niche,
                "kept": dict(m.kept),
                "dominated": m.dominated,
                **mixture.described(m.genome),
            }
            for m in front
        ],
        **mixture.described(genome),
        "started_from": started,
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
    members = {m.niche: _described(m, run_genome(m.genome)) for m in front}
    return FoundMerge(merged, run, verdict, members)


def _start(population: MergePopulation, mixture: Mixture, prior: Sequence[str]) -> str | None:
    """Start from the prior that keeps most of the first examples, if it keeps more than even weights do."""
    if not prior:
        return None
    starts = [population.genome, *(alone(mixture, mixture.names.index(name)) for name in prior)]
    kept = population.judge(torch.stack(starts), population.examples(0)).rewards
    best = max(range(len(starts)), key=lambda i: kept[i])
    population.genome = starts[best]
    return prior[best - 1] if best else None


def _described(member: FrontMember, merged: Merged) -> Merged:
    """One trade-off, whose card has what it keeps of every task."""
    kept = ", ".join(f"{share:.0%} of {task}" for task, share in member.kept.items())
    note = f"The trade-off {member.niche} of a search; before rank was cut it keeps {kept} on other examples."
    scores = {f"kept_{task}": share for task, share in member.kept.items()}
    card = merged.card.model_copy(
        update={"notes": (*merged.card.notes, note), "scores": {**merged.card.scores, **scores}}
    )
    return replace(merged, card=card, report={**merged.report, "kept": dict(member.kept)})
