"""Measured rows of unseen tasks, kept in files by all that decides them, for the scripts that share them.

Knows methods, limits and digests; nothing of which rows a table has.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from shoal.adapters.lora import LoRA
from shoal.evaluation.baselines import described_by
from shoal.evaluation.evaluate import Method, MethodResult, Report, evaluate
from shoal.evaluation.label_sets import SUFFIX
from shoal.files import write_file
from shoal.models.backbone import Backbone
from shoal.tasks.loading import Task
from shoal.text_to_lora.emission import Emitter
from shoal.text_to_lora.label_similarity import WEIGHT, LabelSimilarity
from shoal.text_to_lora.nonsense import vocabulary, word_salad

SALAD = "Text-to-LoRA, random words"


@dataclass(frozen=True)
class Repetition:
    """One evaluation: a method, and whatever its scores depend on besides tasks and limits.

    With `labels` it has a second row, answered from label sets.
    """

    method: Method
    depends_on: str = ""
    labels: bool = False


@dataclass(frozen=True)
class Conditions:
    """What every row of one measurement shares.

    Attributes:
        tasks: whose `test` lists are used.
        examples: test examples a task, at most.
        max_new_tokens: limit of an answer.
        base_model: hub id of the frozen model.
        dtype: of its weights.
        work: folder whose `results` holds the rows.
        label_sets: task name -> its labels, for rows that are also answered from them.
        similarity: what the meaning of labels adds in these rows.
    """

    tasks: Sequence[Task]
    examples: int
    max_new_tokens: int
    base_model: str
    dtype: torch.dtype
    work: Path
    label_sets: Mapping[str, Sequence[str]] = field(default_factory=dict)
    similarity: LabelSimilarity | None = None

    def path(self, name: str, depends_on: str) -> Path:
        """Where the row of a method of this name is kept."""
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        limits = (self.examples, self.max_new_tokens, self.dtype, self.base_model, "all answers")
        return (
            self.work
            / "results"
            / f"{slug}-{digest(*(t.name for t in self.tasks), *limits, depends_on)}.json"
        )


def measure(
    conditions: Conditions, backbone: Backbone, repetition: Repetition, tokens: list[int]
) -> tuple[tuple[MethodResult, ...], float]:
    """(results, mean training tokens of the LoRAs that it trains), from their file if that is there.

    `tokens` is where the method's adapters note their training tokens, one number each.
    """
    method, label_sets = repetition.method, conditions.label_sets if repetition.labels else {}
    paths = [conditions.path(method.name, repetition.depends_on)]
    if label_sets:
        paths.append(conditions.path(method.name + SUFFIX, f"{repetition.depends_on}{label_sets!r}{WEIGHT}"))
    if not all(path.is_file() for path in paths):
        started = time.perf_counter()
        tokens.clear()
        report = evaluate(
            backbone,
            conditions.tasks,
            [method],
            samples=conditions.examples,
            examples=conditions.examples,
            max_new_tokens=conditions.max_new_tokens,
            label_sets=label_sets,
            similarity=conditions.similarity,
        )
        spent = sum(tokens) / len(tokens) if tokens else 0.0
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        for path, result in zip(paths, report.results, strict=True):
            row = replace(report, results=(result,), notes={"tokens": spent})
            write_file(path, json.dumps(row.to_json()))
        say(f"  {method.name}: {time.perf_counter() - started:.0f} s")
    reports = [Report.from_json(json.loads(path.read_text("utf-8"))) for path in paths]
    return tuple(report.results[0] for report in reports), reports[0].notes["tokens"]


def tokens_of(provenance: Mapping[str, Any]) -> int | None:
    """Tokens of all steps of a hypernetwork's training, and of what it started from."""
    if "scores" in provenance:  # an adapter's card
        return int(provenance["scores"]["training tokens"])
    own, start = provenance.get("tokens"), provenance.get("start")
    if own is None or start is None:
        return own
    before = tokens_of(start)
    return None if before is None else own + before


def content(lora: LoRA) -> str:
    """A digest of an adapter's numbers."""
    tensors = [
        f.float().contiguous().numpy().tobytes() for name in sorted(lora.factors) for f in lora.factors[name]
    ]
    return digest(lora.alpha, *sorted(lora.factors), *tensors)


def tensors_of(folder: Path) -> str:
    """A digest of a hypernetwork's tensors."""
    return digest(*(path.read_bytes() for path in sorted(folder.glob("*.safetensors"))))


def digest(*parts: Any) -> str:
    """12 hexadecimal digits that name these parts together."""
    whole = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        whole.update(len(data).to_bytes(8, "big") + data)
    return whole.hexdigest()[:12]


def say(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


def word_salad_description(emitter: Emitter, tasks: Sequence[Task], seed: int = 0) -> Method:
    """Adapters from random words of the tasks' descriptions, others for every task."""
    words = vocabulary([task.descriptions for task in tasks])
    return described_by(SALAD, emitter, lambda task: word_salad(f"{seed}/{task.name}", words))
