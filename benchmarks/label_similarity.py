"""What the meaning of labels adds to their calibrated likelihood, by weight, on training tasks.

    python benchmarks/label_similarity.py

Tasks with small closed label sets that the hypernetwork was not trained on; `--known` takes those that it was
trained on instead, where the language model is at its best and there is most to lose. Inputs of the `train`
lists are asked; the labels are the task's own. Every row is calibrated on content-free texts and texts of
many kinds, and on 16 inputs. Scores of a task are kept under --work and not measured again.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _machine import DATA, ROOT, machine, table

from shoal.adapters.card import LabelSet
from shoal.files import write_file
from shoal.inference.labels import CONTENT_FREE, label_log_likelihoods
from shoal.tasks.answer_kinds import has_labels, labels_of
from shoal.tasks.loading import Task, load_split
from shoal.tasks.metrics import bootstrap_interval
from shoal.tasks.texts import normalise
from shoal.text_to_lora.generator import TextToLoRA
from shoal.text_to_lora.label_similarity import WEIGHT

WEIGHTS = (0.0, WEIGHT / 2, WEIGHT, 1.5 * WEIGHT)
MEANING = "meaning alone"
MOST_LABELS, MOST_OF_ONE = 12, 0.8
LONGEST = 80  # tokens of an input


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    generator = TextToLoRA()
    known = set(generator.checkpoint.known_tasks.names)
    tasks = [t for t in load_split(args.data).train if (t.name in known) == args.known and is_closed(t)]
    found: list[dict[str, Any]] = []
    for task in sorted(tasks, key=lambda t: sum(len(e.input) for e in t.train) / len(t.train))[: args.tasks]:
        kept = args.work / f"{task.name}-{args.examples}.json"
        if not kept.exists():
            record = scores_of(generator, task, args.examples)
            if record is None:
                continue
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_file(kept, json.dumps(record) + "\n")
        found.append({"task": task.name, **rows_of(json.loads(kept.read_text()))})
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    print(page(found))
    print(f"\n{machine(generator.backbone.dtype)}.")


def is_closed(task: Task) -> bool:
    """A few labels, each of at least three examples, none of nearly all."""
    if not has_labels(task) or not 2 <= len(labels_of(task)) <= MOST_LABELS:
        return False
    counts = Counter(normalise(e.outputs[0]) for e in task.train)
    return min(counts.values()) >= 3 and max(counts.values()) <= MOST_OF_ONE * len(task.train)


def scores_of(generator: TextToLoRA, task: Task, examples: int) -> dict[str, Any] | None:
    """Log-likelihoods and cosines of the labels for inputs to ask, to calibrate, and content-free ones."""
    backbone, labels = generator.backbone, tuple(labels_of(task))
    drawn = random.Random(task.name).sample(task.train, len(task.train))
    unique = list({e.input: e for e in drawn}.values())
    lengths = [len(ids) for ids in backbone.encode_prompts([e.input for e in unique])]
    short = [e for e, length in zip(unique, lengths, strict=True) if length <= LONGEST]
    asked, inputs = short[:examples], [e.input for e in short[examples : examples + 16]]
    if len(inputs) < 16:
        return None
    lora = generator.generate(task.descriptions[0], labels=[]).lora
    texts = [*(e.input for e in asked), *inputs, *CONTENT_FREE]
    scores = label_log_likelihoods(backbone, backbone.encode_prompts(texts), labels, lora)
    similarity = generator.label_similarity
    zero = similarity.evidence(LabelSet(labels=labels), texts) / WEIGHT
    names = [normalise(label) for label in labels]
    return {
        "right": [names.index(normalise(e.outputs[0])) for e in asked],
        "scores": scores.tolist(),
        "cosines": zero.tolist(),
    }


def rows_of(record: dict[str, Any]) -> dict[str, float]:
    """Exact match of every row, in percent."""
    right, scores, cosines = (torch.tensor(record[name]) for name in ("right", "scores", "cosines"))
    count = len(right)
    rows: dict[str, float] = {}

    def add(name: str, found: torch.Tensor) -> None:
        rows[name] = 100 * float((found.argmax(-1) == right).float().mean())

    add("likeliest label", scores[:count])
    content_free, inputs = scores[count + 16 :].mean(0), scores[count : count + 16].mean(0)
    near = cosines[count : count + 16].mean(0)
    for weight in WEIGHTS:
        own = scores[:count] + weight * cosines[:count]
        add(f"content-free, weight {weight:g}", own - content_free)
        add(f"16 inputs, weight {weight:g}", own - inputs - weight * near)
    add(f"content-free, {MEANING}", cosines[:count])
    add(f"16 inputs, {MEANING}", cosines[:count] - near)
    return rows


def page(found: Sequence[dict[str, Any]]) -> str:
    """The mean of every row, and its gain over weight 0, over tasks with 95% intervals."""
    lines = []
    for name in [key for key in found[0] if key != "task"]:
        base = f"{name.partition(',')[0]}, weight 0"
        gains = [row[name] - row.get(base, row[name]) for row in found]
        gain = bootstrap_interval(gains) if base in found[0] and base != name else None
        shown = f"{gain.mean:+.1f} ({gain.low:.1f} to {gain.high:.1f})" if gain else ""
        worst = f"{min(gains):+.1f}" if gain else ""
        lines.append([name, f"{sum(row[name] for row in found) / len(found):.1f}", shown, worst])
    return table([f"{len(found)} tasks", "exact match", "gain (95%)", "worst task"], lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, default=DATA)
    add("--examples", type=int, default=40, help="inputs of a task that are asked")
    add("--tasks", type=int, help="take the N with the shortest inputs; default all")
    add("--known", action="store_true", help="tasks that the hypernetwork was trained on")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--work", type=Path, default=ROOT / "runs" / "label_similarity")
    return parser.parse_args()


if __name__ == "__main__":
    main()
