"""Expert vectors, which scale the singular values of weights: `W' = U diag(s * z) V^T`.

One vector z for every adapted weight is a whole expert; z = 1 is the weight itself. Everything here is a
value: how an expert changes a model is `shoal.adapters.svf_hooks`. Knows tensors only.

Source: Sun, Cetin, Tang, "Transformer-Squared: Self-adaptive LLMs", arXiv 2501.06252, section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.adapters.base import fingerprint_of, nbytes_of
from shoal.adapters.decomposition import Decompositions
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.errors import UsageError


@dataclass(frozen=True, eq=False)
class ExpertVector:
    """One expert, or a batch of them: for every adapted weight the factors of its singular values.

    A value: sums, differences and multiples act on z number by number and give new experts, and equality
    compares all numbers. Weights are linear in z: `0.5 * a + 0.5 * b` is the expert halfway between a and b.

    Attributes:
        z: module name -> z (k), or (batch, k) where every sample has its own.
    """

    z: Mapping[str, Float[Tensor, "... k"]]

    def __post_init__(self) -> None:
        if not self.z:
            raise UsageError("an expert of 0 weights adapts nothing; give at least 1")

    @classmethod
    def identity(cls, basis: Decompositions) -> ExpertVector:
        """The expert that changes nothing: z = 1."""
        return cls({name: torch.ones_like(d.s) for name, d in basis.items()})

    @classmethod
    def stack(cls, experts: Sequence[ExpertVector]) -> ExpertVector:
        """Several experts of the same weights as one batch; errors as arithmetic."""
        for other in experts[1:]:
            experts[0]._check_alike(other)
        return cls({name: torch.stack([e.z[name] for e in experts]) for name in experts[0].z})

    @property
    def batch(self) -> int | None:
        """Number of experts; None for a single one."""
        first = next(iter(self.z.values()))
        return first.shape[0] if first.dim() == 2 else None

    @property
    def rank(self) -> int:
        """0: an expert scales shared components, and takes no factors of its own."""
        return 0

    @property
    def nbytes(self) -> int:
        """Bytes of every z."""
        return nbytes_of(self.z)

    def fingerprint(self) -> str:
        """SHA-256 of every z, in hex."""
        return fingerprint_of(self.z, "ExpertVector")

    def row(self, index: int) -> ExpertVector:
        """One expert of a batch."""
        return replace(self, z={name: z[index] for name, z in self.z.items()})

    def strengthened(self, strength: float) -> ExpertVector:
        """`1 + strength * (z - 1)`: 0 is the base model, 1 the expert itself, exactly in both cases."""
        if strength == 1:
            return self
        return self._map(lambda z: 1 + strength * (z - 1))

    def to(self, *args: Any) -> ExpertVector:
        """Every z through `Tensor.to`."""
        return self._map(lambda z: z.to(*args))

    def on(self, basis: Decompositions) -> ExpertVector:
        """Every z on the device of its singular values."""
        return ExpertVector({n: z.to(basis[n].s.device) if n in basis else z for n, z in self.z.items()})

    def __add__(self, other: ExpertVector) -> ExpertVector:
        """Sum of the z, of the same weights."""
        return self._join(other, torch.add)

    def __sub__(self, other: ExpertVector) -> ExpertVector:
        """Difference of the z, of the same weights."""
        return self._join(other, torch.sub)

    def __mul__(self, factor: float) -> ExpertVector:
        """`factor` times z."""
        return self._map(lambda z: z * factor)

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        """True where both have the same weights and the same numbers."""
        if not isinstance(other, ExpertVector):
            return NotImplemented
        return self.z.keys() == other.z.keys() and all(torch.equal(z, other.z[n]) for n, z in self.z.items())

    __hash__ = None  # type: ignore[assignment]

    def _map(self, change: Callable[[Tensor], Tensor]) -> ExpertVector:
        return ExpertVector({name: change(z) for name, z in self.z.items()})

    def _join(self, other: ExpertVector, operation: Callable[[Tensor, Tensor], Tensor]) -> ExpertVector:
        self._check_alike(other)
        return ExpertVector({name: operation(z, other.z[name]) for name, z in self.z.items()})

    def _check_alike(self, other: ExpertVector) -> None:
        if self.z.keys() != other.z.keys():
            odd = sorted(self.z.keys() ^ other.z.keys())[0]
            raise UsageError(f"only one of the experts has a z of {odd}; use experts of the same weights")
        for name, z in self.z.items():
            if z.shape[-1] != other.z[name].shape[-1]:
                raise UsageError(
                    f"the experts' z of {name} have {z.shape[-1]} and {other.z[name].shape[-1]} numbers; use "
                    "experts of one expert_vector_dim"
                )


def mix(
    experts: Sequence[ExpertVector], coefficients: Float[Tensor, "*batch experts"] | Mapping[str, Tensor]
) -> ExpertVector:
    """The mixture `sum_k a_k z_k` (section 3.2), so a one-hot mixture is the expert itself.

    Args:
        experts: single experts of the same weights.
        coefficients: of every expert, which sum to 1; a leading axis makes a batch of mixtures. A mapping
            gives every module its own.

    Raises:
        UsageError: no experts, experts of different weights, another number of coefficients, or coefficients
            that do not sum to 1 (within 1e-3), such as zeros.
    """
    if not experts:
        raise UsageError("a mixture needs at least 1 expert, got 0")
    stacked = ExpertVector.stack(experts)
    z = {}
    for name, rows in stacked.z.items():
        own = coefficients[name] if isinstance(coefficients, Mapping) else coefficients
        if own.shape[-1:] != (len(experts),):
            raise UsageError(
                f"{tuple(own.shape)} coefficients do not fit {len(experts)} experts; give one each"
            )
        total = own.sum(-1)
        if not bool(((total - 1).abs() < 1e-3).all()):
            raise UsageError(
                f"the coefficients of a mixture sum to {total.flatten().tolist()[:4]}, not to 1; divide by "
                "their sum"
            )
        z[name] = own.to(rows) @ rows
    return ExpertVector(z)


def check_fits(basis: Decompositions, expert: ExpertVector) -> None:
    """See that an expert has one number for every singular value of the weights that it names.

    Raises:
        UsageError: a weight is not decomposed, or its z has another length.
    """
    for name, z in expert.z.items():
        if name not in basis:
            raise UsageError(f"the expert adapts {name}, which is not decomposed; use its own base model")
        if z.shape[-1] != basis[name].s.numel():
            raise UsageError(
                f"the expert's z of {name} has {z.shape[-1]} numbers, but {basis[name].s.numel()} singular "
                "values are kept; decompose with its expert_vector_dim"
            )


def check_single(basis: Decompositions, expert: ExpertVector) -> None:
    """See that this is one expert, and that it fits.

    Raises:
        UsageError: it is a batch of experts, or as `check_fits`.
    """
    check_fits(basis, expert)
    if expert.batch is not None:
        raise UsageError(f"a batch of {expert.batch} experts is not one expert; choose a row of it")


@dataclass(frozen=True, eq=False)
class LowRankExpert:
    """An expert as a LoRA, with what was lost.

    Attributes:
        lora: of scaling 1.
        predicted_error: Frobenius norm of what was dropped, from the singular values.
        measured_error: the same from the weights' differences.
        norm: Frobenius norm of the whole difference.
    """

    lora: LoRA
    predicted_error: float
    measured_error: float
    norm: float


def expert_as_lora(basis: Decompositions, expert: ExpertVector, rank: int) -> LowRankExpert:
    """The best LoRA of a rank: `U diag(s (z - 1)) V^T` is a decomposition, so its largest parts are kept.

    Errors are over all weights together. The closed form is Eckart and Young's (1936).

    Raises:
        UsageError: a batch of experts, one that does not fit, or a rank below 1 or above a z's length.
    """
    check_single(basis, expert)
    smallest = min(z.numel() for z in expert.z.values())
    if not 1 <= rank <= smallest:
        raise UsageError(f"rank {rank} is outside 1 to {smallest}, the shortest z; choose another")
    factors, dropped, missed, whole = {}, 0.0, 0.0, 0.0
    for name, z in expert.z.items():
        s = basis[name].s
        u, vt = basis[name].u.to(s), basis[name].vt.to(s)
        change = s * (z.to(s) - 1)
        kept = change.abs().topk(rank).indices
        root = change[kept].abs().sqrt()
        a, b = root[:, None] * vt[kept], u[:, kept] * (root * change[kept].sign())
        factors[name] = LoraFactors(a.contiguous(), b.contiguous())
        delta = (u * change) @ vt
        whole += float(change.square().sum())
        dropped += float(change.square().sum() - change[kept].square().sum())
        missed += float((delta - b @ a).square().sum())
    roots = (math.sqrt(max(0.0, total)) for total in (dropped, missed, whole))
    return LowRankExpert(LoRA(factors, float(rank)), *roots)
