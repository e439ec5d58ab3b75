"""The models that a library works with, each loaded when it is first needed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from shoal.adapters.lora import LoRA
from shoal.errors import UsageError
from shoal.library.gate import answering
from shoal.models.backbone import Backbone, load_backbone
from shoal.tasks.records import Example
from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.text_to_lora.generator import TextToLoRA


class Models:
    """A base model, the generator of its adapters, and the encoder of sentences."""

    def __init__(
        self,
        base_model: str,
        backbone: Backbone | None = None,
        generator: TextToLoRA | None = None,
        encoder: TaskEncoder | None = None,
    ) -> None:
        """Take what is loaded already.

        Raises:
            UsageError: the backbone is another base model.
        """
        if backbone is not None and backbone.shape.base_model != base_model:
            raise UsageError(
                f"the library is for {base_model}, not {backbone.shape.base_model}; use its own base model, "
                "or make a library for this one"
            )
        self._base_model = base_model
        self._given = backbone, generator, encoder

    @cached_property
    def backbone(self) -> Backbone:
        """The base model; errors as `load_backbone`."""
        return self._given[0] or load_backbone(self._base_model)

    @cached_property
    def generator(self) -> TextToLoRA:
        """Makes the adapters that skills start from."""
        return self._given[1] or TextToLoRA(backbone=self.backbone)

    @cached_property
    def encoder(self) -> TaskEncoder:
        """Of the sentences that ask for a skill."""
        return self._given[2] or self.generator.skills.encoder

    def answer(self, examples: Sequence[Example], lora: LoRA | None) -> list[float]:
        """Scores of greedy answers, as `shoal.library.gate.Answering`; without examples nothing is loaded."""
        return answering(self.backbone)(examples, lora) if examples else []
