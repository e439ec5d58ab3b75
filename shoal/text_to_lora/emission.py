"""From descriptions to adapters by one trained hypernetwork; nonsense gets an adapter of its own.

Knows hypernetworks, readers and known tasks; nothing of files, skills or how requests are answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch

from shoal.adapters.lora import BatchedLoRA, LoRA, LoraFactors
from shoal.models.backbone import Backbone
from shoal.tasks.records import Example
from shoal.text_to_lora.checkpoint import HypernetworkCheckpoint
from shoal.text_to_lora.encoders.reader import DescriptionReader, description_reader
from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.text_to_lora.familiarity import Familiarity
from shoal.text_to_lora.hypernetwork import Hypernetwork, stack_embeddings
from shoal.text_to_lora.shots import ShotsRead, short_shots, with_shots


@dataclass(frozen=True, eq=False)
class Emission:
    """Adapters of some descriptions.

    Attributes:
        adapters: one per description, float32 on the hypernetwork's device.
        familiarities: how near each description is to the training tasks; None where those are not known.
        shots: what was read behind each description; none where the network reads no examples or got none.
    """

    adapters: BatchedLoRA
    familiarities: list[Familiarity] | None
    shots: list[ShotsRead]

    def rows(self) -> list[LoRA]:
        """The adapters one by one, on the CPU."""
        rows = [self.adapters.row(row).to("cpu") for row in range(len(self.adapters))]
        # Copies: one row that is kept would keep the whole batch in memory.
        return [lora.copy() for lora in rows] if len(rows) > 1 else rows

    def facts(self) -> list[dict[str, Any]]:
        """For each adapter, whatever is known of its description and of the examples read, as plain JSON."""
        facts: list[dict[str, Any]] = [{} for _ in range(len(self.adapters))]
        for own, familiarity in zip(facts, self.familiarities or (), strict=False):
            own.update(familiarity.facts())
        for own, shots in zip(facts, self.shots, strict=False):
            own["shots"] = asdict(shots)
        return facts


class Emitter:
    """A hypernetwork with what reads its descriptions.

    Attributes:
        checkpoint: the hypernetwork with what is known of it.
        encoder: the task encoder that it was trained with.
    """

    def __init__(
        self, checkpoint: HypernetworkCheckpoint, encoder: TaskEncoder, backbone: Backbone | None = None
    ) -> None:
        """Choose the reader; errors and `backbone` as `description_reader`.

        The hypernetwork moves to the device of the backbone that it reads.
        """
        self.checkpoint = checkpoint
        self.encoder = encoder
        self._backbone = backbone
        self._reader: DescriptionReader = description_reader(
            checkpoint.network, encoder, backbone, checkpoint.shots
        )
        if backbone is not None:
            checkpoint.network.to(backbone.device)

    @torch.no_grad()
    def emit(self, descriptions: Sequence[str], examples: Sequence[Sequence[Example]] = ()) -> Emission:
        """One adapter per description; `fallback` for nonsense, where the training tasks are known.

        Args:
            descriptions: of tasks.
            examples: solved ones of each task, if any. The first short ones are read behind the description,
                as many as the network was trained to read; without such training, none.
        """
        network = self.checkpoint.network
        device = next(network.parameters()).device
        texts = list(descriptions)
        shots: list[ShotsRead] = []
        if examples and self.checkpoint.shots and self._backbone is not None:
            texts, shots = self._with_shots(self._backbone, descriptions, examples)
        read = stack_embeddings(self._reader.read(texts)).to(device)
        emitted = (self._short if read.dtype == torch.bfloat16 else network)(read)
        factors = {name: LoraFactors(f.a.float(), f.b.float()) for name, f in emitted.factors.items()}
        own = BatchedLoRA(factors, emitted.alpha)
        if self.checkpoint.known_tasks is None:
            return Emission(own, None, shots)
        familiarities = self.checkpoint.known_tasks.compare(self.encoder.encode(descriptions))
        nonsense = torch.tensor([f.nonsense for f in familiarities], device=device)
        if bool(nonsense.any()):
            own = _replaced(own, nonsense, self.fallback.to(device))
        return Emission(own, familiarities, shots)

    def _with_shots(
        self, backbone: Backbone, descriptions: Sequence[str], examples: Sequence[Sequence[Example]]
    ) -> tuple[list[str], list[ShotsRead]]:
        """The descriptions with examples behind them, and what of these it is."""
        most, texts, shots = self.checkpoint.shots, [], []
        for text, given in zip(descriptions, examples, strict=True):
            short = short_shots(backbone, given)
            texts.append(with_shots(text, short[:most]))
            shots.append(ShotsRead(len(short[:most]), len(given) - len(short)))
        return texts, shots

    @cached_property
    def fallback(self) -> LoRA:
        """The adapter for nonsense: the checkpoint's multi-task LoRA, else that of no description.

        That is the adapter of the null description if description dropout trained it, else the shared one.
        """
        if self.checkpoint.multi_task is not None:
            return self.checkpoint.multi_task
        recipe = self.checkpoint.provenance.get("config")  # free JSON, which may come from outside
        if not isinstance(recipe, Mapping) or recipe.get("objective") == "reconstruction":
            recipe = {}  # whose network never saw the null description
        dropped = recipe.get("description_dropout")
        return self.emit_null() if dropped else self.checkpoint.network.offset_lora()

    @torch.no_grad()
    def emit_null(self) -> LoRA:
        """The adapter of no description, which description dropout trains."""
        network = self.checkpoint.network
        return network(network.null_input()).row(0)

    @cached_property
    def _short(self) -> Hypernetwork:
        """The network in bfloat16, as it was trained to read the states of a backbone in bfloat16."""
        return deepcopy(self.checkpoint.network).bfloat16()


def _replaced(adapters: BatchedLoRA, rows: torch.Tensor, other: LoRA) -> BatchedLoRA:
    """The adapters with another one in the chosen rows."""
    chosen = rows.view(-1, 1, 1)
    factors = {
        name: LoraFactors(
            *(torch.where(chosen, o, f) for o, f in zip(other.factors[name], pair, strict=True))
        )
        for name, pair in adapters.factors.items()
    }
    return BatchedLoRA(factors, adapters.alpha)
