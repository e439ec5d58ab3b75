"""A generated adapter with what is known of it, as Python and as a PEFT directory.

Knows nothing of how it was generated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shoal.adapters.card import AdapterCard, LabelSet
from shoal.adapters.files import save_adapter
from shoal.adapters.lora import LoRA
from shoal.config import MIN_EXAMPLES
from shoal.models.backbone import BackboneShape
from shoal.tasks.inputs import MIN_INPUTS
from shoal.text_to_lora.gain import Gain, gain_note
from shoal.text_to_lora.next_examples import next_note
from shoal.text_to_lora.skills import SkillDetection
from shoal.text_to_lora.suggested_format import suggest_format

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class GeneratedAdapter:
    """An adapter with what is known of it.

    Attributes:
        description: the task description, stripped.
        lora: the factors, float32 on the CPU.
        skills: skills that the description asks for.
        hypernetwork: facts of its generator; `trained` is False where the adapter is the identity, else there
            are also `nearest_tasks` (name -> distance), `distance`, `confidence`, `far` and `nonsense`: see
            `shoal.text_to_lora.familiarity`. `shots`, `few_shot`, `next_examples`, `self_training` and
            `distilled` say what examples and inputs did: the numbers of `shots.ShotsRead`,
            `few_shot.Refinement`, `next_examples.NextExamples`, `self_training.SelfTraining` and
            `distillation.Distillation`.
        duration: seconds that generating took, of several made at once its share; 0 from the cache.
        shape: of the base model.
        label_set: the answers that it chooses from, read from the description or given; None where they are
            open. Without priors it is calibrated on content-free texts when it first answers.
    """

    description: str
    lora: LoRA
    skills: SkillDetection
    hypernetwork: dict[str, Any]
    duration: float
    shape: BackboneShape = field(repr=False)
    label_set: LabelSet | None = None

    @property
    def trained(self) -> bool:
        """True where it was generated or distilled, False where it is the identity."""
        return bool(self.hypernetwork["trained"])

    @property
    def notes(self) -> tuple[str, ...]:
        """Plain sentences that its user should know before relying on it; empty where all is well.

        That it changes nothing, that its description reads as nonsense, that the base model can hardly do
        such tasks, or that the description is far from every training task, each with what to do about it.
        """
        facts = self.hypernetwork
        if not self.trained:
            return (
                f"This adapter changes nothing: no hypernetwork is trained for {self.shape.base_model} with "
                f"this configuration. Distil the prompted model from {MIN_INPUTS} or more inputs without "
                f"answers (shoal generate --distil --inputs FILE). Train one with: {facts['how_to_train']}",
            )
        if facts.get("nonsense"):
            return (f"{familiarity_note(facts)} Say in a sentence what the model shall do.",)
        if "hard" in facts:
            return (f"{_hard_note(facts)} Take a larger base model.",)
        if facts.get("far") and not {"shots", "few_shot"} & facts.keys():
            return (f"{_far_note(facts)} Give {MIN_EXAMPLES} or more solved examples of the task.",)
        return ()

    def copy(self) -> GeneratedAdapter:
        """The same with tensors and facts of its own."""
        return replace(self, lora=self.lora.copy(), hypernetwork=deepcopy(self.hypernetwork))

    def card(self) -> AdapterCard:
        """Its provenance."""
        facts = self.hypernetwork
        notes = list(material_notes(facts).values())
        if "confidence" in facts:
            notes.append(familiarity_note(facts))
        return AdapterCard(
            generator="context distillation" if "distilled" in facts else "text-to-lora",
            trained=self.trained,
            description=self.description,
            checkpoint_sha256=facts.get("sha256"),
            notes=tuple(notes),
            label_set=self.label_set,
            suggested_format=suggest_format(self.description),
        )

    def save(self, directory: str | Path) -> None:
        """Write it as a PEFT adapter directory, whole or not at all; errors as `save_adapter`."""
        save_adapter(directory, self.lora, shape=self.shape, card=self.card())


def noted(adapter: GeneratedAdapter) -> GeneratedAdapter:
    """The adapter, after a word in the log on what its user should know, unless it comes from the cache."""
    if adapter.trained and adapter.duration > 0:  # of the identity the log says so itself
        for note in adapter.notes:
            log.warning("%.60r: %s", adapter.description, note)
    return adapter


def familiarity_note(facts: Mapping[str, Any]) -> str:
    """The familiarity of an adapter's description, as a sentence."""
    if facts["nonsense"]:
        return "The description reads as nonsense: this is the adapter that such descriptions share."
    nearest = next(iter(facts["nearest_tasks"]))
    return (
        f"The nearest training task is {nearest}, at distance {facts['distance']:.2f}: "
        f"confidence {facts['confidence']:.2f}."
    )


def _far_note(facts: Mapping[str, Any]) -> str:
    nearest = next(iter(facts["nearest_tasks"]))
    return (
        f"The description is far from every training task (the nearest is {nearest}, confidence "
        f"{facts['confidence']:.2f}), so the adapter may help little."
    )


def _hard_note(facts: Mapping[str, Any]) -> str:
    nearest = next(iter(facts["nearest_tasks"]))
    return (
        f"The nearest training task is {nearest}, and even a LoRA trained on it answers badly there (ROUGE-L "
        f"{facts['hard']:.2f} of 1): this base model can hardly do such tasks."
    )


def material_notes(facts: Mapping[str, Any]) -> dict[str, str]:
    """For each kind of material that an adapter was taught by, a sentence on what it did."""
    return {name: note(facts[fact]) for fact, (name, note) in _MATERIAL_NOTES.items() if fact in facts}


def _shots_note(facts: Mapping[str, Any]) -> str:
    """`shots` of an adapter's facts, as a sentence."""
    long = f"; {facts['long']} are too long for that" if facts["long"] else ""
    return f"Generated from the description and {facts['read']} examples that were read behind it{long}."


def _few_shot_note(facts: Mapping[str, Any]) -> str:
    """`few_shot` of an adapter's facts, as a sentence."""
    done = f"Refined on {facts['examples']} examples for {facts['steps']} steps"
    if facts["rates"]:
        done += (
            f" at the learned rates {facts['rates'][:12]}; loss on the same {facts['loss_before']:.2f} -> "
            f"{facts['loss_after']:.2f} nats per token"
        )
    elif facts["gain"] is None:
        done += (
            f"; loss on {facts['held_out']} others {facts['loss_before']:.2f} -> {facts['loss_after']:.2f}"
        )
    return f"{done}; {gain_note(Gain(**facts['gain']))}" if facts["gain"] else f"{done}."


def _self_training_note(facts: Mapping[str, Any]) -> str:
    """`self_training` of an adapter's facts, as a sentence."""
    begin = f"Calibrated on {facts['inputs']} {facts['texts']} without answers"
    if facts["reason"]:
        return f"{begin}; its factors are as they were: {facts['reason']}."
    return (
        f"{begin}, and trained on its own labels for {facts['steps']} steps: plain answers agree with the "
        f"calibrated ones on {facts['agreement_after']:.0%} of them, {facts['agreement_before']:.0%} before."
    )


def _distilled_note(facts: Mapping[str, Any]) -> str:
    """`distilled` of an adapter's facts, as a sentence."""
    return (
        f"Distilled from the base model with the description in its prompt, on {facts['inputs']} inputs for "
        f"{facts['steps']} steps: {facts['prompt_tokens_saved']:.0f} of {facts['prompt_tokens']:.0f} prompt "
        f"tokens are saved; loss to its answers {facts['loss_before']:.2f} -> {facts['loss_after']:.2f} nats "
        "per token."
    )


# The fact -> the material that it tells of, and the sentence that tells it.
_MATERIAL_NOTES: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "shots": ("examples read", _shots_note),
    "few_shot": ("examples", _few_shot_note),
    "next_examples": ("next examples", next_note),
    "self_training": ("inputs", _self_training_note),
    "distilled": ("distilled", _distilled_note),
}
