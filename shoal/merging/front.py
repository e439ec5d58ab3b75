"""The Pareto front by skill out of a search: one elite for each trade-off between the tasks.

Around what the search found are merges that lean to one parent or another. One pass judges them all, each
task apart; of every niche (a task, or all alike) the best one stays, and examples that are kept back from all
generations say what it keeps. Knows a population and its parents; nothing of files.

Source: niches as in Abrantes et al., "Competition and Attraction Improve Model Fusion", arXiv 2508.16204,
section 3; the split towards one parent is that of its crossover.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.merging.population import MergePopulation, Mixture
from shoal.training.batches import TokenisedExample

BALANCED = "balanced"  # the niche of all tasks alike
LEAN = 0.75  # share of the niche's own task in what its elite is chosen for
STEPS, DRAWN = (0.25, 0.5, 0.75, 1.0), 8


@dataclass(frozen=True, eq=False)
class FrontMember:
    """One trade-off.

    Attributes:
        niche: task that it leans to, or `balanced`.
        weights: of every parent in every group of layers.
        kept: task name -> share of the best parent's gain that it keeps, on examples that chose nothing.
        dominated: True where another member keeps at least as much of every task.
    """

    niche: str
    weights: Float[Tensor, "parents groups"]
    kept: Mapping[str, float]
    dominated: bool = False


def pareto_front(
    population: MergePopulation, mixture: Mixture, examples: Sequence[TokenisedExample], seed: int
) -> tuple[FrontMember, ...]:
    """The elite of every niche, those first that no other one dominates.

    Args:
        population: after its search.
        mixture: its parents.
        examples: that choose the elites.
        seed: of the merges that are drawn around what was found.
    """
    found = population.weights
    names = population.tasks
    candidates = _around(found, mixture, seed)
    by_task = population.shares(candidates.flatten(1), examples)
    lean = LEAN * torch.eye(len(names), dtype=by_task.dtype) + (1 - LEAN) / len(names)
    wanted = torch.cat([lean, torch.full((1, len(names)), 1 / len(names), dtype=by_task.dtype)])
    elite = (by_task @ wanted.T).argmax(0).tolist()
    kept = population.shares(candidates[elite].flatten(1), population.kept_back())
    members = []
    for row, niche in enumerate((*names, BALANCED)):
        others = [other for other in range(len(elite)) if elite[other] != elite[row]]
        beaten = any(bool((kept[o] >= kept[row]).all() and (kept[o] > kept[row]).any()) for o in others)
        shares = dict(zip(names, kept[row].tolist(), strict=True))
        members.append(FrontMember(niche, candidates[elite[row]], shares, beaten))
    return tuple(sorted(members, key=lambda member: member.dominated))


def _around(
    found: Float[Tensor, "parents groups"], mixture: Mixture, seed: int
) -> Float[Tensor, "candidates parents groups"]:
    """What was found, steps from it to each parent alone, and a few merges drawn near it."""
    generator = torch.Generator().manual_seed(seed)
    candidates = [found]
    for parent in range(len(mixture.names)):
        alone = torch.zeros_like(found)
        alone[parent] = 1
        candidates += [torch.lerp(found, alone, step) for step in STEPS]
    near = torch.randn(DRAWN, *found.shape, generator=generator) * 0.1
    return torch.stack([*candidates, *(found + near)])
