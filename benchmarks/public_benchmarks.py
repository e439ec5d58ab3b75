"""Public test sets: the base model, multi-task LoRA, Text-to-LoRA and Transformer² side by side.

    python benchmarks/public_benchmarks.py

Multiple choice is scored by the likelihood of each choice a character, and by the letter that is generated;
word problems by the last number of the answer. The base model and Transformer² read the description in every
request, adapters get the question alone. Finished cells are kept under --work: a stopped run goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _machine import DATA, ROOT, machine, table

from shoal.adapters.files import load_adapter
from shoal.config import Transformer2Config
from shoal.evaluation.environment import commit
from shoal.evaluation.multiple_choice import ChoiceQuestion, answer_by_likelihood
from shoal.evaluation.predictors import Predictor
from shoal.file_formats import read_json
from shoal.files import write_file
from shoal.integration import SakanaAIIntegration
from shoal.models.backbone import DEFAULT_MODEL, Backbone, load_backbone
from shoal.tasks.loading import Example
from shoal.tasks.metrics import bootstrap_interval
from shoal.tasks.rewards import numeric
from shoal.text_to_lora.generator import TextToLoRA

BASE, MULTI_TASK, TEXT_TO_LORA, SELF_ADAPTING = "base", "multi-task LoRA", "Text-to-LoRA", "Transformer²"
LETTERS = "ABCDEFGH"
Row = Callable[[str], Predictor]  # a description -> who answers


def main() -> None:
    args = parse()
    folder = args.data / "benchmarks"
    paths = sorted(folder.glob("*.json"))
    known = [path.stem for path in paths]
    names = args.only or known
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"no test set {unknown[0]!r} in {folder}; choose from {', '.join(known) or 'none'}")
    backbone = load_backbone(args.base)
    rows, notes = predictors(args, backbone)
    results: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name, row in rows.items():
        for test_set in names:
            started = time.perf_counter()
            cell = measured(args, name, row, read_json(folder / f"{test_set}.json"))
            results.setdefault(name, {})[test_set] = cell
            said = ", ".join(f"{how} {100 * statistics.fmean(v):.1f}" for how, v in cell.items())
            print(f"{name}, {test_set}: {said}; {time.perf_counter() - started:.0f} s", file=sys.stderr)
    print(f"{args.base}; {machine(backbone.dtype)}\n")
    for how, about in (
        ("likelihood", "by likelihood a character"),
        ("letter", "by generated letter"),
        ("number", "word problems, by the last number"),
    ):
        sets = [s for s in names if how in results[BASE][s]]
        if sets:
            print(f"Accuracy in percent, {about}, at most {args.examples} questions each:\n")
            print(table(["", *sets, "mean"], [[n, *cells(r, sets, how)] for n, r in results.items()]) + "\n")
    notes = {TEXT_TO_LORA: "the test set's one description, where papers average several", **notes}
    for name, note in notes.items():
        print(f"* {name}: {note}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--base", default=DEFAULT_MODEL)
    add("--data", type=Path, default=DATA)
    add(
        "--multi-task",
        type=Path,
        help="PEFT directory; default: what the shipped hypernetwork's adapters share",
    )
    add("--hypernetwork", type=Path, help="default: the shipped one")
    add("--only", nargs="*", help="names of test sets; default all")
    add("--examples", type=int, default=100, help="questions of each test set, at most")
    add(
        "--max-new-tokens",
        type=int,
        default=160,
        help="limit of an answer; shorter ones end before the number",
    )
    add("--work", type=Path, default=ROOT / "runs" / "public_benchmarks", help="finished cells")
    return parser.parse_args()


def predictors(args: argparse.Namespace, backbone: Backbone) -> tuple[dict[str, Row], dict[str, str]]:
    """Every row, and what a reader must know of it."""
    generator = TextToLoRA(args.base, hypernetwork=args.hypernetwork)
    if generator.checkpoint is None:
        sys.exit(f"no hypernetwork is trained for {args.base}: give one with --hypernetwork")
    checkpoint = generator.checkpoint
    shared = load_adapter(args.multi_task).lora if args.multi_task else checkpoint.network.offset_lora()
    full_strength = Transformer2Config(expert_vector_dim=None, adaptation_strength=1.0)
    wrapped = SakanaAIIntegration().create_transformer2_model(backbone.model, full_strength)
    rows: dict[str, Row] = {
        BASE: lambda description: Predictor(backbone),
        MULTI_TASK: lambda description: Predictor(backbone, shared),
        TEXT_TO_LORA: lambda description: Predictor(backbone, generator.generate(description).lora),
        SELF_ADAPTING: lambda description: Predictor(backbone, wrapped=wrapped),
    }
    notes = {
        MULTI_TASK: str(args.multi_task or "the adapter that the hypernetwork's adapters differ from"),
        SELF_ADAPTING: f"experts: {', '.join(wrapped.experts)}"
        if wrapped.experts
        else "no experts are released: the mixture is the identity, and answers are the base model's",
    }
    return rows, notes


def measured(
    args: argparse.Namespace, name: str, row: Row, test_set: dict[str, Any]
) -> dict[str, list[float]]:
    """How -> 0 or 1 of every question, from the work directory if it is there."""
    slug = re.sub(r"[^a-z0-9]+", "-", f"{name} {test_set['name']}".lower())
    depends_on = (args.base, args.hypernetwork, args.multi_task, args.examples, args.max_new_tokens, commit())
    key = hashlib.sha256(repr(depends_on).encode()).hexdigest()[:12]
    path = args.work / f"{slug}-{key}.json"
    if path.is_file():
        return read_json(path)
    predictor = row(test_set["description"])
    before = f"{test_set['description']}\n\n" if name in (BASE, SELF_ADAPTING) else ""
    records = test_set["test"][: args.examples]
    score = multiple_choice if test_set["kind"] == "multiple_choice" else word_problems
    scores = score(predictor, records, before, args.max_new_tokens)
    write_file(path, json.dumps(scores))
    return scores


def multiple_choice(
    predictor: Predictor, records: list[dict[str, Any]], before: str, limit: int
) -> dict[str, list[float]]:
    questions = [ChoiceQuestion(r["question"], tuple(r["choices"]), r["answer"]) for r in records]
    likely = answer_by_likelihood(predictor, questions, lambda q: before + q.question, batch_size=16)
    said = predictor.answers([before + lettered(q) for q in questions], max_new_tokens=4, batch_size=16)
    letters = [float(letter_of(a) == LETTERS[q.answer]) for a, q in zip(said, questions, strict=True)]
    return {"likelihood": [float(r.right) for r in likely], "letter": letters}


def word_problems(
    predictor: Predictor, records: list[dict[str, Any]], before: str, limit: int
) -> dict[str, list[float]]:
    requests = [before + r["question"] for r in records]
    said = predictor.answers(requests, max_new_tokens=limit, batch_size=16)
    examples = [Example(r["question"], (str(r["answer"]),)) for r in records]
    return {"number": [numeric(e, a) for e, a in zip(examples, said, strict=True)]}


def lettered(question: ChoiceQuestion) -> str:
    choices = "\n".join(f"{LETTERS[i]}. {choice}" for i, choice in enumerate(question.choices))
    return f"{question.question}\n{choices}\nAnswer with the letter of the right choice."


def letter_of(answer: str) -> str | None:
    """The first letter that stands alone, as in `B`, `(B)` or `B. ice`."""
    found = re.search(rf"\b([{LETTERS}])\b", answer)
    return found[1] if found else None


def cells(results: dict[str, dict[str, list[float]]], sets: list[str], how: str) -> list[str]:
    """Each test set with its 95% interval over questions, and the mean of their means."""
    texts = []
    for test_set in sets:
        i = bootstrap_interval(results[test_set][how])
        around = "" if i.low is None else f" ({100 * i.low:.0f} to {100 * i.high:.0f})"
        texts.append(f"{100 * i.mean:.1f}{around}")
    mean = statistics.fmean(statistics.fmean(results[s][how]) for s in sets)
    return [*texts, f"{100 * mean:.1f}"]


if __name__ == "__main__":
    main()
