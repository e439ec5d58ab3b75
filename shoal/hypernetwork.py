"""The hypernetwork: task embedding, layer and module type in; LoRA factors out.

Knows tensors and targets, nothing of files, descriptions, models or training. A trunk reads the task
embedding beside learned layer and module-type embeddings; one head a module type turns its output into
factors. With an offset, the network learns one shared adapter and emits differences from it that start at
zero, so that training starts at the multi-task LoRA.

Source: Charakorn et al., "Text-to-LoRA: Instant Transformer Adaption", arXiv 2506.06105, section 3 (heads L,
M and S); the offset and the mixture head are Shoal's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoal.errors import UsageError
from shoal.lora import BatchedLoRA, LoRA, LoraFactors, TargetModule, check_rank


@dataclass(frozen=True)
class Architecture:
    """Sizes of a hypernetwork.

    Attributes:
        task_dim: width of the task embedding.
        rank: LoRA rank.
        alpha: LoRA alpha.
        head: `L`, `M`, `S` or `mixture`.
        latent_size: width of the encoder and trunk, a multiple of 4.
        hidden_size: width of the trunk's output.
        dropout: dropout probability while training.
        num_bases: bases of the mixture head.
        offset: whether a shared adapter is learned and differences from it are emitted.

    Raises:
        UsageError: an unknown head, or a size outside its range.
    """

    task_dim: int
    rank: int
    alpha: float
    head: str = "L"
    latent_size: int = 128
    hidden_size: int = 256
    dropout: float = 0.1
    num_bases: int = 16
    offset: bool = True

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise UsageError(f"unknown head {self.head!r}; choose from {', '.join(HEADS)}")
        for name in ("task_dim", "rank", "latent_size", "hidden_size", "num_bases"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"{name} {getattr(self, name)} of a hypernetwork must be at least 1; raise it"
                )
        if self.latent_size % 4:
            raise UsageError(f"latent_size {self.latent_size} must be a multiple of 4; choose one")
        if not 0 < self.alpha < math.inf or not 0 <= self.dropout < 1:
            raise UsageError(
                f"alpha {self.alpha} must be finite and above 0, dropout {self.dropout} in [0, 1); change it"
            )


class Hypernetwork(nn.Module):
    """Emits a LoRA for every task embedding.

    Attributes:
        architecture: its sizes.
        targets: the modules that it adapts, in the order of the backbone.
    """

    def __init__(self, targets: Sequence[TargetModule], architecture: Architecture) -> None:
        """Build it with fresh weights, at which every adapter is the identity.

        Raises:
            UsageError: no targets, one twice, or a rank outside the targets' sizes.
        """
        super().__init__()
        if not targets:
            raise UsageError("a hypernetwork needs at least one target module")
        if len({t.name for t in targets}) < len(targets):
            raise UsageError(f"{len(targets)} target modules share names; name each once")
        check_rank(targets, architecture.rank)
        self.targets, self.architecture = tuple(targets), architecture
        self._groups = _group_by_type(targets)
        latent, hidden, dropout = architecture.latent_size, architecture.hidden_size, architecture.dropout
        depth = 1 + max(t.layer for t in targets)
        self.task_encoder = nn.Sequential(
            nn.Linear(architecture.task_dim, latent // 2), nn.LayerNorm(latent // 2)
        )
        self.layer_embedding = nn.Sequential(nn.Embedding(depth, latent // 4), nn.LayerNorm(latent // 4))
        self.type_embedding = nn.Sequential(
            nn.Embedding(len(self._groups), latent // 4), nn.LayerNorm(latent // 4)
        )
        self.trunk = nn.Sequential(
            nn.Linear(latent, 4 * latent),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(4 * latent, latent),
            nn.SiLU(),
            _ResidualBlock(latent, dropout),
            _ResidualBlock(latent, dropout),
            nn.LayerNorm(latent),
            nn.Linear(latent, 4 * latent),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(4 * latent, hidden),
            nn.SiLU(),
        )
        self.heads = nn.ModuleList(HEADS[architecture.head](group, architecture) for group in self._groups)
        self.offsets: Any = nn.ModuleList(_Offset(group, architecture.rank) for group in self._groups)
        if not architecture.offset:
            # The published start: A is one Kaiming-uniform matrix for all layers and tasks, B is zero.
            self.offsets.requires_grad_(False)

    def forward(self, task_embeddings: Float[Tensor, "tasks task_dim"]) -> BatchedLoRA:
        """One adapter a task embedding, in float32 on the network's device."""
        factors: dict[str, LoraFactors] = {}
        tasks = task_embeddings.shape[0]
        task = self.task_encoder(task_embeddings)[:, None, :]
        for index, group in enumerate(self._groups):
            layers = torch.tensor([t.layer for t in group], device=task.device)
            layer = self.layer_embedding(layers)[None].expand(tasks, -1, -1)
            kind = self.type_embedding(torch.full_like(layers, index))[None].expand(tasks, -1, -1)
            hidden = self.trunk(torch.cat([task.expand(-1, len(group), -1), layer, kind], dim=-1))
            delta, offset = self.heads[index](hidden), self.offsets[index]
            a, b = offset.a + delta.a, offset.b + delta.b
            for position, target in enumerate(group):
                factors[target.name] = LoraFactors(a[:, position], b[:, position])
        return BatchedLoRA({t.name: factors[t.name] for t in self.targets}, self.architecture.alpha)

    def offset_lora(self) -> LoRA:
        """The shared adapter that a zero difference leaves: the multi-task LoRA."""
        factors = {}
        for group, offset in zip(self._groups, self.offsets, strict=True):
            for position, target in enumerate(group):
                a, b = offset.a[position].detach().clone(), offset.b[position].detach().clone()
                factors[target.name] = LoraFactors(a, b)
        return LoRA({t.name: factors[t.name] for t in self.targets}, self.architecture.alpha)

    @torch.no_grad()
    def start_from(self, lora: LoRA) -> None:
        """Set the shared adapter to a multi-task LoRA of the same targets, rank and alpha.

        Raises:
            UsageError: the network has no offset, or the adapter's shape differs.
        """
        if not self.architecture.offset:
            raise UsageError(
                "this hypernetwork has no offset to start from a LoRA; build it with offset=True"
            )
        sizes = {t.name: (t.in_features, t.out_features) for t in self.targets}
        rank, alpha = self.architecture.rank, self.architecture.alpha
        given = {name: (f.a.shape[-1], f.b.shape[-2]) for name, f in lora.factors.items()}
        if sizes != given or (lora.rank, lora.alpha) != (rank, alpha):
            raise UsageError(
                f"the LoRA (rank {lora.rank}, alpha {lora.alpha:g}, {len(given)} modules) does not fit the "
                f"hypernetwork (rank {rank}, alpha {alpha:g}, {len(sizes)} modules); train it with the same "
                "base model, targets, rank and alpha"
            )
        for group, offset in zip(self._groups, self.offsets, strict=True):
            for position, target in enumerate(group):
                offset.a[position].copy_(lora.factors[target.name].a)
                offset.b[position].copy_(lora.factors[target.name].b)


class _ResidualBlock(nn.Module):
    """x + MLP(LayerNorm(x)), four times wider inside."""

    def __init__(self, size: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(size),
            nn.Linear(size, 4 * size),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(4 * size, size),
            nn.SiLU(),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class _Offset(nn.Module):
    """The shared factors of one module type: A (layers, rank, in) is noise, B (layers, out, rank) is zero.

    The noise is Kaiming-uniform and the same for every layer.
    """

    def __init__(self, group: Sequence[TargetModule], rank: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(group[0].in_features)
        one = torch.empty(rank, group[0].in_features).uniform_(-bound, bound)
        self.a = nn.Parameter(one.expand(len(group), -1, -1).clone())
        self.b = nn.Parameter(torch.zeros(len(group), group[0].out_features, rank))


class _LargeHead(nn.Module):
    """Head L: one linear map emits all r (d_in + d_out) numbers of a module."""

    def __init__(self, group: Sequence[TargetModule], architecture: Architecture) -> None:
        super().__init__()
        self.rank, self.sizes = architecture.rank, (group[0].in_features, group[0].out_features)
        self.output = _zero_linear(architecture.hidden_size, self.rank * sum(self.sizes))

    def forward(self, hidden: Float[Tensor, "tasks layers hidden"]) -> LoraFactors:
        a, b = self.output(hidden).split([self.rank * size for size in self.sizes], dim=-1)
        return LoraFactors(a.unflatten(-1, (self.rank, -1)), b.unflatten(-1, (-1, self.rank)))


class _MediumHead(nn.Module):
    """Head M: one map of r max(d_in, d_out) numbers, used twice, told A from B by a learned embedding."""

    def __init__(self, group: Sequence[TargetModule], architecture: Architecture) -> None:
        super().__init__()
        self.rank, self.sizes = architecture.rank, (group[0].in_features, group[0].out_features)
        self.factor_embedding = nn.Embedding(2, architecture.hidden_size)
        self.mix = nn.Sequential(
            nn.LayerNorm(architecture.hidden_size), _linear_silu(architecture.hidden_size)
        )
        self.output = _zero_linear(architecture.hidden_size, self.rank * max(self.sizes))

    def forward(self, hidden: Float[Tensor, "tasks layers hidden"]) -> LoraFactors:
        rows = [
            self.output(self.mix(hidden + e)).unflatten(-1, (self.rank, -1))
            for e in self.factor_embedding.weight
        ]
        a, b = (row[..., :size] for row, size in zip(rows, self.sizes, strict=True))
        return LoraFactors(a, b.transpose(-1, -2))


class _SmallHead(nn.Module):
    """Head S: one map of max(d_in, d_out) numbers emits one rank row of A or B, told apart by embeddings."""

    def __init__(self, group: Sequence[TargetModule], architecture: Architecture) -> None:
        super().__init__()
        self.sizes = (group[0].in_features, group[0].out_features)
        self.factor_embedding = nn.Embedding(2, architecture.hidden_size)
        self.rank_embedding = nn.Embedding(architecture.rank, architecture.hidden_size)
        self.mix = nn.Sequential(
            nn.LayerNorm(architecture.hidden_size), _linear_silu(architecture.hidden_size)
        )
        self.output = _zero_linear(architecture.hidden_size, max(self.sizes))

    def forward(self, hidden: Float[Tensor, "tasks layers hidden"]) -> LoraFactors:
        by_rank = hidden[..., None, :] + self.rank_embedding.weight
        a, b = (
            self.output(self.mix(by_rank + e))[..., :size]
            for e, size in zip(self.factor_embedding.weight, self.sizes, strict=True)
        )
        return LoraFactors(a, b.transpose(-1, -2))


class _MixtureHead(nn.Module):
    """A mixture of K learned factor pairs a layer, with one set of coefficients for A and one for B.

    The coefficients are linear in the trunk's output and start at zero, the bases as noise of A's scale.
    """

    def __init__(self, group: Sequence[TargetModule], architecture: Architecture) -> None:
        super().__init__()
        bases, rank = architecture.num_bases, architecture.rank
        bound = 1 / math.sqrt(group[0].in_features)
        self.a = nn.Parameter(
            torch.empty(len(group), bases, rank, group[0].in_features).uniform_(-bound, bound)
        )
        self.b = nn.Parameter(
            torch.empty(len(group), bases, group[0].out_features, rank).uniform_(-bound, bound)
        )
        self.coefficients = _zero_linear(architecture.hidden_size, 2 * bases)

    def forward(self, hidden: Float[Tensor, "tasks layers hidden"]) -> LoraFactors:
        for_a, for_b = self.coefficients(hidden).chunk(2, dim=-1)
        a = torch.einsum("tlk,lkri->tlri", for_a, self.a)
        return LoraFactors(a, torch.einsum("tlk,lkor->tlor", for_b, self.b))


HEADS: dict[str, type[nn.Module]] = {
    "L": _LargeHead,
    "M": _MediumHead,
    "S": _SmallHead,
    "mixture": _MixtureHead,
}


def _zero_linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, device="meta")  # spares the noise that zeros would overwrite
    linear.weight = nn.Parameter(torch.zeros(outputs, inputs))
    linear.bias = nn.Parameter(torch.zeros(outputs))
    return linear


def _linear_silu(size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, size), nn.SiLU())


def _group_by_type(targets: Sequence[TargetModule]) -> list[list[TargetModule]]:
    """Targets of one type and size together; layers of an odd size are a group of their own."""
    groups: dict[tuple[str, int, int], list[TargetModule]] = {}
    for t in targets:
        groups.setdefault((t.type, t.in_features, t.out_features), []).append(t)
    return list(groups.values())
