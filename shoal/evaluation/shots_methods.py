"""Rows of the curve over numbers of shots: in the prompt, the sentence alone, and adapters refined on them.

Knows emitters, refining and tasks; nothing of how answers are scored.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from shoal.adapters.lora import LoRA
from shoal.errors import UsageError
from shoal.evaluation.shots import Prepared, Shots, ShotsMethod
from shoal.models.backbone import Backbone
from shoal.tasks.loading import Example, Task
from shoal.tasks.texts import prompted_input
from shoal.text_to_lora.emission import Emitter
from shoal.text_to_lora.few_shot import MAX_TOKENS, REFINING, refine
from shoal.text_to_lora.refining import Refining

IN_PROMPT = "base, description and shots in the prompt"
SENTENCE = "Text-to-LoRA, the sentence alone"
REFINED = "Text-to-LoRA, refined"
CONSTANTS = "Text-to-LoRA, refined by constants"
MULTI_TASK = "multi-task LoRA, refined"
SHUFFLED = "Text-to-LoRA, refined on shuffled labels"
READ = "Text-to-LoRA, shots read"
READ_SHUFFLED = "Text-to-LoRA, shuffled shots read"
OTHER_SHOTS = "Text-to-LoRA, refined on another task's shots"
OTHER_SENTENCE = "another task's sentence, refined"
PROMPT_TOKENS = 1500  # of a request with shots, at most

Start = Callable[[Shots], LoRA]


def curve_methods(backbone: Backbone, emitter: Emitter, tasks: Sequence[Task]) -> dict[str, ShotsMethod]:
    """All rows that one network gives, by name.

    Args:
        backbone: the frozen model.
        emitter: of the network.
        tasks: of the curve, among which controls choose another.
    """
    network, learned = str(emitter.checkpoint.sha256), emitter.checkpoint.refining
    multi_task = emitter.checkpoint.multi_task
    others = {t.name: tasks[(i + len(tasks) // 2) % len(tasks)] for i, t in enumerate(tasks)}
    other_names = " ".join(t.name for t in others.values())

    def emitted(task: Task, shots: Shots) -> LoRA:
        return emitter.emit([task.descriptions[0]], [shots.examples]).adapters.row(0).to("cpu")

    def sentence(shots: Shots) -> LoRA:
        return emitted(shots.task, replace(shots, examples=()))

    def right(shots: Shots) -> LoRA:
        return emitted(shots.task, shots)

    def wrong(shots: Shots) -> LoRA:
        return emitted(others[shots.task.name], shots)

    refined = partial(refined_method, backbone=backbone, learned=learned)
    rows = [
        in_prompt(IN_PROMPT, backbone),
        replace(refined(SENTENCE, sentence, network), uses_shots=False),
        refined(REFINED, right, network),
        refined(SHUFFLED, right, f"{network} rotated", alter=shuffled),
    ]
    if emitter.checkpoint.shots:
        read = partial(read_method, start=right, backbone=backbone)
        rows.append(read(READ, depends_on=network))
        rows.append(read(READ_SHUFFLED, depends_on=f"{network} rotated", alter=shuffled))
    if learned is not None:
        rows.append(refined_method(CONSTANTS, right, network, backbone=backbone, learned=None))
    if multi_task is not None:
        rows.append(refined(MULTI_TASK, lambda shots: multi_task, network))
    if len(tasks) > 1:
        rows.append(refined(OTHER_SENTENCE, wrong, f"{network} {other_names}"))
        rows.append(refined(OTHER_SHOTS, right, f"{network} {other_names} nested", alter=shots_of(others)))
    return {row.name: row for row in rows}


def refined_method(
    name: str,
    start: Start,
    depends_on: str,
    *,
    backbone: Backbone,
    learned: Refining | None,
    alter: Callable[[Shots], Sequence[Example]] = lambda shots: shots.examples,
) -> ShotsMethod:
    """An adapter refined on the shots; as it was where they are too few or too long to refine on.

    Args:
        name: of the row.
        start: shots -> the adapter before refining.
        depends_on: whatever decides that.
        backbone: the frozen model.
        learned: how to refine; None for constants.
        alter: shots -> the examples that are read and trained on, which controls change.
    """

    def prepare(shots: Shots) -> Prepared:
        started = time.perf_counter()
        shots = replace(shots, examples=tuple(alter(shots)))
        lora, tokens = start(shots), 0
        if shots.examples:
            try:
                found = refine(
                    backbone, lora, shots.examples, description=shots.task.descriptions[0], learned=learned
                )
                lora, tokens = found.lora, found.tokens
            except UsageError:
                pass  # its user would have to leave them out
        return Prepared(lora.to(backbone.device), time.perf_counter() - started, tokens)

    how = learned.sha256 if learned else f"{REFINING.model_dump_json()} {MAX_TOKENS}"
    return ShotsMethod(name, prepare, depends_on=f"{depends_on} {how}")


def read_method(
    name: str,
    start: Start,
    depends_on: str,
    *,
    backbone: Backbone,
    alter: Callable[[Shots], Sequence[Example]] = lambda shots: shots.examples,
) -> ShotsMethod:
    """An adapter that is generated from description and shots in one pass; arguments as `refined_method`."""

    def prepare(shots: Shots) -> Prepared:
        started = time.perf_counter()
        lora = start(replace(shots, examples=tuple(alter(shots))))
        return Prepared(lora.to(backbone.device), time.perf_counter() - started)

    return ShotsMethod(name, prepare, depends_on=depends_on)


def in_prompt(
    name: str, backbone: Backbone, adapter: LoRA | None = None, depends_on: str = ""
) -> ShotsMethod:
    """Description and shots before every input, as many of these as `PROMPT_TOKENS` allow."""

    def request(shots: Shots, example: Example) -> str:
        solved = [f"Input: {e.input}\nOutput: {e.outputs[0]}" for e in shots.examples]
        while True:
            last = f"Input: {example.input}\nOutput:" if solved else example.input
            text = prompted_input(shots.task.descriptions[0], "\n\n".join([*solved, last]))
            if not solved or len(backbone.encode_prompt(text)) <= PROMPT_TOKENS:
                return text
            solved.pop()

    return ShotsMethod(name, lambda shots: Prepared(adapter), request, depends_on=depends_on)


def shuffled(shots: Shots) -> list[Example]:
    """The shots with each other's outputs: an adapter that gains from them has learnt the format alone.

    As they are where all outputs are the same, which no order changes.
    """
    given = [e.outputs for e in shots.examples]
    outputs = list(given)
    random.Random(f"{shots.draw}/{shots.task.name}").shuffle(outputs)
    for _ in given:
        if outputs != given:
            break
        outputs = [*outputs[1:], *outputs[:1]]
    return [replace(e, outputs=own) for e, own in zip(shots.examples, outputs, strict=True)]


def shots_of(others: dict[str, Task]) -> Callable[[Shots], Sequence[Example]]:
    """As many shots of another task, by the name of the first; more of them contain fewer."""

    def drawn(shots: Shots) -> list[Example]:
        other = others[shots.task.name]
        order = random.Random(f"{shots.draw}/{other.name}").sample(other.train, len(other.train))
        return order[: len(shots.examples)]

    return drawn
