"""What the updates of one round become: pure functions of tensors, in one table.

The tensors of a LoRA are named `MODULE.a` and `MODULE.b`, its scaling being the same for all; those of
an expert are its z, and those of a hypernetwork its weights. Knows nothing of clients, rounds or networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from shoal.adapters.lora import LoRA, LoraFactors
from shoal.adapters.merging import compose
from shoal.adapters.merging.truncation import Truncation
from shoal.errors import UsageError

Tensors = Mapping[str, Tensor]
What = Literal["lora", "expert", "hypernetwork"]
TRIMMED = 0.2  # share of the clients that a trimmed mean leaves out at either end, at least one


@dataclass(frozen=True, eq=False)
class Contributions:
    """The updates of one round that were accepted.

    Attributes:
        start: tensors that every client started from.
        updates: tensors of each client, of the same names and shapes.
        weights: of each client, which sum to 1.
    """

    start: Tensors
    updates: Sequence[Tensors]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        if not self.updates or len(self.updates) != len(self.weights):
            raise UsageError(
                f"{len(self.updates)} updates with {len(self.weights)} weights; give one weight for each"
            )


@dataclass(frozen=True, eq=False)
class Aggregate:
    """What a round became.

    Attributes:
        tensors: as those of an update.
        truncation_error: share of the Frobenius norm of the delta weights that cutting to the rank dropped.
    """

    tensors: Tensors
    truncation_error: float = 0.0


def lora_tensors(lora: LoRA) -> dict[str, Tensor]:
    """The factors as named tensors; alpha is not among them."""
    return {f"{name}.{side}": t for name, f in lora.factors.items() for side, t in f._asdict().items()}


def lora_of(tensors: Tensors, alpha: float | None = None) -> LoRA:
    """The LoRA of named tensors, of scaling 1 without an alpha."""
    names = [name[:-2] for name in tensors if name.endswith(".a")]
    factors = {name: LoraFactors(tensors[f"{name}.a"], tensors[f"{name}.b"]) for name in names}
    rank = next(iter(factors.values())).a.shape[-2]
    return LoRA(factors, float(rank) if alpha is None else alpha)


def exact(given: Contributions) -> Aggregate:
    """The mean of the delta weights, by concatenating ranks and cutting them; no weight is formed.

    FLoRA (arXiv 2409.05976, equation 5) for the concatenation, Eckart-Young for the cut.
    """
    if len(given.updates) == 1:
        return Aggregate(dict(given.updates[0]))
    loras = [lora_of(update) for update in given.updates]
    cut = Truncation(loras[0].rank)
    for name, factors in compose(loras, given.weights).factors.items():
        cut.take(name, factors)
    return Aggregate(lora_tensors(cut.lora()), cut.error)


def mean(given: Contributions) -> Aggregate:
    """The weighted mean of every tensor (FedAvg, arXiv 1602.05629, algorithm 1)."""
    if len(given.updates) == 1:
        return Aggregate(dict(given.updates[0]))
    weights = torch.tensor(given.weights, dtype=torch.float64)
    return _apart(given, lambda rows: torch.tensordot(weights, rows.double(), dims=1).float())


def median(given: Contributions) -> Aggregate:
    """The median of every number (arXiv 1803.01498, definition 1); weights are left aside."""
    return _apart(given, lambda rows: _middle(rows, (len(rows) - 1) // 2))


def trimmed_mean(given: Contributions) -> Aggregate:
    """The mean of every number without its extremes (arXiv 1803.01498, definition 2)."""
    count = len(given.updates)
    return _apart(given, lambda rows: _middle(rows, min((count - 1) // 2, max(1, int(TRIMMED * count)))))


def krum(given: Contributions) -> Aggregate:
    """The update that is nearest to its neighbours (arXiv 1703.02757, section 4); weights are left aside.

    Raises:
        UsageError: fewer than 5 updates, among which no liar can be told.
    """
    count = len(given.updates)
    if count < 5:
        raise UsageError(f"Krum tells 1 liar among 5 clients or more, got {count}; choose median")
    flat = torch.stack([_flat(update) for update in given.updates])
    liars = (count - 3) // 2
    distances = torch.cdist(flat, flat).square().sort(dim=1).values
    scores = distances[:, 1 : count - liars - 1].sum(1)
    return Aggregate(dict(given.updates[int(scores.argmin())]))


def clipped(given: Contributions) -> Aggregate:
    """The mean, with every step cut to the median length of the steps (arXiv 1911.07963, section 5)."""
    lengths = torch.stack([distance(update, given.start) for update in given.updates])
    limit = float(_middle(lengths, (len(lengths) - 1) // 2))
    updates = [clip(update, given.start, limit) for update in given.updates]
    return mean(Contributions(given.start, updates, given.weights))


def distance(update: Tensors, start: Tensors) -> Tensor:
    """Euclidean length of the step from `start` to an update, all tensors together, float64 scalar."""
    return (
        torch.stack([(t.double() - start[name].double()).square().sum() for name, t in update.items()])
        .sum()
        .sqrt()
    )


def clip(update: Tensors, start: Tensors, limit: float) -> Tensors:
    """The update with its step from `start` cut to a length; the update itself where it is within it."""
    length = float(distance(update, start))
    if length <= limit:
        return update
    return {name: start[name] + (t - start[name]) * (limit / length) for name, t in update.items()}


@dataclass(frozen=True)
class Method:
    """A rule of aggregation.

    Attributes:
        run: the rule.
        paper: where it is from.
        of: what it is for.
        freezes_a: clients train B alone, on one shared A, so that numbers of a LoRA compare one by one.
        robust: what some liars send moves the result little.
    """

    run: Callable[[Contributions], Aggregate]
    paper: str
    of: tuple[What, ...]
    freezes_a: bool = False
    robust: bool = False


ALL: tuple[What, ...] = ("lora", "expert", "hypernetwork")
METHODS: Mapping[str, Method] = {
    "exact": Method(exact, "arXiv 2409.05976", ("lora",)),
    "ffa": Method(mean, "arXiv 2403.12313", ("lora",), freezes_a=True),
    "averaged": Method(
        mean, "arXiv 2305.05644, a control: the mean of factors is not that of weights", ("lora",)
    ),
    "z": Method(mean, "arXiv 1602.05629; weights are linear in z, so it is exact", ("expert",)),
    "network": Method(mean, "arXiv 1602.05629", ("hypernetwork",)),
    "clipped": Method(clipped, "arXiv 1911.07963", ALL, freezes_a=True),
    "median": Method(median, "arXiv 1803.01498", ALL, freezes_a=True, robust=True),
    "trimmed_mean": Method(trimmed_mean, "arXiv 1803.01498", ALL, freezes_a=True, robust=True),
    "krum": Method(krum, "arXiv 1703.02757", ALL, freezes_a=True, robust=True),
}
DEFAULTS: Mapping[What, str] = {"lora": "exact", "expert": "z", "hypernetwork": "network"}


def method_for(what: What, name: str | None) -> Method:
    """A rule by its name, or the exact one for `what`.

    Raises:
        UsageError: no such rule, or one for something else.
    """
    fitting = [key for key, method in METHODS.items() if what in method.of]
    chosen = DEFAULTS[what] if name is None else name
    if chosen not in fitting:
        raise UsageError(f"{chosen!r} is no aggregation of what={what}; choose one of {', '.join(fitting)}")
    return METHODS[chosen]


def _apart(given: Contributions, reduce: Callable[[Tensor], Tensor]) -> Aggregate:
    return Aggregate(
        {name: reduce(torch.stack([u[name] for u in given.updates])) for name in given.updates[0]}
    )


def _middle(rows: Tensor, cut: int) -> Tensor:
    """Mean along the first axis without the `cut` largest and smallest."""
    return rows.sort(dim=0).values[cut : len(rows) - cut].mean(0)


def _flat(update: Tensors) -> Tensor:
    return torch.cat([update[name].flatten().double() for name in sorted(update)])
