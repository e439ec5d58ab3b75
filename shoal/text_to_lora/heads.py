"""Output heads of the hypernetwork: hidden vectors of a task, a layer and a module type in; LoRA factors out.

Knows the sizes of one module type, nothing of descriptions, layers' names or training. At initialisation
every head emits zeros, so a fresh hypernetwork changes nothing.

Source: Charakorn et al., "Text-to-LoRA: Instant Transformer Adaption", arXiv 2506.06105, section 3 (heads L,
M and S). Modulation is after Abdalla et al., "Zhyper", arXiv 2510.19733, with signals for A too, since heads
emit zeros at first. The perceiver asks token states as Jaegle et al., "Perceiver", arXiv 2103.03206, section
3, with a latent for each rank row. The reader asks the backbone's own states, as Doc-to-LoRA (arXiv
2602.15902) does of a document, and copies from them by pointing, as Vinyals et al., "Pointer Networks", arXiv
1506.03134, section 2. These two and the mixture head are Shoal's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from shoal.adapters.lora import LoraFactors
from shoal.errors import UsageError
from shoal.models.modules import TargetModule

ATTENTION_HEADS = 4

# Of a description: its sentence vector; that and its tokens' states, both the task encoder's; or the states
# of its tokens in every layer of the backbone.
Reading = Literal["sentence", "tokens", "states"]


@dataclass(frozen=True)
class Tokens:
    """The tokens of a description.

    Attributes:
        states: (tasks, length, hidden), or other ones for every layer: (tasks, layers, length, hidden).
        real: False at padding; the first is always real, and stands for no token.
        inputs: what the adapted modules' layers are given for each token but the first, as unit vectors; None
            where nothing is copied.
        outputs: what the adapted modules make of them, as unit vectors; likewise.
    """

    states: Float[Tensor, "tasks ... length hidden"]
    real: Bool[Tensor, "tasks length"]
    inputs: Float[Tensor, "tasks layers tokens width"] | None = None
    outputs: Float[Tensor, "tasks layers tokens out"] | None = None


@dataclass(frozen=True)
class Architecture:
    """Sizes of a hypernetwork.

    Attributes:
        task_dim: width of the task embedding, or of the backbone's states where those are read.
        rank: LoRA rank.
        alpha: LoRA alpha.
        head: a name of `HEADS`.
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

    @property
    def reads(self) -> Reading:
        """The part of a description that is read: see `Reading`."""
        return HEADS[self.head].reads

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise UsageError(f"unknown head {self.head!r}; choose from {', '.join(HEADS)}")
        for name in ("task_dim", "rank", "latent_size", "hidden_size", "num_bases"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"{name} {getattr(self, name)} of a hypernetwork must be at least 1; raise it"
                )
        if self.latent_size % 4 or (self.reads != "sentence" and self.hidden_size % ATTENTION_HEADS):
            raise UsageError(
                f"latent_size {self.latent_size} must be a multiple of 4, and with the head {self.head} "
                f"hidden_size {self.hidden_size} too; choose such sizes"
            )
        if not 0 < self.alpha < math.inf or not 0 <= self.dropout < 1:
            raise UsageError(
                f"alpha {self.alpha} must be finite and above 0, dropout {self.dropout} in [0, 1); change it"
            )


class _Head(nn.Module):
    """The base of all heads.

    Attributes:
        reads: the part of a description that the hypernetwork reads for it.
    """

    reads: ClassVar[Reading] = "sentence"


class _LargeHead(_Head):
    """Head L: one linear map emits all r (d_in + d_out) numbers of a module."""

    def __init__(self, group: Sequence[TargetModule], architecture: Architecture) -> None:
        super().__init__()
        self.rank = architecture.rank
        self.sizes = (group[0].in_features, group[0].out_features)
        self.output = _zero_linear(architecture.hidden_size, self.rank * sum(self.sizes))

    def forward(
        self, hidden: Float[Tensor, "tasks layers hidden"], tokens: Tokens | None = None
    ) -> LoraFactors:
        a, b = self.output(hidden).split([self.rank * size for size in self.sizes], dim=-1)
        return LoraFactors(a.unflatten(-1, (self.rank, -1)), b.unflatten(-1, (-1, self.rank)))


class _MediumHead(_Head):
    """Head M: one map of r max(d_in, d_out) numbers, used twice; a learned embedding separates A from B."""

    def __init__(self, group: Sequence[TargetModule], architecture: Architecture) -> None:
        super().__init__()
        self.rank = architecture.rank
        self.sizes = (group[0].in_features, group[0].out_features)
        self.factor_embedding = nn.Embedding(2, architecture.hidden_size)
        self.mix = nn.Sequential(
            nn.LayerNorm(architecture.hidden_size), _linear_silu(architecture.hidden_size)
        )
        self.output = _zero_linear(architecture.hidden_size, self.rank * max(self.sizes))

    def forward(
        self, hidden: Float[Tensor, "tasks layers hidden"], tokens: Tokens | None = None
    ) -> LoraFactors:
        rows = [
            self.output(self.mix(hidden + e)).unflatten(-1, (self.rank, -1))
            for e in self.factor_embedding.weight
        ]
        a, b = (row[..., :size] for row, size in zip(rows, self.sizes, strict=True))
        return LoraFactors(a, b.transpose(-1, -2))


class _SmallHead(_Head):
    """Head S: one map of max(d_in, d_out) numbers emits one rank row of A or B; embeddings separate them."""

    def __init__(self, group: Sequence[TargetModule], architecture: Architecture) -> None:
        super().__init__()
        self.sizes = (group[0].in_features, group[0].out_features)
        self.factor_embedding = nn.Embedding(2, architecture.hidden_size)
        self.rank_embedding = nn.Embedding(architecture.rank, architecture.hidden_size)
        self.mix = nn.Sequential(
            nn.LayerNorm(architecture.hidden_size), _linear_silu(architecture.hidden_size)
        )
        self.output = _zero_linear(architecture.hidden_size, max(self.sizes))

    def forward(
        self, hidden: Float[Tensor, "tasks layers hidden"], tokens: Tokens | None = None
    ) -> LoraFactors:
        by_rank = hidden[..., None, :] + self.rank_embedding.weight
        a, b = (
            self.output(self.mix(by_rank + e))[..., :size]
            for e, size in zip(self.factor_embedding.weight, self.sizes, strict=True)
        )
        return LoraFactors(a, b.transpose(-1, -2))


class _MixtureHead(_Head):
    """A mixture of K learned factor pairs per layer, with one set of coefficients for A and one for B.

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

    def forward(
        self, hidden: Float[Tensor, "tasks layers hidden"], tokens: Tokens | None = None
    ) -> LoraFactors:
        for_a, for_b = self.coefficients(hidden).chunk(2, dim=-1)
        a = torch.einsum("tlk,lkri->tlri", for_a, self.a)
        return LoraFactors(a, torch.einsum("tlk,lkor->tlor", for_b, self.b))


class _ModulationHead(_Head):
    """One learned factor pair per layer, scaled by one number per row of A and one per column of B.

    The numbers are linear in the trunk's output and start at zero, the factors as noise of A's scale.
    """

    def __init__(self, group: Sequence[TargetModule], architecture: Architecture) -> None:
        super().__init__()
        rank, bound = architecture.rank, 1 / math.sqrt(group[0].in_features)
        self.a = nn.Parameter(torch.empty(len(group), rank, group[0].in_features).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.empty(len(group), group[0].out_features, rank).uniform_(-bound, bound))
        self.signals = _zero_linear(architecture.hidden_size, 2 * rank)

    def forward(
        self, hidden: Float[Tensor, "tasks layers hidden"], tokens: Tokens | None = None
    ) -> LoraFactors:
        for_a, for_b = self.signals(hidden).chunk(2, dim=-1)
        return LoraFactors(for_a[..., :, None] * self.a, for_b[..., None, :] * self.b)


class _PerceiverHead(_Head):
    """Every rank row asks the description's tokens what it should hold, by cross-attention.

    With q = hidden + rank embedding, x = q + Attention(q, tokens, tokens) and y = x + MLP(x), a row of A and
    the matching column of B are linear in y. Label names and formats, which a sentence vector blurs, can so
    reach single rows.
    """

    reads: ClassVar[Reading] = "tokens"

    def __init__(self, group: Sequence[TargetModule], architecture: Architecture) -> None:
        super().__init__()
        size = architecture.hidden_size
        self.rank_embedding = nn.Embedding(architecture.rank, size)
        self.query_norm = nn.LayerNorm(size)
        self.mix_norm = nn.LayerNorm(size)
        self.output_norm = nn.LayerNorm(size)
        self.query = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.attended = nn.Linear(size, size)
        self.key = nn.Linear(size, size, bias=False)  # attention is blind to a shift of all keys
        self.mix = nn.Sequential(
            nn.Linear(size, 2 * size), nn.SiLU(), nn.Dropout(architecture.dropout), nn.Linear(2 * size, size)
        )
        self.a = _zero_linear(size, group[0].in_features)
        self.b = _zero_linear(size, group[0].out_features)

    def forward(
        self, hidden: Float[Tensor, "tasks layers hidden"], tokens: Tokens | None = None
    ) -> LoraFactors:
        assert tokens is not None
        rows = self._rows(hidden, tokens)
        return LoraFactors(self.a(rows), self.b(rows).transpose(-1, -2))

    def _rows(
        self, hidden: Float[Tensor, "tasks layers hidden"], tokens: Tokens
    ) -> Float[Tensor, "tasks layers rank hidden"]:
        """y, scaled: of unit variance, a step of Adam would move its products by sqrt(size) too much."""
        rows = self.query_norm(hidden[..., None, :] + self.rank_embedding.weight)
        rows = self._asked(rows, tokens)
        rows = self.output_norm(rows + self.mix(self.mix_norm(rows)))
        return rows * rows.shape[-1] ** -0.5

    def _asked(self, rows: Float[Tensor, "tasks layers rank hidden"], tokens: Tokens) -> Tensor:
        """Rows with what they found; where tokens differ by layer, each layer's rows see their own."""
        layers = rows.shape[1]
        shared = tokens.states.dim() == 3
        # (tasks, layers * rank, hidden), or each layer of each task by itself: (tasks * layers, rank, hidden)
        asking = rows.flatten(1, 2) if shared else rows.flatten(0, 1)
        states = tokens.states if shared else tokens.states.flatten(0, 1)
        query, key, value = (
            projection(given).unflatten(-1, (ATTENTION_HEADS, -1)).transpose(1, 2)
            for projection, given in ((self.query, asking), (self.key, states), (self.value, states))
        )
        real = tokens.real if shared else tokens.real.repeat_interleave(layers, 0)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=real[:, None, None, :])
        return rows + self.attended(found.transpose(1, 2).flatten(2)).view(rows.shape)


class _ReaderHead(_PerceiverHead):
    """A perceiver whose rank rows also point at tokens and copy what the backbone makes of them.

    A row of A gets, times a gate, what its layer is given for the tokens that one pointer chooses, and the
    matching column of B what the adapted module makes of those that another one chooses: a request that
    resembles the first is answered as if the second stood in it. Gates are linear in the row and start at
    zero; a pointer may rest on no token, which copies nothing.
    """

    reads: ClassVar[Reading] = "states"

    def __init__(self, group: Sequence[TargetModule], architecture: Architecture) -> None:
        super().__init__(group, architecture)
        size = architecture.hidden_size
        self.copies_inputs = group[0].in_features == architecture.task_dim
        self.pointers = nn.Linear(size, 2 * size)
        self.pointed = nn.Linear(size, size, bias=False)
        self.gates = _zero_linear(size, 2)

    def forward(
        self, hidden: Float[Tensor, "tasks layers hidden"], tokens: Tokens | None = None
    ) -> LoraFactors:
        assert tokens is not None and tokens.inputs is not None and tokens.outputs is not None
        rows = self._rows(hidden, tokens)
        a, b = self.a(rows), self.b(rows)
        chosen = self._pointed(rows, tokens)
        for_a, for_b = self.gates(rows).split(1, dim=-1)
        if self.copies_inputs:
            a = a + for_a * (chosen[:, :, 0] @ tokens.inputs.to(chosen.dtype))
        b = b + for_b * (chosen[:, :, 1] @ tokens.outputs.to(chosen.dtype))
        return LoraFactors(a, b.transpose(-1, -2))

    def _pointed(self, rows: Tensor, tokens: Tokens) -> Float[Tensor, "tasks layers 2 rank tokens"]:
        """Shares of every token in what the rows of A, and in what the columns of B, copy."""
        size = rows.shape[-1]
        asking = self.pointers(rows * size**0.5).unflatten(-1, (2, size)).transpose(2, 3)
        keys = self.pointed(tokens.states)[:, :, None].transpose(-1, -2)
        scores = (asking @ keys).float() * size**-0.5
        scores = scores.masked_fill(~tokens.real[:, None, None, None, :], -math.inf)
        return scores.softmax(dim=-1)[..., 1:].to(rows.dtype)


HEADS: dict[str, type[_Head]] = {
    "L": _LargeHead,
    "M": _MediumHead,
    "S": _SmallHead,
    "mixture": _MixtureHead,
    "modulation": _ModulationHead,
    "perceiver": _PerceiverHead,
    "reader": _ReaderHead,
}


def _zero_linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, device="meta")  # spares the noise that zeros would overwrite
    linear.weight = nn.Parameter(torch.zeros(outputs, inputs))
    linear.bias = nn.Parameter(torch.zeros(outputs))
    return linear


def _linear_silu(size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, size), nn.SiLU())
