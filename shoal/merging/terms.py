"""The terms of a merge: what every parent adds, side by side in one LoRA, so that weights scale its ranks.

A merge that is linear in its weights is a sum with one term for each parent: its delta from the start, or its
part of RegMean's sum, D_i G_i (sum_j G_j)^-1. The start comes last and keeps weight 1. Knows values alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from shoal.adapters.lora import LoRA, LoraFactors
from shoal.adapters.merging.arithmetic import check_sizes
from shoal.adapters.merging.modules import difference, folded, joined, merge_by_inputs
from shoal.adapters.merging.recipe import Recipe
from shoal.adapters.merging.regmean import Covariances
from shoal.errors import UsageError


@dataclass(frozen=True, eq=False)
class Terms:
    """Terms side by side.

    Attributes:
        joined: all of them as one LoRA of scaling 1; padded with zeros to one rank.
        owner: module name -> for every rank the place of its parent; the number of parents is the start.
    """

    joined: LoRA
    owner: Mapping[str, Int[Tensor, " rank"]]


def terms_of(
    parents: Mapping[str, LoRA], start: LoRA | None, covariances: Sequence[Covariances] | None
) -> Terms:
    """The terms of a sum, or of RegMean's.

    Args:
        parents: name -> adapter.
        start: that deltas count from; None is the base model.
        covariances: of every parent's inputs, for RegMean; None is the plain sum.

    Raises:
        UsageError: parents of different sizes, or a covariance is missing or of another size.
    """
    check_sizes([*parents.values(), *([start] if start else [])])
    each, origin = [folded(lora) for lora in parents.values()], {} if start is None else folded(start)
    recipe = Recipe.of("linear" if covariances is None else "regmean", tuple(parents))
    factors: dict[str, LoraFactors] = {}
    owner: dict[str, Tensor] = {}
    for name, like in {n: f for own in (*each, origin) for n, f in own.items()}.items():
        deltas = [difference(own.get(name), origin.get(name), like) for own in each]
        ranks = [f.a.shape[0] for f in deltas]
        if covariances is None:
            together = joined(deltas)
        else:
            values = recipe.values(name)
            values.pop("lambda")
            together = merge_by_inputs(deltas, [own.get(name) for own in covariances], name, values)
        if name in origin:
            together = joined([together, origin[name]])
            ranks.append(origin[name].a.shape[0])
        factors[name] = together
        owner[name] = torch.arange(len(ranks)).repeat_interleave(torch.tensor(ranks))
    if not factors:
        raise UsageError("the parents adapt no module, so there is nothing to merge; name others")
    rank = max(f.a.shape[0] for f in factors.values())
    for name, f in factors.items():
        factors[name] = f.padded(rank)
        owner[name] = F.pad(owner[name], (0, rank - f.a.shape[0]))
    return Terms(LoRA(factors, float(rank)), owner)
