"""Niches of candidates: they compete for examples, and mate with those that know what they lack.

Every example has something to give, which the candidates share by how well they do on it. A candidate that
alone does well somewhere stays, though another is better on the whole. Knows numbers alone.

Source: Abrantes et al., "Competition and Attraction Improve Model Fusion" (M2N2), arXiv 2508.16204, section
3: competition for limited resources, attraction of mates, and crossover at a split point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

EMPTY = 1e-9  # what no candidate can do gives nothing
SPREAD = 0.1  # standard deviation of what a child's numbers change by
Genomes = Float[Tensor, "members numbers"]
Scores = Float[Tensor, "members examples"]
Supply = Float[Tensor, " examples"]


class Members(NamedTuple):
    """Candidates that are left, and what each does on every example."""

    genomes: Genomes
    scores: Scores


def competition(scores: Scores, supply: Supply) -> Float[Tensor, " members"]:
    """What every member gets: of each example's supply a share as large as that of its score.

    Args:
        scores: of every member on every example; what is below 0 counts as 0.
        supply: that each example gives.
    """
    scores = scores.clamp(min=0)
    return scores / scores.sum(0).clamp(min=EMPTY) @ supply


def attraction(scores: Scores, supply: Supply, mate: int) -> Float[Tensor, " members"]:
    """What every member does better than one of them, where few compete; arguments as `competition`."""
    scores = scores.clamp(min=0)
    return (scores - scores[mate]).clamp(min=0) @ (supply / scores.sum(0).clamp(min=EMPTY))


def evolve_niches(
    first: Genomes,
    score: Callable[[Genomes], Scores],
    supply: Supply,
    *,
    rounds: int,
    children: int,
    size: int,
    generator: torch.Generator,
) -> Members:
    """Let members mate and compete for some rounds.

    Args:
        first: members to begin with.
        score: scores of candidates on the same examples every time.
        supply: of the examples.
        rounds: of mating.
        children: in each round.
        size: members that are left at most.
        generator: of mates, splits and changes.
    """
    members = _thinned(Members(first, score(first)), supply, size)
    for _ in range(rounds):
        born = torch.stack([_child(members, supply, generator) for _ in range(children)])
        both = Members(torch.cat([members.genomes, born]), torch.cat([members.scores, score(born)]))
        members = _thinned(both, supply, size)
    return members


def _thinned(members: Members, supply: Supply, size: int) -> Members:
    """Members without those that get least, which go one by one."""
    while len(members.genomes) > size:
        left = torch.ones(len(members.genomes), dtype=torch.bool)
        left[competition(members.scores, supply).argmin()] = False
        members = Members(members.genomes[left], members.scores[left])
    return members


def _child(members: Members, supply: Supply, generator: torch.Generator) -> Float[Tensor, " numbers"]:
    """A mixture of a member that does well and one that knows what it lacks, changed a little.

    Before the split point the one weighs as much as the other does behind it.
    """
    one = _drawn(competition(members.scores, supply), generator)
    other = _drawn(attraction(members.scores, supply, one), generator)
    numbers = members.genomes.shape[1]
    split = int(torch.randint(1, numbers, (1,), generator=generator))
    share = torch.rand(1, generator=generator)
    shares = torch.where(torch.arange(numbers) < split, share, 1 - share)
    child = torch.lerp(members.genomes[one], members.genomes[other], shares)
    return child + SPREAD * torch.randn(numbers, generator=generator)


def _drawn(chances: Float[Tensor, " members"], generator: torch.Generator) -> int:
    """A member by its chance, or any where none has one."""
    chances = chances if float(chances.sum()) > 0 else torch.ones_like(chances)
    return int(torch.multinomial(chances, 1, generator=generator))
