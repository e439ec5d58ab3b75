"""The models that a library works with, each loaded when it is first needed, and how they answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from shoal.adapters.card import LabelSet
from shoal.adapters.lora import LoRA
from shoal.errors import UsageError
from shoal.inference.generate import generate_greedy
from shoal.inference.labels import LabelAnswer, choose_labels
from shoal.inference.scoring import reference_losses
from shoal.models.backbone import Backbone, load_backbone
from shoal.tasks.metrics import rouge_l
from shoal.tasks.records import Example
from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.text_to_lora.generator import TextToLoRA
from shoal.text_to_lora.label_sets import label_key
from shoal.text_to_lora.label_similarity import LabelSimilarity
from shoal.transformer2.router import mean_states

MAX_NEW_TOKENS = 48
LEAST_LIKELY = 1e-9  # probability of a label, below which its loss stays the same


class Models:
    """A base model, the generator of its adapters, and the encoder of sentences.

    Attributes:
        base_model: hub id or path.
    """

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
        self.base_model = base_model
        self._given = backbone, generator, encoder

    @cached_property
    def backbone(self) -> Backbone:
        """The base model; errors as `load_backbone`."""
        return self._given[0] or load_backbone(self.base_model)

    @cached_property
    def generator(self) -> TextToLoRA:
        """Makes the adapters that skills start from."""
        return self._given[1] or TextToLoRA(backbone=self.backbone)

    @cached_property
    def encoder(self) -> TaskEncoder:
        """Of the sentences that ask for a skill."""
        return self._given[2] or self.generator.skills.encoder

    @cached_property
    def _meaning(self) -> LabelSimilarity:
        return LabelSimilarity(lambda: self.encoder)

    def answers(
        self,
        requests: Sequence[str],
        lora: LoRA | None,
        label_set: LabelSet | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> list[str]:
        """The greedy answer to each request, the likeliest label where there are labels; none loads nothing.

        Errors as `generate_greedy` and `choose_labels`.
        """
        if not requests:
            return []
        if label_set is not None:
            return [chosen.label for chosen in self._labels(requests, lora, label_set)]
        return generate_greedy(self.backbone, requests, lora, max_new_tokens=max_new_tokens)

    def scores(
        self, examples: Sequence[Example], lora: LoRA | None, label_set: LabelSet | None = None
    ) -> list[float]:
        """ROUGE-L of each answer, in [0, 1], as in evaluations; arguments as `answers`."""
        answers = self.answers([e.input for e in examples], lora, label_set)
        return [rouge_l(answer, e.outputs) for e, answer in zip(examples, answers, strict=True)]

    def losses(
        self, examples: Sequence[Example], lora: LoRA | None, label_set: LabelSet | None = None
    ) -> list[float]:
        """Negative log-likelihood of each first output, in nats: per token, or of its label among labels."""
        requests = [e.input for e in examples]
        if label_set is None:
            return reference_losses(self.backbone, requests, [e.outputs[0] for e in examples], lora)
        label_of = {label_key(label): label for label in label_set.labels}
        chosen = self._labels(requests, lora, label_set)
        likely = [
            answer.probabilities[label_of[label_key(e.outputs[0])]]
            for e, answer in zip(examples, chosen, strict=True)
        ]
        return [-math.log(max(share, LEAST_LIKELY)) for share in likely]

    def states(self, texts: Sequence[str], layer: int) -> Float[Tensor, "texts width"]:
        """States of some requests, as a router reads them, float32 on the CPU; errors as `mean_states`."""
        if not texts:
            return torch.empty(0, self.backbone.model.config.hidden_size)
        return mean_states(self.backbone.model, self.backbone.encode_prompts(texts), layer)

    def _labels(self, requests: Sequence[str], lora: LoRA | None, label_set: LabelSet) -> list[LabelAnswer]:
        prompts, evidence = (
            self.backbone.encode_prompts(requests),
            self._meaning.evidence(label_set, requests),
        )
        return choose_labels(self.backbone, prompts, label_set, lora, evidence=evidence)
