"""Rows answered from label sets: the same treatment for every method of a table, the bare model included.

A task's label set is read from its first description, never from its answers. Each row's priors are its own:
over the same inputs of the task's `train` list, whose answers are not looked at, or content-free texts where
there are none. What the meaning of the labels adds is the same for every row. Knows methods and tasks; how
labels are scored is `shoal.inference.labels`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from shoal.adapters.base import Adapter
from shoal.adapters.card import LabelSet
from shoal.evaluation.reports import Answer
from shoal.inference.labels import CONTENT_FREE, answer_with_labels, label_log_likelihoods, label_priors
from shoal.models.backbone import Backbone
from shoal.tasks.loading import Example, Task
from shoal.tasks.metrics import exact_match, rouge_l
from shoal.text_to_lora.label_sets import read_label_set
from shoal.text_to_lora.label_similarity import LabelSimilarity

SUFFIX = ", labels"
CALIBRATION_INPUTS = 16


def described_label_sets(tasks: Sequence[Task]) -> dict[str, tuple[str, ...]]:
    """Task name -> the labels that its first description names, for the tasks where it names some."""
    found = {task.name: read_label_set(task.descriptions[0]) for task in tasks}
    return {name: labels for name, labels in found.items() if labels}


def with_labels(
    backbone: Backbone,
    task: Task,
    answers: Sequence[Answer],
    labels: Sequence[str],
    adapter: Adapter | None,
    request: Callable[[Task, Example], str],
    similarity: LabelSimilarity | None = None,
) -> list[Answer]:
    """One method's answers to a task, each replaced by the likeliest label after calibration.

    Args:
        backbone: the frozen model.
        task: whose `train` inputs calibrate.
        answers: to its test examples; the NLL stays.
        labels: the task's label set.
        adapter: attached by the method.
        request: how it words a request.
        similarity: what the meaning of the labels adds to their likelihoods; None for nothing.

    Raises:
        UsageError: as `label_log_likelihoods`.
    """
    texts = [e.input for e in task.train[:CALIBRATION_INPUTS]] or list(CONTENT_FREE)
    read = [a.input for a in answers] + texts
    asked = [request(task, Example(text, ("-",))) for text in read]
    scores = label_log_likelihoods(backbone, backbone.encode_prompts(asked), labels, adapter)
    if similarity is not None:
        scores = scores + similarity.evidence(LabelSet(labels=tuple(labels)), read)
    priors = label_priors(scores[len(answers) :])
    chosen = answer_with_labels(labels, scores[: len(answers)], priors)
    return [
        replace(
            answer,
            answer=label.label,
            rouge_l=rouge_l(label.label, answer.references),
            exact_match=exact_match(label.label, answer.references),
        )
        for answer, label in zip(answers, chosen, strict=True)
    ]
