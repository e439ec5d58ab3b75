"""A mixture of experts for a task, found from a few solved examples by the cross-entropy method (CEM).

Mixtures are points of a simplex whose corners are the experts and the base model itself, so a search can
abstain. Knows a backbone and expert values; nothing of their training.

Source: Sun, Cetin, Tang, "Transformer-Squared: Self-adaptive LLMs", arXiv 2501.06252, section 3.2; the method
is Rubinstein's, "The cross-entropy method for combinatorial and continuous optimization" (1999).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.adapters.decomposition import Decompositions
from shoal.adapters.svf import ExpertVector, mix
from shoal.adapters.svf_hooks import attach_expert
from shoal.config import MixtureSearchConfig
from shoal.errors import UsageError
from shoal.inference.forward import answer_losses, pad_sequences
from shoal.models.backbone import Backbone

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 64
FIRST_DEVIATION, LEAST_DEVIATION = 2.0, 0.05  # of the scores whose softmax is a mixture


@dataclass(frozen=True, eq=False)
class FoundMixture:
    """The best mixture that a search met.

    Attributes:
        expert: the mixture itself.
        coefficients: of the experts and, last, of the base model; (layers or 1, experts + 1), rows sum to 1.
        loss: its mean answer loss on the shots, in nats per token.
        base_loss: that of the base model.
        history: best loss of every iteration.
    """

    expert: ExpertVector
    coefficients: Float[Tensor, "groups experts"]
    loss: float
    base_loss: float
    history: tuple[float, ...]


@torch.no_grad()
def search_mixture(
    backbone: Backbone,
    basis: Decompositions,
    experts: Sequence[ExpertVector],
    shots: Sequence[tuple[Sequence[int], Sequence[int]]],
    search: MixtureSearchConfig = MixtureSearchConfig(),
) -> FoundMixture:
    """The mixture of experts and base model that best predicts a few right answers.

    The first candidates are the uniform mixture, the base model and every single expert, as far as the
    population goes; what is returned is never worse than the base model on the shots. A whole population and
    all shots run in shared forward passes, each row with its own z: no weight is rebuilt.

    Args:
        backbone: the frozen model.
        basis: decompositions of the weights that the experts scale.
        experts: to be mixed.
        shots: (prompt ids, completion ids) of solved examples.
        search: settings.

    Raises:
        UsageError: no experts or shots, experts that do not fit, or settings out of range.
    """
    kept = _check(experts, shots, search)
    generator = torch.Generator().manual_seed(search.seed)
    known = [e.on(basis) for e in (*experts, ExpertVector.identity({n: basis[n] for n in experts[0].z}))]
    groups = _groups(backbone, experts[0]) if search.per_layer else dict.fromkeys(experts[0].z, 0)
    count, size = len(set(groups.values())), len(known)
    base, uniform = torch.eye(size)[-1:], torch.full((1, size), 1 / size)
    first = torch.cat([uniform, base, torch.eye(size)[:-1]])[: search.population, None].expand(-1, count, -1)
    mean, deviation = torch.zeros(count, size), torch.full((count, size), FIRST_DEVIATION)

    best = base.expand(count, size)
    lowest = base_loss = float(_losses(backbone, basis, known, best[None], groups, shots))
    history = []
    for iteration in range(search.iterations):
        log.info("searching: round %d of %d, loss %.3f", iteration + 1, search.iterations, lowest)
        noise = torch.randn(search.population, count, size, generator=generator)
        scores = mean + deviation * noise
        candidates = scores.softmax(-1)
        if iteration == 0:
            candidates[: len(first)] = first
            scores[: len(first)] = first.clamp(min=0.01).log()
        losses = _losses(backbone, basis, known, candidates, groups, shots)
        elite = losses.topk(kept, largest=False)
        mean = scores[elite.indices].mean(0)
        deviation = scores[elite.indices].std(0, correction=0).clamp(min=LEAST_DEVIATION)
        if float(elite.values[0]) < lowest:
            lowest, best = float(elite.values[0]), candidates[elite.indices[0]]
        history.append(lowest)
    expert = mix(known, {name: best[group] for name, group in groups.items()})
    return FoundMixture(expert, best, lowest, base_loss, tuple(history))


def _check(experts: Sequence[ExpertVector], shots: Sequence[object], search: MixtureSearchConfig) -> int:
    """Number of candidates that are elite."""
    if not experts or not shots:
        raise UsageError(
            f"a mixture is searched with at least 1 expert and 1 shot, got {len(experts)} and {len(shots)}; "
            "give both"
        )
    kept = round(search.population * search.elite)
    if not kept:
        raise UsageError(
            f"elite {search.elite:g} of population {search.population} is less than 1 candidate; raise either"
        )
    return kept


def _losses(
    backbone: Backbone,
    basis: Decompositions,
    experts: Sequence[ExpertVector],
    coefficients: Float[Tensor, "candidates groups experts"],
    groups: Mapping[str, int],
    shots: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> Float[Tensor, " candidates"]:
    """Mean answer loss of every candidate on all shots, several candidates a forward pass."""
    at_once = max(1, ROWS_AT_ONCE // len(shots))
    losses = []
    for part in coefficients.split(at_once):
        mixtures = mix(experts, {name: part[:, group] for name, group in groups.items()})
        batch = pad_sequences(list(shots) * len(part), backbone.end_of_turn, backbone.device)
        with attach_expert(backbone.model, basis, mixtures.to(backbone.device)):
            losses.append(answer_losses(backbone, batch).view(len(part), -1).mean(1).cpu())
    return torch.cat(losses)


def _groups(backbone: Backbone, expert: ExpertVector) -> dict[str, int]:
    """Module name -> which of the adapted layers it is in, counted from 0."""
    layers = {t.name: t.layer for t in backbone.shape.targets}
    present = sorted({layers[name] for name in expert.z})
    return {name: present.index(layers[name]) for name in expert.z}
