"""All that a user has besides the sentence and solved examples: names of labels, and inputs without answers.

Checks them, and puts them to use: a label set with its priors, self-training of a generated adapter, or
distillation of the prompted base model where there is no hypernetwork.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from shoal.adapters.card import LabelSet
from shoal.adapters.lora import LoRA
from shoal.config import TextToLoRAConfig
from shoal.errors import ShoalError, UsageError
from shoal.inference.labels import content_free_priors
from shoal.models.backbone import Backbone
from shoal.models.modules import TargetModule
from shoal.tasks.inputs import check_inputs
from shoal.text_to_lora.generated_adapter import GeneratedAdapter
from shoal.text_to_lora.label_sets import check_labels, read_label_set

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """What a user gave, checked.

    Attributes:
        description: of the task, stripped.
        label_set: given, or read from the description; None where answers are open.
        inputs: without answers; may be none.
        calibrates: the labels were given, so their priors are worth measuring now.
    """

    description: str
    label_set: LabelSet | None
    inputs: tuple[str, ...]
    calibrates: bool


def asked_for(
    description: str, inputs: Sequence[str], labels: Sequence[str] | None, *, needed: bool = False
) -> Asked:
    """What was given, checked before any work; `needed` refuses no inputs too.

    Raises:
        UsageError: as `check_inputs` and `check_labels`.
    """
    given = label_set_of(labels)
    label_set = described_labels(description) if labels is None else given
    checked = check_inputs(inputs) if len(inputs) or needed else ()
    return Asked(description, label_set, checked, given is not None)


def label_set_of(labels: Sequence[str] | None) -> LabelSet | None:
    """The set of given labels, without priors; None for none. Errors as `check_labels`."""
    return LabelSet(labels=check_labels(labels)) if labels is not None and len(labels) else None


def described_labels(description: str) -> LabelSet | None:
    """The label set that a description names, without priors; None where it names none for sure."""
    labels = read_label_set(description) if isinstance(description, str) else ()
    return LabelSet(labels=labels, source="description") if labels else None


def with_inputs(
    backbone: Backbone, adapter: GeneratedAdapter, asked: Asked
) -> tuple[LoRA, LabelSet | None, dict[str, Any]]:
    """The adapter's factors, label set and new facts after what was given has been used; errors as it."""
    label_set = asked.label_set
    if asked.inputs and not adapter.trained:
        raise UsageError(
            f"{len(asked.inputs)} inputs have no adapter to train: no hypernetwork is trained for "
            f"{adapter.shape.base_model} with this configuration; distil the prompted model with them "
            "(shoal generate --distil)"
        )
    if label_set is None:
        log.warning("inputs teach an adapter of open answers nothing; name the labels if they are closed")
        return adapter.lora, None, {}
    if not asked.inputs:
        priors = tuple(content_free_priors(backbone, label_set.labels, adapter.lora))
        update = {"priors": priors, "calibrated_on": "content-free texts"}
        return adapter.lora, label_set.model_copy(update=update), {}
    train = _needs_training("inputs")
    found = train.self_train(backbone, adapter.lora, label_set, asked.inputs, description=asked.description)
    return found.lora, found.label_set, {"self_training": facts_of(found)}


def distilled(
    backbone: Backbone, targets: Sequence[TargetModule], config: TextToLoRAConfig, asked: Asked
) -> tuple[LoRA, LabelSet | None, dict[str, Any]]:
    """A LoRA that answers as the prompted base model, its label set, and how it went."""
    _needs_training("distillation")
    from shoal.text_to_lora.distillation import distil

    start = LoRA.identity(
        targets,
        config.adapter_rank,
        float(config.adapter_alpha),
        generator=torch.Generator().manual_seed(0),
    )
    found = distil(backbone, start, asked.description, asked.inputs, label_set=asked.label_set)
    return found.lora, found.label_set, facts_of(found)


def facts_of(found: Any) -> dict[str, Any]:
    """The numbers of a record, for the adapter's facts."""
    return {f.name: getattr(found, f.name) for f in fields(found) if f.name not in ("lora", "label_set")}


def _needs_training(what: str) -> Any:
    try:
        from shoal.text_to_lora import self_training
    except ImportError as error:
        raise ShoalError(
            f"{what} need {error.name}, which is not installed; pip install 'shoal[train]'"
        ) from None
    return self_training
