"""The hypernetwork: task embedding, layer and module type in; LoRA factors out.

Knows tensors, targets and its own checkpoints, nothing of descriptions, models or training. A trunk reads the
task embedding beside learned layer and module-type embeddings; one head a module type turns its output into
factors. With an offset, the network learns one shared adapter and emits differences from it that start at zero,
so that training starts at the multi-task LoRA.

Source: Charakorn et al., "Text-to-LoRA: Instant Transformer Adaption", arXiv 2506.06105, section 3 (heads L, M
and S); the offset and the mixture head are Shoal's own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from shoal.errors import ShoalError, UsageError
from shoal.files import read_json, read_tensors, write_directory
from shoal.lora import BatchedLoRA, LoRA, LoraFactors, TargetModule, check_rank

WEIGHTS_FILE = "hypernetwork.safetensors"
CONFIG_FILE = "hypernetwork.json"
FORMAT = 1


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


class Hypernetwork(nn.Module):
    """Emits a LoRA for every task embedding.

    Attributes:
        architecture: its sizes.
        targets: the modules that it adapts, in the order of the backbone.
    """

    def __init__(self, targets: Sequence[TargetModule], architecture: Architecture) -> None:
        """Build it with fresh weights, at which every adapter is the identity.

        Raises:
            UsageError: no targets, a rank outside the targets' sizes, or an unknown head.
        """
        super().__init__()
        if not targets:
            raise UsageError("a hypernetwork needs at least one target module")
        if architecture.head not in HEADS:
            raise UsageError(f"unknown head {architecture.head!r}; choose from {', '.join(HEADS)}")
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
        self.offsets = nn.ModuleList(_Offset(group, architecture.rank) for group in self._groups)
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
                factors[target.name] = LoraFactors(offset.a[position].detach(), offset.b[position].detach())
        return LoRA({t.name: factors[t.name] for t in self.targets}, self.architecture.alpha)

    @torch.no_grad()
    def start_from(self, lora: LoRA) -> None:
        """Set the shared adapter to a multi-task LoRA of the same targets, rank and alpha.

        Raises:
            UsageError: the network has no offset, or the adapter's shape differs.
        """
        ours = {t.name for t in self.targets}
        if not self.architecture.offset:
            raise UsageError(
                "this hypernetwork has no offset to start from a LoRA; build it with offset=True"
            )
        if ours != lora.factors.keys() or (lora.rank, lora.alpha) != (
            self.architecture.rank,
            self.architecture.alpha,
        ):
            raise UsageError(
                f"the LoRA (rank {lora.rank}, alpha {lora.alpha:g}, {len(lora.factors)} modules) does not fit the "
                f"hypernetwork (rank {self.architecture.rank}, alpha {self.architecture.alpha:g}, {len(ours)} modules)"
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
    """The shared factors of one module type: A (layers, rank, in) as Kaiming-uniform noise, B (layers, out, rank) zero."""

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
    """Head S: one map of max(d_in, d_out) numbers, one rank row of A or B at a time, told apart by embeddings."""

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
    linear = nn.Linear(inputs, outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _linear_silu(size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, size), nn.SiLU())


def _group_by_type(targets: Sequence[TargetModule]) -> list[list[TargetModule]]:
    """Targets of one type and size together: GPT-2's fused c_attn, Gemma's global layers, each its own group."""
    groups: dict[tuple[str, int, int], list[TargetModule]] = {}
    for t in targets:
        groups.setdefault((t.type, t.in_features, t.out_features), []).append(t)
    return list(groups.values())


@dataclass(frozen=True, eq=False)
class HypernetworkCheckpoint:
    """A hypernetwork with what must be known to use it.

    Attributes:
        network: the network, in evaluation mode.
        base_model: hub id or path of the only model that its adapters fit.
        task_encoder: name of the encoder whose embeddings it reads.
        trained: False for a network that was only initialised.
        provenance: data, recipe, tokens seen, scores; free JSON.
    """

    network: Hypernetwork
    base_model: str
    task_encoder: str
    trained: bool
    provenance: Mapping[str, Any]


def save_hypernetwork(
    checkpoint: HypernetworkCheckpoint, folder: Path, dtype: torch.dtype | None = None
) -> None:
    """Write weights (safetensors, in `dtype` if given) and description (JSON); whole or not at all.

    Raises:
        ShoalError: the disk is full or the directory cannot be written.
    """
    state = {
        n: p.detach().to(dtype or p.dtype).contiguous() for n, p in checkpoint.network.state_dict().items()
    }
    description = {
        "format": FORMAT,
        "base_model": checkpoint.base_model,
        "task_encoder": checkpoint.task_encoder,
        "trained": checkpoint.trained,
        "architecture": asdict(checkpoint.network.architecture),
        "targets": [asdict(t) for t in checkpoint.network.targets],
        "provenance": dict(checkpoint.provenance),
    }

    def write(temporary: Path) -> None:
        save_file(state, temporary / WEIGHTS_FILE)
        (temporary / CONFIG_FILE).write_text(json.dumps(description, indent=1))

    write_directory(folder, write)


def load_hypernetwork(
    folder: Path, *, base_model: str | None = None, targets: Sequence[TargetModule] | None = None
) -> HypernetworkCheckpoint:
    """Read a checkpoint, strictly: every tensor present, none left over, of the recorded shapes, for this base model.

    Args:
        folder: the checkpoint's directory.
        base_model: name that the checkpoint must be for, if given.
        targets: targets that the checkpoint must adapt, if given: names and shapes.

    Raises:
        ShoalError: a file is missing, truncated, of another format, or not finite.
        UsageError: it is for another base model, or for modules of other shapes.
    """
    description = read_json(folder / CONFIG_FILE)
    try:
        if description["format"] != FORMAT:
            raise ShoalError(
                f"{folder} is of format {description['format']}, this version reads {FORMAT}; convert it"
            )
        network = Hypernetwork(
            [TargetModule(**t) for t in description["targets"]], Architecture(**description["architecture"])
        )
        checkpoint = HypernetworkCheckpoint(
            network.eval(),
            description["base_model"],
            description["task_encoder"],
            description["trained"],
            description["provenance"],
        )
    except (KeyError, TypeError) as error:
        raise ShoalError(
            f"{folder / CONFIG_FILE} is not a hypernetwork's description ({error}); train it again"
        ) from None
    if base_model is not None and checkpoint.base_model != base_model:
        raise UsageError(
            f"{folder} is for {checkpoint.base_model}, not for {base_model}; choose its own base model"
        )
    if targets is not None and set(network.targets) - set(targets):
        odd = sorted(t.name for t in set(network.targets) - set(targets))[0]
        raise UsageError(
            f"{folder} adapts {odd}, which {checkpoint.base_model} lacks or has in another shape"
        )
    state = read_tensors(folder / WEIGHTS_FILE)
    try:
        network.load_state_dict({n: t.float() for n, t in state.items()}, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ShoalError(
            f"{folder / WEIGHTS_FILE} is not this network's ({reason}); copy or train it again"
        ) from None
    if not all(torch.isfinite(p).all() for p in network.parameters()):
        raise ShoalError(f"{folder / WEIGHTS_FILE} holds numbers that are not finite; copy or train it again")
    return checkpoint
