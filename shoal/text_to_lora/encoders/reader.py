"""Readers of descriptions for a hypernetwork, chosen once by what its architecture reads.

Knows encoders and the architecture's name for what it reads; nothing of adapters, files or training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from shoal.errors import ShoalError, UsageError
from shoal.models.backbone import Backbone
from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.text_to_lora.encoders.states import StateReader
from shoal.text_to_lora.hypernetwork import Hypernetwork, check_shots


class DescriptionReader(Protocol):
    """Reads descriptions for one hypernetwork; any number of threads may use it one at a time.

    Attributes:
        small: that what is read of a text is small enough to be kept for all the texts of a training.
    """

    small: bool

    def read(self, texts: Sequence[str]) -> list[Tensor]:
        """One input per text, for `stack_embeddings` to put together."""


class SentenceReader:
    """Each text as its sentence vector, (dim,)."""

    small = True

    def __init__(self, encoder: TaskEncoder) -> None:
        """Read by this encoder."""
        self._encoder = encoder

    def read(self, texts: Sequence[str]) -> list[Tensor]:
        """See `DescriptionReader`."""
        return list(self._encoder.encode(texts))


class TokenReader:
    """Each text as its sentence vector and the states of its tokens, (1 + tokens, dim)."""

    small = True

    def __init__(self, encoder: TaskEncoder) -> None:
        """Read by this encoder."""
        self._encoder = encoder

    def read(self, texts: Sequence[str]) -> list[Tensor]:
        """See `DescriptionReader`."""
        return self._encoder.read(texts)


def description_reader(
    network: Hypernetwork, encoder: TaskEncoder, backbone: Backbone | None = None, shots: int = 0
) -> DescriptionReader:
    """The reader of what a hypernetwork's architecture reads.

    Args:
        network: the hypernetwork.
        encoder: the task encoder that it was trained with, or is to be.
        backbone: the frozen model whose states are read where the architecture reads those. Nothing may be
            attached to it while descriptions are read.
        shots: solved examples behind a description, at most; see `shoal.text_to_lora.shots`.

    Raises:
        UsageError: the architecture reads the backbone's states and there is no backbone, or it reads none
            and there are to be shots.
        ShoalError: the encoder's vectors are not as wide as the hypernetwork reads.
    """
    architecture = network.architecture
    check_shots(architecture.head, shots)
    if architecture.reads == "states":
        if backbone is None:
            raise UsageError(
                f"head {architecture.head} reads the base model's states and got no model; give it"
            )
        return StateReader(backbone, network.targets, shots)
    if encoder.dim != architecture.task_dim:
        raise ShoalError(
            f"the task encoder {encoder.name} gives {encoder.dim} numbers, the hypernetwork reads "
            f"{architecture.task_dim}; train the hypernetwork again"
        )
    return SentenceReader(encoder) if architecture.reads == "sentence" else TokenReader(encoder)
