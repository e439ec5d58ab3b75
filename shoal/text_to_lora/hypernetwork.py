"""The hypernetwork: task embedding, layer and module type in; LoRA factors out.

Knows tensors and targets, nothing of files, descriptions, models or training. A trunk reads the sentence
vector of a task embedding beside learned layer and module-type embeddings; one head a module type
(`shoal.text_to_lora.heads`) turns its output, and the token states if it reads them, into factors. With an
offset, the network learns one shared adapter and emits differences from it that start at zero, so that
training starts at the multi-task LoRA.

Source: Charakorn et al., "Text-to-LoRA: Instant Transformer Adaption", arXiv 2506.06105, section 3; the
offset is Shoal's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from shoal.adapters.lora import BatchedLoRA, LoRA, LoraFactors
from shoal.config import MOST_SHOTS
from shoal.errors import UsageError
from shoal.models.modules import TargetModule, check_rank, group_by_type
from shoal.text_to_lora.heads import HEADS, Architecture, Tokens


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
        self.targets = tuple(targets)
        self.architecture = architecture
        self._groups = group_by_type(targets)
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
        if architecture.reads != "sentence":
            self.token_encoder = nn.Sequential(nn.Linear(architecture.task_dim, hidden), nn.LayerNorm(hidden))
            self.null_token = nn.Parameter(torch.zeros(hidden))
        if architecture.reads == "states":
            self.state_layer = nn.Embedding(depth, hidden)
        self.heads = nn.ModuleList(HEADS[architecture.head](group, architecture) for group in self._groups)
        self.offsets: Any = nn.ModuleList(_Offset(group, architecture.rank) for group in self._groups)
        if not architecture.offset:
            # The published start: A is one Kaiming-uniform matrix for all layers and tasks, B is zero.
            self.offsets.requires_grad_(False)

    def forward(self, task_embeddings: Float[Tensor, "tasks *rows task_dim"]) -> BatchedLoRA:
        """One adapter per task embedding, on the network's device.

        Args:
            task_embeddings: sentence vectors, (tasks, task_dim); or each followed by the states of its
                description's tokens, (tasks, 1 + length, task_dim); or what the backbone makes of those in
                every layer, (tasks, layers, length, `input_width`), as `StateReader` reads it. Zeros stand
                for no description, and padding.
        """
        factors: dict[str, LoraFactors] = {}
        tasks = task_embeddings.shape[0]
        if not torch.is_autocast_enabled(task_embeddings.device.type):
            task_embeddings = task_embeddings.to(self.offsets[0].a.dtype)
        states, *outputs = self._parts(task_embeddings)
        tokens, task = self._tokens(states), self.task_encoder(self._sentences(states))
        copied = [F.normalize(part, dim=-1) for part in (states, *outputs)] if outputs else []
        for index, group in enumerate(self._groups):
            layers = [t.layer for t in group]
            places = torch.tensor(layers, device=task.device)
            layer = self.layer_embedding(places)[None].expand(tasks, -1, -1)
            kind = self.type_embedding(torch.full_like(places, index))[None].expand(tasks, -1, -1)
            own = _of_layers(task, layers) if task.shape[1] > 1 else task.expand(-1, len(group), -1)
            hidden = self.trunk(torch.cat([own, layer, kind], dim=-1))
            seen = tokens
            if tokens is not None and copied:
                every = (tokens.states, copied[0], copied[1 + index])
                heard, inputs, made = (_of_layers(part, layers) for part in every)
                seen = Tokens(heard, tokens.real, inputs, made)
            delta, offset = self.heads[index](hidden, seen), self.offsets[index]
            # In the head's dtype: under autocast the sum is rounded once more anyway where it is attached.
            a, b = offset.a.to(delta.a.dtype) + delta.a, offset.b.to(delta.b.dtype) + delta.b
            for position, target in enumerate(group):
                factors[target.name] = LoraFactors(a[:, position], b[:, position])
        return BatchedLoRA({t.name: factors[t.name] for t in self.targets}, self.architecture.alpha)

    def _sentences(self, embeddings: Tensor) -> Float[Tensor, "tasks layers task_dim"]:
        """The trunk's input: one vector per task, or where states are read, their mean in every layer."""
        if embeddings.dim() == 4:
            return embeddings.sum(2) / _real(embeddings[:, 0]).sum(-1).clamp(min=1)[:, None, None]
        return embeddings[:, None] if embeddings.dim() == 2 else embeddings[:, :1]

    def _tokens(self, embeddings: Tensor) -> Tokens | None:
        """The encoded token states, after one learned token on which attention may rest."""
        if self.architecture.reads == "sentence":
            return None
        if embeddings.dim() == 4:
            depth = torch.arange(embeddings.shape[1], device=embeddings.device)
            encoded = self.token_encoder(embeddings) + self.state_layer(depth)[:, None]
            real = _real(embeddings[:, 0])
        else:
            states = embeddings[:, 1:] if embeddings.dim() == 3 else embeddings[:, None, :][:, :0]
            encoded, real = self.token_encoder(states), _real(states)
        rest = self.null_token.expand(*encoded.shape[:-2], 1, -1)
        real = F.pad(real, (1, 0), value=True)
        return Tokens(torch.cat([rest.to(encoded.dtype), encoded], dim=-2), real)

    def _parts(self, embeddings: Tensor) -> tuple[Tensor, ...]:
        """The input in parts: what is read first; of states, then the outputs of each group's modules."""
        return embeddings.split(self._widths, dim=-1)

    @property
    def _widths(self) -> list[int]:
        outputs = self._groups if self.architecture.reads == "states" else ()
        return [self.architecture.task_dim, *(group[0].out_features for group in outputs)]

    @property
    def input_width(self) -> int:
        """Numbers in a row of its input."""
        return sum(self._widths)

    def null_input(self) -> Tensor:
        """The input that stands for no description."""
        rows = (1 + max(t.layer for t in self.targets), 1) if self.architecture.reads == "states" else ()
        return torch.zeros(1, *rows, self.input_width, device=next(self.parameters()).device)

    def offset_lora(self) -> LoRA:
        """The shared adapter that a zero difference leaves: the multi-task LoRA."""
        factors = {
            name: LoraFactors(a.detach().clone(), b.detach().clone())
            for name, (a, b) in self.shared_factors().items()
        }
        return LoRA(factors, self.architecture.alpha)

    def shared_factors(self) -> dict[str, LoraFactors]:
        """The parameters of the shared adapter by module."""
        factors = {}
        for group, offset in zip(self._groups, self.offsets, strict=True):
            for position, target in enumerate(group):
                factors[target.name] = LoraFactors(offset.a[position], offset.b[position])
        return {t.name: factors[t.name] for t in self.targets}

    def check_fits(self, lora: LoRA) -> None:
        """Raises UsageError where a LoRA's targets, rank or alpha are not those of this network."""
        sizes = {t.name: (t.in_features, t.out_features) for t in self.targets}
        rank, alpha = self.architecture.rank, self.architecture.alpha
        given = {name: (f.a.shape[-1], f.b.shape[-2]) for name, f in lora.factors.items()}
        if sizes != given or (lora.rank, lora.alpha) != (rank, alpha):
            raise UsageError(
                f"the LoRA (rank {lora.rank}, alpha {lora.alpha:g}, {len(given)} modules) does not fit the "
                f"hypernetwork (rank {rank}, alpha {alpha:g}, {len(sizes)} modules); train it with the same "
                "base model, targets, rank and alpha"
            )

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
        self.check_fits(lora)
        for group, offset in zip(self._groups, self.offsets, strict=True):
            for position, target in enumerate(group):
                offset.a[position].copy_(lora.factors[target.name].a)
                offset.b[position].copy_(lora.factors[target.name].b)


def check_shots(head: str, shots: int) -> None:
    """See that a hypernetwork of this head can read so many solved examples behind a description.

    Raises:
        UsageError: the number is outside 0..`MOST_SHOTS`, or the head does not read the base model's states.
    """
    if not 0 <= shots <= MOST_SHOTS:
        raise UsageError(f"shots {shots} is outside 0..{MOST_SHOTS}; train the hypernetwork to read so many")
    if shots and HEADS[head].reads != "states":
        raise UsageError(
            f"head {head} reads no solved examples, shots {shots} needs head reader; take that, or 0 shots"
        )


def stack_embeddings(embeddings: Sequence[Tensor]) -> Float[Tensor, "tasks *rows task_dim"]:
    """Embeddings of several descriptions as one input; short ones are padded with zeros.

    The backbone's states keep their dtype, all else is float32.
    """
    first = embeddings[0]
    if first.dim() < 3:
        return nn.utils.rnn.pad_sequence([e.float() for e in embeddings], batch_first=True)
    lengths = [e.shape[1] for e in embeddings]  # (layers, tokens, width)
    stacked = first.new_zeros(len(embeddings), first.shape[0], max(lengths), first.shape[2])
    for row, own, length in zip(stacked, embeddings, lengths, strict=True):
        row[:, :length] = own
    return stacked


def _real(tokens: Tensor) -> Bool[Tensor, "tasks tokens"]:
    """True at tokens that are there: padding is zero."""
    return (tokens != 0).any(-1)


def _of_layers(rows: Tensor, layers: Sequence[int]) -> Tensor:
    """The rows (tasks, layer, ...) of some layers; a view where one follows the other."""
    first, last = layers[0], layers[-1] + 1
    follow = list(layers) == list(range(first, last))
    return rows[:, first:last] if follow else rows[:, list(layers)]


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
