"""Singular value decompositions of a model's weights: the basis that experts scale.

Knows tensors, and the device and dtype of a model.

Source: Sun, Cetin, Tang, "Transformer-Squared: Self-adaptive LLMs", arXiv 2501.06252, section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shoal.errors import UsageError


class Decomposition(NamedTuple):
    """The k largest singular components of one weight, `W ~ U diag(s) V^T`, exact where k = min(out, in).

    The signs are canonical: the entry of largest magnitude in every column of U is positive.
    """

    u: Float[Tensor, "out_features k"]
    s: Float[Tensor, " k"]
    vt: Float[Tensor, "k in_features"]

    def truncated(self, components: int | None) -> Decomposition:
        """The `components` largest; None means all that are there.

        Raises:
            UsageError: fewer than 1.
        """
        if components is not None and components < 1:
            raise UsageError(f"expert_vector_dim {components} is below 1; give at least 1, or none for all")
        if components is None or components >= self.s.numel():
            return self
        # Copies: a view would keep what is dropped in memory.
        return Decomposition(
            self.u[:, :components].contiguous(), self.s[:components].clone(), self.vt[:components].clone()
        )

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Decomposition:
        """U and V^T on a device and in a dtype, such as those of the model; s stays float32."""
        return Decomposition(self.u.to(device, dtype), self.s.to(device), self.vt.to(device, dtype))


Decompositions = Mapping[str, Decomposition]


class ModelBasis(Mapping[str, Decomposition]):
    """Decompositions in a model's dtype and on its device, each converted when it is first needed."""

    def __init__(self, model: nn.Module, basis: Decompositions | None) -> None:
        """`basis` may be None where no experts are used."""
        weight = next(model.parameters())
        self._device = weight.device
        self._dtype = weight.dtype
        self._basis: Decompositions = basis or {}
        self._converted: dict[str, Decomposition] = {}

    def __getitem__(self, name: str) -> Decomposition:
        if name not in self._converted:
            self._converted[name] = self._basis[name].to(self._device, self._dtype)
        return self._converted[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._basis)

    def __len__(self) -> int:
        return len(self._basis)


def decompose(weight: Float[Tensor, "out_features in_features"]) -> Decomposition:
    """All singular components of a weight, in float32 on its device, largest first.

    Raises:
        UsageError: it is no matrix, on the meta device, or holds NaN or infinity.
    """
    if weight.dim() != 2 or weight.is_meta or not weight.is_floating_point():
        raise UsageError(
            f"cannot decompose a {weight.dtype} tensor of shape {tuple(weight.shape)} on {weight.device}; "
            "give a matrix of loaded floating point weights"
        )
    if not bool(weight.isfinite().all()):
        raise UsageError("cannot decompose a weight that holds NaN or infinity; load the model again")
    u, s, vt = torch.linalg.svd(weight.detach().float(), full_matrices=False)
    largest = u.gather(0, u.abs().argmax(0, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0)
    return Decomposition((u * sign).contiguous(), s, (vt * sign.T).contiguous())
