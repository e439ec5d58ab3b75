"""Model x task -> report: a method's answers to a task's test inputs, scored.

A method says how a request is worded and which adapter is attached; every row of a table is one. Knows
nothing of how adapters were made: the rows of a Text-to-LoRA report are in `shoal.evaluation.baselines`, what
was found in `shoal.evaluation.reports`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.adapters.base import Adapter
from shoal.errors import UsageError
from shoal.evaluation.label_sets import SUFFIX, with_labels
from shoal.evaluation.reports import METRICS, Answer, MethodResult, Report, mean_result, summarise
from shoal.inference.generate import generate_greedy
from shoal.inference.scoring import reference_losses
from shoal.models.backbone import Backbone
from shoal.tasks.loading import Example, Task
from shoal.tasks.metrics import exact_match, rouge_l
from shoal.text_to_lora.label_similarity import LabelSimilarity

log = logging.getLogger(__name__)

__all__ = [
    "METRICS",
    "Answer",
    "Method",
    "MethodResult",
    "Report",
    "described",
    "evaluate",
    "mean_result",
    "score",
    "with_shots",
]


@dataclass(frozen=True)
class Method:
    """One row of a report.

    Attributes:
        name: what the row is called.
        adapter: task -> the adapter that is attached, or None for the bare model.
        request: task and example -> what the model is asked; by default the input alone.
        answer: task and example -> the answer, of a method that asks no model.
    """

    name: str
    adapter: Callable[[Task], Adapter | None] = lambda task: None
    request: Callable[[Task, Example], str] = lambda task, example: example.input
    answer: Callable[[Task, Example], str] | None = None


def evaluate(
    backbone: Backbone,
    tasks: Sequence[Task],
    methods: Sequence[Method],
    *,
    examples: int = 60,
    max_new_tokens: int = 48,
    batch_size: int = 32,
    samples: int = 3,
    notes: dict[str, Any] | None = None,
    label_sets: Mapping[str, Sequence[str]] | None = None,
    similarity: LabelSimilarity | None = None,
    on_method: Callable[[MethodResult], None] = lambda result: None,
) -> Report:
    """Score every method on the first test examples of every task.

    Args:
        backbone: the frozen model.
        tasks: whose `test` lists to use.
        methods: rows of the report.
        examples: test examples per task, at most.
        max_new_tokens: limit of an answer, in tokens.
        batch_size: requests that run together.
        samples: answers per task that the report keeps.
        notes: recorded in the report.
        label_sets: task name -> its labels. Every method then has a second row, in which these tasks are
            answered by calibrated likelihood of the labels, and the others as in the first; see
            `shoal.evaluation.label_sets`.
        similarity: what the meaning of labels adds in these rows; None for nothing.
        on_method: called with every finished method.

    Raises:
        UsageError: no tasks, no methods, two of one name, a task without test examples, or a limit below 1.
    """
    for kind, names in (("tasks", [t.name for t in tasks]), ("methods", [m.name for m in methods])):
        if not names or len(set(names)) != len(names):
            raise UsageError(
                f"evaluation needs at least one of {kind}, each of its own name, got {names}; name them apart"
            )
    untested = [task.name for task in tasks if not task.test]
    if untested:
        raise UsageError(f"task {untested[0]} has no test examples, at least 1 is needed; leave it out")
    if examples < 1 or samples < 0:
        raise UsageError(
            f"examples {examples} must be at least 1 and samples {samples} at least 0; raise them"
        )
    results = []
    for number, method in enumerate(methods, 1):
        log.info("scoring %s on %d tasks (%d of %d)", method.name, len(tasks), number, len(methods))
        adapters = {task.name: method.adapter(task) for task in tasks}
        asked = [(task, e) for task in tasks for e in task.test[:examples]]
        if method.answer is not None:
            scored = [_scored(e, method.answer(task, e), None) for task, e in asked]
        else:
            scored = score(
                backbone,
                [e for _, e in asked],
                [method.request(task, e) for task, e in asked],
                _one_or_each([adapters[task.name] for task, _ in asked]),
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
            )
        answers: dict[str, list[Answer]] = {task.name: [] for task in tasks}
        for (task, _), answer in zip(asked, scored, strict=True):
            answers[task.name].append(answer)
        results.append(summarise(method.name, answers, samples))
        if label_sets and method.answer is None:
            answers |= _labelled(backbone, tasks, method, adapters, answers, label_sets, similarity)
            results.append(summarise(method.name + SUFFIX, answers, samples))
        on_method(results[-1])
    rows = tuple(results)
    return Report(backbone.shape.base_model, tuple(t.name for t in tasks), examples, rows, notes or {})


def score(
    backbone: Backbone,
    examples: Sequence[Example],
    requests: Sequence[str],
    adapters: Adapter | Sequence[Adapter | None] | None = None,
    *,
    max_new_tokens: int = 48,
    batch_size: int = 32,
) -> list[Answer]:
    """Generate and score the answers to some requests, one per example.

    Adapters and errors are those of `generate_greedy`.
    """
    references = [e.outputs[0] for e in examples]
    answers = generate_greedy(
        backbone, requests, adapters, max_new_tokens=max_new_tokens, batch_size=batch_size
    )
    losses = reference_losses(backbone, requests, references, adapters, batch_size=batch_size)
    return [_scored(e, a, nll) for e, a, nll in zip(examples, answers, losses, strict=True)]


def echo() -> Method:
    """The input itself as the answer, which a rewriting of it must beat."""
    return Method("echo", answer=lambda task, example: example.input)


def described(task: Task, example: Example) -> str:
    """The request with the task's first description before the input."""
    return task.described(example.input)


def with_shots(count: int, seed: int = 0) -> Callable[[Task, Example], str]:
    """Requests that show `count` solved examples of the task's `train` list, drawn by seed (in-context).

    Raises:
        UsageError: when it is called with a task of fewer training examples.
    """

    def request(task: Task, example: Example) -> str:
        if len(task.train) < count:
            raise UsageError(
                f"task {task.name} has {len(task.train)} training examples, {count} shots need as many; "
                "show fewer with --shots, 0 leaves that row out"
            )
        shots = random.Random(f"{seed}/{task.name}").sample(task.train, count)
        solved = [f"Input: {e.input}\nOutput: {e.outputs[0]}" for e in shots]
        return "\n\n".join([*solved, f"Input: {example.input}\nOutput:"])

    return request


def _scored(example: Example, answer: str, nll: float | None) -> Answer:
    outputs = example.outputs
    scores = rouge_l(answer, outputs), exact_match(answer, outputs)
    return Answer(example.input, answer, outputs, *scores, nll)


def _labelled(
    backbone: Backbone,
    tasks: Sequence[Task],
    method: Method,
    adapters: Mapping[str, Adapter | None],
    answers: Mapping[str, list[Answer]],
    label_sets: Mapping[str, Sequence[str]],
    similarity: LabelSimilarity | None,
) -> dict[str, list[Answer]]:
    """The answers of the tasks that have label sets, each replaced by a label."""
    return {
        task.name: with_labels(
            backbone,
            task,
            answers[task.name],
            label_sets[task.name],
            adapters[task.name],
            method.request,
            similarity,
        )
        for task in tasks
        if task.name in label_sets
    }


def _one_or_each(adapters: Sequence[Adapter | None]) -> Adapter | Sequence[Adapter | None] | None:
    """One adapter where all are the same object, else one per request."""
    return adapters[0] if all(adapter is adapters[0] for adapter in adapters) else adapters
