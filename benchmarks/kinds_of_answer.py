"""Networks side by side on training tasks that were held out of their training, by the kind of answer.

    python benchmarks/kinds_of_answer.py --network shipped=DIR new=DIR --out DIR

`held_out_tasks.json` lists the tasks by kind of answer: four per kind, drawn with seed 0 from the training
tasks that the shipped network has not seen; leave them out of every training that is judged here. Examples
are the first of each task's `train` list, as nothing was trained on them; example number i is read with
description number i, counted around --descriptions. Each row is kept as OUT/ROW.json and made again only
where that is missing; every network is compared with the first, paired over tasks.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from _machine import DATA, table

from shoal.adapters.lora import LoRA
from shoal.evaluation.evaluate import score
from shoal.files import write_file
from shoal.models.backbone import DEFAULT_MODEL, Backbone, load_backbone
from shoal.tasks.loading import Example, Task, load_task_directory
from shoal.tasks.metrics import bootstrap_difference, exact_match, rouge_l
from shoal.tasks.texts import prompted_input
from shoal.text_to_lora.generator import TextToLoRA

BARE, DESCRIBED, ECHO, MULTI_TASK = "base", "base + description", "echo", "multi-task LoRA"
LONGEST = 200  # tokens of a request
HELD_OUT = Path(__file__).with_name("held_out_tasks.json")


@dataclass(frozen=True)
class Scored:
    """One answer: scores in percent, `nll` in nats per token, `length` by the characters of the reference."""

    answer: str
    reference: str
    rouge_l: float
    exact_match: float
    nll: float
    length: float


@dataclass(frozen=True)
class Asked:
    """An example with the description that it is read with."""

    task: str
    example: Example
    description: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--held-out", type=Path, default=HELD_OUT, help="JSON: kind of answer -> names of tasks")
    add("--network", nargs="*", default=[], metavar="NAME=DIR", help="networks; the first is compared with")
    add(
        "--controls", action="store_true", help="also base, base + description, echo, and the multi-task LoRA"
    )
    add("--data", type=Path, default=DATA)
    add("--examples", type=int, default=12, help="a task")
    add("--descriptions", type=int, default=4, help="a task, in turn")
    add("--tokens", type=int, default=56, help="limit of an answer")
    add("--out", type=Path, required=True)
    args = parser.parse_args()
    kinds: dict[str, list[str]] = json.loads(args.held_out.read_text("utf-8"))
    tasks = load_task_directory(args.data / "tasks", [name for names in kinds.values() for name in names])
    networks = dict(text.split("=", 1) for text in args.network)
    rows = [*([BARE, DESCRIBED, ECHO, MULTI_TASK] if args.controls else []), *networks]
    if any(not (args.out / f"{row}.json").is_file() for row in rows):
        backbone = load_backbone(DEFAULT_MODEL)
        asked = questions(backbone, tasks, args.examples, args.descriptions)
        for row in rows:
            place = args.out / f"{row}.json"
            if not place.is_file():
                first = next(iter(networks.values()), None)
                scored = measure(backbone, row, networks.get(row), first, asked, args.tokens)
                write_file(
                    place, json.dumps({name: [asdict(s) for s in own] for name, own in scored.items()})
                )
    print(page(kinds, {row: read(args.out / f"{row}.json") for row in rows}, list(networks)))


def questions(backbone: Backbone, tasks: Sequence[Task], examples: int, descriptions: int) -> list[Asked]:
    """The first examples of each task that are not too long, with their descriptions in turn."""
    asked = []
    for task in tasks:
        prompts = backbone.encode_prompts([e.input for e in task.train[: 10 * examples]])
        short = [e for e, ids in zip(task.train, prompts, strict=False) if len(ids) <= LONGEST]
        texts = task.descriptions[:descriptions]
        asked += [Asked(task.name, e, texts[i % len(texts)]) for i, e in enumerate(short[:examples])]
    return asked


def measure(
    backbone: Backbone, row: str, network: str | None, first: str | None, asked: Sequence[Asked], tokens: int
) -> dict[str, list[Scored]]:
    """One row's answers by task."""
    examples, requests = [a.example for a in asked], [a.example.input for a in asked]
    adapters: LoRA | list[LoRA] | None = None
    if row == ECHO:
        nan = float("nan")
        answers = [
            (e.input, 100 * rouge_l(e.input, e.outputs), 100 * exact_match(e.input, e.outputs), nan)
            for e in examples
        ]
    else:
        if row == DESCRIBED:
            requests = [prompted_input(a.description, a.example.input) for a in asked]
        elif row == MULTI_TASK:
            adapters = TextToLoRA(DEFAULT_MODEL, hypernetwork=first).emitter.fallback
        elif network is not None:
            adapters = emitted(network, [a.description for a in asked])
        found = score(backbone, examples, requests, adapters, max_new_tokens=tokens, batch_size=24)
        answers = [(a.answer, 100 * a.rouge_l, 100 * a.exact_match, a.nll) for a in found]
    scored: dict[str, list[Scored]] = {}
    for a, (text, *scores) in zip(asked, answers, strict=True):
        reference = a.example.outputs[0]
        own = Scored(text, reference, *scores, length=len(text.strip()) / len(reference))
        scored.setdefault(a.task, []).append(own)
    return scored


def emitted(network: str, descriptions: Sequence[str]) -> list[LoRA]:
    """The adapter of each description; none is taken for nonsense."""
    emitter = TextToLoRA(DEFAULT_MODEL, hypernetwork=Path(network)).emitter
    emitter.checkpoint = replace(emitter.checkpoint, known_tasks=None)
    texts = list(dict.fromkeys(descriptions))
    adapters = [
        adapter
        for start in range(0, len(texts), 16)
        for part in [emitter.emit(texts[start : start + 16]).adapters]
        for adapter in (part.row(i) for i in range(len(texts[start : start + 16])))
    ]
    own = dict(zip(texts, adapters, strict=True))
    return [own[text] for text in descriptions]


def read(place: Path) -> dict[str, list[Scored]]:
    """A row as it was kept."""
    return {n: [Scored(**s) for s in own] for n, own in json.loads(place.read_text("utf-8")).items()}


def page(kinds: Mapping[str, Sequence[str]], rows: Mapping[str, Any], networks: Sequence[str]) -> str:
    """A table for every metric, one column a kind, and differences to the first network."""
    parts = {**kinds, "all": [name for names in kinds.values() for name in names]}
    text = []
    for metric in ("rouge_l", "exact_match", "nll"):
        cells = [
            [row, *(f"{statistics.fmean(means(rows[row], own, metric)):.2f}" for own in parts.values())]
            for row in rows
        ]
        text.append(table([metric, *parts], cells))
    lengths = [[row, *(f"{length(rows[row], own):.2f}" for own in parts.values())] for row in rows]
    text.append(table(["median length ratio", *parts], lengths))
    lines = []
    for row in networks[1:]:
        for metric in ("rouge_l", "exact_match", "nll"):
            cells = []
            for own in parts.values():
                d = bootstrap_difference(means(rows[row], own, metric), means(rows[networks[0]], own, metric))
                cells.append(f"{d.mean:.2f} ({d.low:.2f} to {d.high:.2f})")
            lines.append([f"{row} minus {networks[0]}, {metric}", *cells])
    if lines:
        text.append(table(["paired over tasks", *parts], lines))
    return "\n\n".join(text)


def means(row: Mapping[str, Sequence[Scored]], names: Sequence[str], metric: str) -> list[float]:
    """The mean of a metric on each task."""
    return [statistics.fmean(getattr(s, metric) for s in row[name]) for name in names]


def length(row: Mapping[str, Sequence[Scored]], names: Sequence[str]) -> float:
    """The median over examples of answer length by reference length."""
    return statistics.median(s.length for name in names for s in row[name])


if __name__ == "__main__":
    main()
