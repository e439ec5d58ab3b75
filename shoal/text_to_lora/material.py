"""All that a user has of a task: a sentence, names of labels, inputs without answers, solved examples.

It is checked before any work. A generated adapter is then refined on the examples, calibrated and trained on
the inputs; where there is no hypernetwork, the prompted base model is distilled on them. Knows adapters and
what they are taught by; nothing of how they were generated.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from shoal.adapters.card import LabelSet
from shoal.adapters.lora import LoRA
from shoal.config import MIN_EXAMPLES
from shoal.errors import ShoalError, UsageError, shorten
from shoal.inference.labels import content_free_priors
from shoal.models.backbone import Backbone
from shoal.tasks.inputs import check_inputs
from shoal.tasks.records import Example, Solved, check_examples
from shoal.tasks.texts import normalise
from shoal.text_to_lora.encoders.sentence import TaskEncoder, check_description
from shoal.text_to_lora.example_labels import closed_in_examples, given_in_examples
from shoal.text_to_lora.gain import Gain
from shoal.text_to_lora.generated_adapter import GeneratedAdapter
from shoal.text_to_lora.label_sets import check_labels, read_label_set
from shoal.text_to_lora.label_similarity import LabelSimilarity
from shoal.text_to_lora.next_examples import NextExamples, most_telling, promise
from shoal.text_to_lora.refining import Refining
from shoal.text_to_lora.sample_inputs import nearest_kind

if TYPE_CHECKING:
    from shoal.text_to_lora.few_shot import Refinement

log = logging.getLogger(__name__)

_TENSORS = ("lora", "others", "label_set")


@dataclass(frozen=True)
class Material:
    """What a user gave, checked.

    Attributes:
        description: of the task, stripped.
        examples: solved ones; may be none.
        inputs: without answers; may be none.
        label_set: given, read from the description or shown by the examples; None where answers are open.
        suggest: inputs that are to be suggested for labelling; 0 for none.
        labels_given: the labels were given, so their priors are worth measuring now.
        sample_kind: name of the kind of inputs, where they are the package's own.
    """

    description: str
    examples: tuple[Example, ...]
    inputs: tuple[str, ...]
    label_set: LabelSet | None
    labels_given: bool
    sample_kind: str | None = None
    suggest: int = 0

    @property
    def needs_weights(self) -> bool:
        """True where the base model must be loaded to use it."""
        return bool(self.examples) or (
            self.label_set is not None and (bool(self.inputs) or self.labels_given)
        )


def check_material(
    description: str,
    examples: Sequence[Solved] = (),
    inputs: Sequence[str] = (),
    labels: Sequence[str] | None = None,
    *,
    needs_inputs: bool = False,
    min_examples: int = MIN_EXAMPLES,
    suggest: int = 0,
) -> Material:
    """What was given, checked before any work; `needs_inputs` refuses none of them.

    Of examples, where there are any, `min_examples` inputs must differ.

    Raises:
        UsageError: as `check_description`, `check_examples`, `check_inputs`, `check_labels` and
            `given_in_examples`.
    """
    description = check_description(description)
    given = given_label_set(labels)
    solved = tuple(check_examples(examples, min_examples)) if len(examples) else ()
    return Material(
        description,
        solved,
        check_inputs(inputs) if len(inputs) or needs_inputs else (),
        given_in_examples(given, solved)
        if labels is not None
        else closed_in_examples(described_label_set(description), solved),
        given is not None,
        suggest=suggest,
    )


def check_needs_no_adapter(material: Material, base_model: str) -> None:
    """Refuse examples and inputs where no hypernetwork gives an adapter that they could train.

    Raises:
        UsageError: there are some.
    """
    untrained = f"no hypernetwork is trained for {base_model} with this configuration"
    if material.examples:
        raise UsageError(
            f"{len(material.examples)} examples have no adapter to refine: {untrained}; use "
            "`shoal train lora` with them"
        )
    if material.inputs:
        raise UsageError(
            f"{len(material.inputs)} inputs have no adapter to train: {untrained}; distil the prompted "
            "model with them (shoal generate --distil)"
        )


def check_suggestion(material: Material, *, refine: bool) -> None:
    """See that inputs to label next can be suggested.

    Raises:
        UsageError: fewer than none are asked for, or there are no inputs, or no examples to refine on.
    """
    if material.suggest < 0:
        raise UsageError(f"suggest {material.suggest}: 0 inputs is the least; give 4, or 0 for none")
    if material.suggest and not (material.inputs and material.examples and refine):
        raise UsageError(
            f"suggest {material.suggest} chooses among inputs by adapters that are refined on examples; got "
            f"{len(material.inputs)} inputs and {len(material.examples)} examples"
            + ("; give both" if refine else " with refine=False; refine on them")
        )


def say_unused(material: Material, *, examples: bool) -> None:
    """Log what teaches an adapter nothing: the examples where they are not used, inputs of open answers."""
    if examples and material.examples:
        log.warning("the hypernetwork reads no examples: without refining they teach the adapter nothing")
    if material.inputs and material.label_set is None and not material.suggest:
        log.warning("inputs teach an adapter of open answers nothing; name the labels if they are closed")


def with_sample_inputs(material: Material, encoder: TaskEncoder) -> Material:
    """The material with the package's own inputs, of the kind that fits the description best.

    Raises:
        UsageError: there are inputs already, or no labels that they could calibrate.
    """
    if material.inputs:
        raise UsageError(
            f"{len(material.inputs)} inputs and sample_inputs are given; your own are better, leave the "
            "samples out"
        )
    if material.label_set is None:
        raise UsageError(
            f"sample inputs calibrate labels, and {shorten(material.description)} names none for sure; name "
            "all answers in it, or give labels"
        )
    found = nearest_kind(encoder, material.description)
    return replace(material, inputs=found.inputs, sample_kind=found.kind)


def given_label_set(labels: Sequence[str] | None) -> LabelSet | None:
    """The set of given labels, without priors; None for none. Errors as `check_labels`."""
    return LabelSet(labels=check_labels(labels)) if labels is not None and len(labels) else None


def described_label_set(description: str) -> LabelSet | None:
    """The label set that a description names, without priors; None where it names none for sure."""
    labels = read_label_set(description)
    return LabelSet(labels=labels, source="description") if labels else None


def adapted_to(
    backbone: Backbone,
    adapter: GeneratedAdapter,
    material: Material,
    refining: Refining | None = None,
    similarity: LabelSimilarity | None = None,
) -> GeneratedAdapter:
    """A generated adapter after the material has been used: examples first, then inputs, then labels.

    Examples refine it as was learned for its network, or without `refining` by constants. Inputs teach it the
    labels that its own scores give with what their `similarity` adds.

    Its facts say what each did: `few_shot` and `self_training` hold the numbers of a `Refinement` and of a
    `SelfTraining`.

    Raises:
        UsageError: too much of it is too long, or as `label_log_likelihoods`.
        ShoalError: the extra `train` is not installed.
    """
    label_set = material.label_set
    if material.examples:
        with training_installed("examples"):
            from shoal.text_to_lora.few_shot import refine
        refined = refine(
            backbone,
            adapter.lora,
            material.examples,
            description=material.description,
            learned=refining,
            start_read_them="shots" in adapter.hypernetwork,
        )
        start, adapter = adapter, _taught(adapter, refined.lora, "few_shot", refined)
        adapter = _with_next(backbone, start.lora, adapter, refined, material)
    if label_set is not None and material.inputs:
        with training_installed("inputs"):
            from shoal.text_to_lora.self_training import self_train
        trained = self_train(
            backbone,
            adapter.lora,
            label_set,
            material.inputs,
            description=material.description,
            similarity=similarity,
            texts=f"sample inputs ({material.sample_kind})" if material.sample_kind else "inputs",
        )
        label_set = trained.label_set
        adapter = _taught(adapter, trained.lora, "self_training", trained)
    elif label_set is not None and material.labels_given:
        priors = content_free_priors(backbone, label_set.labels, adapter.lora)
        label_set = label_set.calibrated(priors, "content-free texts")
    return replace(adapter, label_set=label_set)


def _with_next(
    backbone: Backbone, start: LoRA, adapter: GeneratedAdapter, refined: Refinement, material: Material
) -> GeneratedAdapter:
    """The refined adapter with the value of more examples among its facts, and the inputs to label first."""
    from shoal.text_to_lora.few_shot import left_out_loras

    started = time.perf_counter()
    count, held_out = len(material.examples), refined.held_out
    value = None
    if refined.gain is not None:
        value = promise(refined.gain, count - (held_out or 1), count)
    if material.suggest:
        known = {normalise(example.input) for example in material.examples}
        inputs = [text for text in material.inputs if normalise(text) not in known]
        others = refined.others or left_out_loras(
            backbone, start, material.examples, material.description, max(refined.steps, 1)
        )
        found = most_telling(backbone, refined.lora, others, inputs, material.suggest) if inputs else []
        value = replace(
            value or NextExamples(material.suggest, 0.0, False),
            inputs=tuple(text for text, _ in found),
            spreads=tuple(spread for _, spread in found),
        )
    if value is None:
        return adapter
    return replace(
        adapter,
        hypernetwork={**adapter.hypernetwork, "next_examples": asdict(value)},
        duration=adapter.duration + time.perf_counter() - started,
    )


def distilled(
    backbone: Backbone,
    start: LoRA,
    material: Material,
    similarity: LabelSimilarity | None = None,
    *,
    show_progress: bool = True,
) -> tuple[LoRA, LabelSet | None, dict[str, Any]]:
    """A LoRA that answers as the prompted base model, its label set, and the numbers of a `Distillation`.

    Raises:
        UsageError: as `distil`.
        ShoalError: the extra `train` is not installed.
    """
    with training_installed("inputs"):
        from shoal.text_to_lora.distillation import distil
    found = distil(
        backbone,
        start,
        material.description,
        material.inputs,
        label_set=material.label_set,
        similarity=similarity,
        show_progress=show_progress,
    )
    return found.lora, found.label_set, _numbers(found)


def _taught(adapter: GeneratedAdapter, lora: LoRA, fact: str, record: Any) -> GeneratedAdapter:
    return replace(
        adapter,
        lora=lora,
        hypernetwork={**adapter.hypernetwork, fact: _numbers(record)},
        duration=adapter.duration + record.seconds,
    )


def _numbers(record: Any) -> dict[str, Any]:
    numbers = {f.name: getattr(record, f.name) for f in fields(record) if f.name not in _TENSORS}
    return {name: asdict(value) if isinstance(value, Gain) else value for name, value in numbers.items()}


@contextmanager
def training_installed(material: str) -> Iterator[None]:
    """Say what to install where the import of a training fails."""
    try:
        yield
    except ImportError as error:
        raise ShoalError(
            f"{material} need {error.name}, which is not installed; pip install 'shoal[train]'"
        ) from None
