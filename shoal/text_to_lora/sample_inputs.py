"""Inputs that the package ships, by the kind of text, for users who have a description and no inputs.

They were written for Shoal and are of no dataset. Within a kind they are meant to be balanced along the ways
in which such texts are classified, so that they can tell what an adapter answers whatever the text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from torch.nn import functional as F

from shoal.text_to_lora.encoders.sentence import TaskEncoder

FILE = "sample_inputs.json"


@dataclass(frozen=True)
class InputKind:
    """Inputs of one kind.

    Attributes:
        kind: its name.
        description: a sentence that says what kind of text they are.
        inputs: without answers.
    """

    kind: str
    description: str
    inputs: tuple[str, ...]


@cache
def input_kinds() -> tuple[InputKind, ...]:
    """All kinds that there are."""
    rows = json.loads((resources.files(__package__) / FILE).read_text("utf-8"))
    return tuple(InputKind(row["kind"], row["description"], tuple(row["inputs"])) for row in rows)


def nearest_kind(
    encoder: TaskEncoder, description: str, kinds: Sequence[InputKind] | None = None
) -> InputKind:
    """The kind whose description is nearest to that of a task, by the cosine of their sentence vectors."""
    kinds = kinds or input_kinds()
    task, *vectors = F.normalize(encoder.encode([description, *(k.description for k in kinds)]), dim=-1)
    return max(zip(kinds, vectors, strict=True), key=lambda pair: float(pair[1] @ task))[0]
