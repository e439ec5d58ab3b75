"""The Pareto front by skill out of a search: one elite for each trade-off between the tasks.

Members begin with what the search found and steps from it to every parent. They mate and compete for
examples, so that what only one of them can do stays; of every niche (a task, or all alike) the best member
stays, and examples that are kept back from all generations say what it keeps. Knows a population and its
parents; nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from shoal.merging.mixtures import Genome, Mixture, alone
from shoal.merging.niches import evolve_niches
from shoal.merging.population import MergePopulation
from shoal.training.batches import TokenisedExample

BALANCED = "balanced"  # the niche of all tasks alike
LEAN = 0.75  # share of the niche's own task in what its elite is chosen for
STEPS, ROUNDS, CHILDREN = (0.5, 1.0), 2, 8


@dataclass(frozen=True, eq=False)
class FrontMember:
    """One trade-off.

    Attributes:
        niche: task that it leans to, or `balanced`.
        genome: its numbers.
        kept: task name -> share of the best parent's gain that it keeps, on examples that chose nothing.
        dominated: True where another member keeps at least as much of every task.
    """

    niche: str
    genome: Genome
    kept: Mapping[str, float]
    dominated: bool = False


def pareto_front(
    population: MergePopulation, mixture: Mixture, examples: Sequence[TokenisedExample], seed: int
) -> tuple[FrontMember, ...]:
    """The elite of every niche, those first that no other one dominates.

    Args:
        population: after its search.
        mixture: its parents.
        examples: that members compete for.
        seed: of mates and changes.
    """
    names, found = population.tasks, population.genome
    towards = [alone(mixture, parent) for parent in range(len(mixture.names))]
    first = torch.stack([found, *(torch.lerp(found, own, step) for own in towards for step in STEPS)])
    means = _means(examples, len(names))
    members = evolve_niches(
        first,
        lambda genomes: population.shares(genomes, examples),
        means.sum(1),  # every task gives as much
        rounds=ROUNDS,
        children=CHILDREN,
        size=2 * len(names) + 1,
        generator=torch.Generator().manual_seed(seed),
    )
    by_task = members.scores @ means
    lean = LEAN * torch.eye(len(names), dtype=by_task.dtype) + (1 - LEAN) / len(names)
    wanted = torch.cat([lean, torch.full((1, len(names)), 1 / len(names), dtype=by_task.dtype)])
    elite = (by_task @ wanted.T).argmax(0).tolist()
    unseen = population.kept_back()
    kept = population.shares(members.genomes[elite], unseen) @ _means(unseen, len(names))
    front = []
    for row, niche in enumerate((*names, BALANCED)):
        others = [other for other in range(len(elite)) if elite[other] != elite[row]]
        beaten = any(bool((kept[o] >= kept[row]).all() and (kept[o] > kept[row]).any()) for o in others)
        shares = dict(zip(names, kept[row].tolist(), strict=True))
        front.append(FrontMember(niche, members.genomes[elite[row]], shares, beaten))
    return tuple(sorted(front, key=lambda member: member.dominated))


def _means(examples: Sequence[TokenisedExample], tasks: int) -> Float[Tensor, "examples tasks"]:
    """Weight of every example in the mean of its task, float64."""
    of_task = F.one_hot(torch.tensor([e.task for e in examples]), tasks).double()
    return of_task / of_task.sum(0)
