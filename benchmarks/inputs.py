"""What names of labels and inputs without answers are worth, on tasks that no training saw.

    python benchmarks/inputs.py                 every row, per task and in the mean
    python benchmarks/inputs.py --task NAME     some tasks; finished ones are kept under --work and reused

Every row with "labels" answers by likelihood, calibrated on the same unlabelled inputs (the first `--inputs`
of the task's `train` list, answers unseen); the label set is what the description names, else what the task
has (told apart in the table). "With meaning" adds what the sentence encoder says of the labels, which is how
the package answers; it also teaches self-trained adapters. "Plain" rows decode greedily. The wrong
description is another closed task's.
With --solved N the adapter is also refined on N solved examples first, as the package does by default. With
--distil the hypernetwork is set aside: a LoRA learns from the prompted base model.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from _machine import DATA, ROOT, machine, table

from shoal.adapters.card import LabelSet
from shoal.adapters.lora import LoRA
from shoal.files import write_file
from shoal.inference.generate import generate_greedy
from shoal.inference.labels import (
    answer_with_labels,
    content_free_priors,
    label_log_likelihoods,
    label_priors,
)
from shoal.tasks.answer_kinds import has_labels, labels_of
from shoal.tasks.files import load_task_json
from shoal.tasks.loading import Example, Task
from shoal.tasks.metrics import bootstrap_interval, exact_match, rouge_l
from shoal.tasks.texts import prompted_input
from shoal.text_to_lora.distillation import distil
from shoal.text_to_lora.few_shot import refine
from shoal.text_to_lora.generator import TextToLoRA
from shoal.text_to_lora.label_sets import read_label_set
from shoal.text_to_lora.sample_inputs import nearest_kind
from shoal.text_to_lora.self_training import SelfTraining, self_train

DESCRIBED, SHARED, WRONG = "base + description", "no description (shared adapter)", "wrong description"
T2L, TRAINED, WRONG_TRAINED = "Text-to-LoRA", "self-trained", "self-trained, wrong description"
SAMPLED = "self-trained on sample inputs"
REFINED = "refined on solved examples"
TEACHER, STUDENT = "prompted base model (teacher)", "distilled adapter"
MOST_LABELS = 16  # larger sets are open answers in practice


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    generator = TextToLoRA()
    names = json.loads((args.data / "splits.json").read_text())[args.split]
    tasks = [load_task_json(args.data / "tasks" / f"{name}.json") for name in args.task or names]
    if not args.distil:
        tasks = [t for t in tasks if has_labels(t) and len(labels_of(t)) <= MOST_LABELS]
    run = distilled if args.distil else closed
    found: list[dict[str, Any]] = []
    for number, task in enumerate(tasks):
        kind = "distil" if args.distil else "closed"
        kept = args.work / f"{kind}-{task.name}-{args.examples}-{args.inputs}-{args.solved}.json"
        if not kept.exists():
            wrong = tasks[(number + len(tasks) // 2) % len(tasks)].descriptions[0]
            started = time.perf_counter()
            record = run(generator, task, wrong, args)
            record["seconds"] = round(time.perf_counter() - started, 1)
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_file(kept, (json.dumps(record, indent=1) + "\n").encode())
        found.append(json.loads(kept.read_text()))
        print(task.name, json.dumps(found[-1]["rows"]), flush=True)
    report = {"machine": machine(generator.backbone.dtype), "split": args.split, "tasks": found}
    print(page(found))
    if args.out:
        write_file(args.out, (json.dumps(report, indent=1) + "\n").encode())


def closed(generator: TextToLoRA, task: Task, wrong: str, args: argparse.Namespace) -> dict[str, Any]:
    """Rows of one closed task."""
    backbone, description = generator.backbone, task.descriptions[0]
    tests, inputs = examples_of(task, args)
    read = read_label_set(description)
    label_set = LabelSet(labels=read or tuple(labels_of(task)))
    scorer = Scorer(generator, tests, inputs, label_set)
    own, other = (generator.generate(text, labels=[]).lora for text in (description, wrong))
    assert generator.checkpoint is not None
    rows = {f"{T2L}, plain": scorer.plain(own)}
    rows |= scorer.labelled(T2L, own) | scorer.labelled(T2L, own, content_free=True)
    similarity = generator.label_similarity
    trained = self_train(backbone, own, label_set, inputs, description=description, similarity=similarity)
    rows[f"{TRAINED}, plain"] = scorer.plain(trained.lora)
    rows |= scorer.labelled(TRAINED, trained.lora)
    guards = {"self_training": guard(trained)}
    if args.sampled:
        kind = nearest_kind(generator.skills.encoder, description)
        found = self_train(
            backbone, own, label_set, kind.inputs, description=description, similarity=similarity
        )
        rows[f"{SAMPLED}, plain"] = scorer.plain(found.lora)
        guards["on_sample_inputs"] = {"kind": kind.kind, **guard(found)}
    rows |= scorer.labelled(DESCRIBED, None, prefix=prompted_input(description, ""))
    rows |= scorer.labelled(SHARED, generator.emitter.fallback)
    rows |= scorer.labelled(WRONG, other)
    if args.solved:
        rows |= refined(generator, own, task, inputs, label_set, scorer, args)
    if args.plain:
        rows[f"{DESCRIBED}, plain"] = scorer.plain(None, prefix=prompted_input(description, ""))
        rows[f"{SHARED}, plain"] = scorer.plain(generator.emitter.fallback)
        rows[f"{WRONG_TRAINED}, plain"] = scorer.plain(
            self_train(backbone, other, label_set, inputs, description=wrong, similarity=similarity).lora
        )
    known = "description" if read else "the task's own"
    largest = max(Counter(e.outputs[0] for e in tests).values()) / len(tests)
    facts = {"labels": len(label_set.labels), "labels_from": known, "largest_reference_share": largest}
    return {"task": task.name, **facts, **guards, "rows": rows}


def refined(
    generator: TextToLoRA,
    lora: LoRA,
    task: Task,
    inputs: Sequence[str],
    label_set: LabelSet,
    scorer: Scorer,
    args: argparse.Namespace,
) -> dict[str, dict[str, float]]:
    """Rows of the adapter after solved examples, and after the inputs on top of them."""
    backbone, description = generator.backbone, task.descriptions[0]
    assert generator.checkpoint is not None
    learned = generator.checkpoint.refining
    half = [e for e in task.train[: len(task.train) // 2] if e.input not in set(inputs)]
    solved = random.Random(2).sample(half, args.solved)
    found = refine(backbone, lora, solved, description=description, learned=learned).lora
    trained = self_train(
        backbone,
        found,
        label_set,
        inputs,
        description=description,
        similarity=generator.label_similarity,
    )
    return {
        f"{REFINED}, plain": scorer.plain(found),
        **scorer.labelled(REFINED, found),
        **scorer.labelled(REFINED, found, content_free=True),
        f"{REFINED}, then {TRAINED}, plain": scorer.plain(trained.lora),
    }


def guard(trained: SelfTraining) -> dict[str, Any]:
    """What self-training did, and why."""
    return {
        "steps": trained.steps,
        "reason": trained.reason,
        "information": round(trained.information, 3),
        "kappa": trained.kappa,
        "agreement": [round(trained.agreement_before, 2), round(trained.agreement_after, 2)],
        "seconds": round(trained.seconds, 1),
    }


def distilled(generator: TextToLoRA, task: Task, wrong: str, args: argparse.Namespace) -> dict[str, Any]:
    """The distilled adapter beside its teacher; the hypernetwork is not used."""
    backbone, description = generator.backbone, task.descriptions[0]
    tests, inputs = examples_of(task, args)
    closed_set = has_labels(task) and len(labels_of(task)) <= MOST_LABELS
    label_set = LabelSet(labels=read_label_set(description) or tuple(labels_of(task))) if closed_set else None
    scorer = Scorer(generator, tests, inputs, label_set)
    targets = backbone.shape.select(("q_proj", "k_proj", "v_proj", "o_proj"), None)
    start = LoRA.identity(targets, 16, 32.0, generator=torch.Generator().manual_seed(0))
    steps = args.steps
    similarity = generator.label_similarity
    found = distil(
        backbone, start, description, inputs, label_set=label_set, similarity=similarity, steps=steps
    )
    prefix = prompted_input(description, "")
    rows = {f"{TEACHER}, plain": scorer.plain(None, prefix), f"{STUDENT}, plain": scorer.plain(found.lora)}
    rows["base model alone, plain"] = scorer.plain(None)
    if label_set:
        rows |= scorer.labelled(TEACHER, None, prefix) | scorer.labelled(STUDENT, found.lora)
    facts = {
        "inputs": found.inputs,
        "steps": found.steps,
        "loss": [round(found.loss_before, 2), round(found.loss_after, 2)],
        "prompt_tokens": round(found.prompt_tokens, 1),
        "prompt_tokens_saved": round(found.prompt_tokens_saved, 1),
        "seconds": round(found.seconds, 1),
    }
    return {
        "task": task.name,
        "labels": len(label_set.labels) if label_set else 0,
        "distilled": facts,
        "rows": rows,
    }


class Scorer:
    """Scores of one task's test examples under any adapter."""

    def __init__(
        self,
        generator: TextToLoRA,
        tests: Sequence[Example],
        inputs: Sequence[str],
        label_set: LabelSet | None,
    ) -> None:
        self._backbone, self._similarity = generator.backbone, generator.label_similarity
        self._tests, self._inputs, self._label_set = tests, inputs, label_set

    def plain(self, lora: LoRA | None, prefix: str = "") -> dict[str, float]:
        """Greedy answers."""
        requests = [prefix + e.input for e in self._tests]
        return self._score(generate_greedy(self._backbone, requests, lora, max_new_tokens=24))

    def labelled(
        self, name: str, lora: LoRA | None, prefix: str = "", *, content_free: bool = False
    ) -> dict[str, dict[str, float]]:
        """Rows of labels by calibrated likelihood, alone and with what the labels mean."""
        assert self._label_set is not None
        labels, backbone, count = self._label_set.labels, self._backbone, len(self._tests)
        read = [*(e.input for e in self._tests), *([] if content_free else self._inputs)]
        prompts = backbone.encode_prompts([prefix + text for text in read])
        scores = label_log_likelihoods(backbone, prompts, labels, lora)
        evidence = self._similarity.evidence(LabelSet(labels=labels), read)
        rows = {}
        for ending, found in ((", labels", scores), (", labels with meaning", scores + evidence)):
            priors = (
                content_free_priors(backbone, labels, lora) if content_free else label_priors(found[count:])
            )
            answers = answer_with_labels(labels, found[:count], priors)
            rows[name + ending + (", content-free" if content_free else "")] = self._score(
                [answer.label for answer in answers]
            )
        return rows

    def _score(self, answers: Sequence[str]) -> dict[str, float]:
        def mean(metric: Callable[[str, Sequence[str]], float]) -> float:
            values = [metric(a, e.outputs) for a, e in zip(answers, self._tests, strict=True)]
            return round(100 * sum(values) / len(values), 1)

        one = max(Counter(answers).values()) / len(answers)
        return {"rougeL": mean(rouge_l), "exact": mean(exact_match), "largest_share": round(one, 2)}


def examples_of(task: Task, args: argparse.Namespace) -> tuple[list[Example], list[str]]:
    """Test examples, and inputs of the `train` list without their answers, both drawn by seed."""
    part = task.test if args.on == "test" else task.train[len(task.train) // 2 :]
    tests = random.Random(0).sample(part, min(args.examples, len(part)))
    train = task.train[: len(task.train) // 2]
    return tests, [e.input for e in random.Random(1).sample(train, min(args.inputs, len(train)))]


def page(found: Sequence[dict[str, Any]]) -> str:
    """The mean of every row over its tasks with intervals, collapse counts, and the rows of every task."""
    names = list(dict.fromkeys(name for record in found for name in record["rows"]))
    lines = []
    for name in names:
        rows = [(r, r["rows"][name]) for r in found if name in r["rows"]]
        cells = [interval([row[metric] for _, row in rows]) for metric in ("rougeL", "exact")]
        loose = [row for r, row in rows if r.get("largest_reference_share", 1) < 0.6]
        fallen = sum(row["largest_share"] > 0.8 for row in loose)
        lines.append([name, *cells, f"{fallen} of {len(loose)}", str(len(rows))])
    head = ["row", "ROUGE-L", "exact match", "tasks of one answer (> 80%)", "tasks"]
    parts = [table(head, lines)]
    for record in found:
        rows = [
            [name, f"{row['rougeL']:.1f}", f"{row['exact']:.1f}", f"{row['largest_share']:.0%}"]
            for name, row in record["rows"].items()
        ]
        facts = {key: value for key, value in record.items() if key not in ("rows", "task")}
        header = [record["task"], "ROUGE-L", "exact match", "largest share"]
        parts.append(f"{table(header, rows)}\n\n{json.dumps(facts)}")
    return "\n\n".join(parts)


def interval(values: Sequence[float]) -> str:
    """A mean with its 95% bootstrap interval over tasks."""
    found = bootstrap_interval(values)
    return f"{found.mean:.1f}" + (f" ({found.low:.1f}, {found.high:.1f})" if found.low is not None else "")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--split", choices=("train", "validation"), default="validation")
    parser.add_argument("--on", choices=("test", "train"), default="test", help="part that is scored")
    parser.add_argument("--task", nargs="*", default=[], help="names; by default all that fit")
    parser.add_argument("--examples", type=int, default=20)
    parser.add_argument("--inputs", type=int, default=16)
    parser.add_argument("--solved", type=int, default=0, help="examples to refine on, in rows of their own")
    parser.add_argument("--steps", type=int, default=60, help="of distillation")
    parser.add_argument("--distil", action="store_true")
    parser.add_argument("--plain", action="store_true", help="also greedy answers of the other rows")
    parser.add_argument(
        "--sampled", action="store_true", help="also self-training on the package's own inputs"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "inputs")
    parser.add_argument("--out", type=Path, help="write the numbers there, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
