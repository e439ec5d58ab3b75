"""Our evaluator beside one that we did not write: the LM evaluation harness, on an adapter of ours.

    python benchmarks/lm_eval_harness.py

The adapter is written as a PEFT directory and goes to the harness as `peft=DIR`. Tasks in words are scored
by exact match and chrF, multiple choice by likelihood. Both evaluators get the same examples, in the chat
template, and compute in float32. Exits with 1 where they differ by more than --tolerance, or where every
figure of a task is 0, which would be no check.

`acc_norm` is shown and not held to the tolerance: the harness moves the newline that ends the template's
prompt into the continuation (lm_eval.api.model, `_encode_pair`) and counts it as part of every choice. That
adds one constant to all choices of a question, which `acc` does not see, and which a division by length
turns into a preference for longer choices. Needs `pip install 'shoal[harness,evaluate]'`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the tasks and the model are local; nothing is asked of a hub

import torch
from _machine import DATA, machine, table

from shoal.adapters.files import load_adapter
from shoal.evaluation.multiple_choice import ChoiceQuestion, answer_by_likelihood
from shoal.evaluation.predictors import Predictor
from shoal.file_formats import read_json
from shoal.models.backbone import DEFAULT_MODEL, Backbone, load_backbone
from shoal.models.sources import find_model
from shoal.tasks.loading import Task, load_task_json
from shoal.tasks.metrics import chrf, exact_match
from shoal.text_to_lora.generator import TextToLoRA

SHOWN_ONLY = {"acc_norm"}
TASKS = ("custrev_complaint_or_praise", "gazetteers_name_kind", "arc_easy")


def main() -> None:
    args = parse()
    backbone = load_backbone(args.base, dtype=torch.float32)
    rows, apart = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for name in args.tasks:
            config, score, description = task_of(args, name)
            adapter = args.adapter or written(args, Path(folder) / name, description)
            ours, theirs = score(backbone, adapter), harness(args, config, adapter)
            count = len(config["custom_dataset"]()["test"])
            for metric, figure in ours.items():
                if metric not in SHOWN_ONLY:
                    apart = max(apart, abs(figure - theirs[metric]))
                rows.append([name, metric, str(count), f"{figure:.2f}", f"{theirs[metric]:.2f}"])
            if not any({**ours, **theirs}.values()):
                sys.exit(f"every figure of {name} is 0, which checks nothing: choose another task")
    print(f"{args.base} with {args.adapter or 'an adapter from the description'}; {machine(torch.float32)}\n")
    print(table(["task", "metric", "examples", "ours", "lm-eval"], rows))
    print(f"\nlargest difference, without {', '.join(SHOWN_ONLY)}: {apart:.2f} points")
    sys.exit(apart > args.tolerance)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--base", default=DEFAULT_MODEL)
    add("--data", type=Path, default=DATA)
    add("--adapter", type=Path, help="PEFT directory; default: one from each task's description")
    add("--hypernetwork", type=Path, help="default: the shipped one")
    add("--tasks", nargs="+", default=TASKS, help="of tasks/ or of benchmarks/ with choices")
    add("--examples", type=int, default=60, help="test examples of each task, at most")
    add("--max-new-tokens", type=int, default=12)
    add("--batch-size", type=int, default=16)
    add("--tolerance", type=float, default=0.5, help="points")
    return parser.parse_args()


def written(args: argparse.Namespace, folder: Path, description: str) -> Path:
    TextToLoRA(args.base, hypernetwork=args.hypernetwork).generate(description).save(folder)
    return folder


def task_of(args: argparse.Namespace, name: str) -> tuple[dict[str, Any], Any, str]:
    """(the harness's configuration, our score of an adapter directory, the description)."""
    path = args.data / "tasks" / f"{name}.json"
    if path.is_file():
        return in_words(args, load_task_json(path))
    return with_choices(args, read_json(args.data / "benchmarks" / f"{name}.json"))


def in_words(args: argparse.Namespace, task: Task) -> tuple[dict[str, Any], Any, str]:
    examples = task.test[: args.examples]
    records = [{"input": e.input, "outputs": list(e.outputs)} for e in examples]
    config = {
        **shared(task.name, records),
        "output_type": "generate_until",
        "doc_to_text": "{{input}}",
        "doc_to_target": lambda record: record["outputs"][0],
        "generation_kwargs": {
            "until": ["<|im_end|>"],
            "max_gen_toks": args.max_new_tokens,
            "do_sample": False,
        },
        # What our exact match leaves out of account: case, space around, and one full stop at the end.
        "metric_list": [
            {
                "metric": "exact_match",
                "ignore_case": True,
                "regexes_to_ignore": [r"^\s+|\s+$", r"\.$"],
            },
            {"metric": "chrf"},
        ],
    }

    def score(backbone: Backbone, adapter: Path) -> dict[str, float]:
        answers = adapted(backbone, adapter).answers(
            [e.input for e in examples], max_new_tokens=args.max_new_tokens, batch_size=args.batch_size
        )
        references = [e.outputs[:1] for e in examples]
        right = [exact_match(a, r) for a, r in zip(answers, references, strict=True)]
        return {"exact_match": 100 * sum(right) / len(right), "chrf": chrf(answers, references).score}

    return config, score, task.descriptions[0]


def with_choices(args: argparse.Namespace, test_set: Mapping[str, Any]) -> tuple[dict[str, Any], Any, str]:
    records = test_set["test"][: args.examples]
    config = {
        **shared(test_set["name"], records),
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": lambda record: record["choices"],
        "doc_to_target": lambda record: record["answer"],
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    questions = [ChoiceQuestion(r["question"], tuple(r["choices"]), r["answer"]) for r in records]

    def score(backbone: Backbone, adapter: Path) -> dict[str, float]:
        results = answer_by_likelihood(adapted(backbone, adapter), questions, batch_size=args.batch_size)
        right = sum(r.likeliest == q.answer for r, q in zip(results, questions, strict=True))
        share = 100 / len(results)
        return {"acc": share * right, "acc_norm": share * sum(r.right for r in results)}

    return config, score, test_set["description"]


def shared(name: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    from datasets import Dataset

    def data(**ignored: Any) -> dict[str, Dataset]:
        return {"test": Dataset.from_list(records)}

    return {"task": f"shoal_{name}", "custom_dataset": data, "test_split": "test", "num_fewshot": 0}


def adapted(backbone: Backbone, adapter: Path) -> Predictor:
    return Predictor(backbone, load_adapter(adapter).lora)


def harness(args: argparse.Namespace, config: dict[str, Any], adapter: Path) -> dict[str, float]:
    """The harness's figures, in points of 100."""
    from lm_eval import simple_evaluate

    found = simple_evaluate(
        model="hf",
        model_args={
            "pretrained": find_model(args.base).location,
            "peft": str(adapter),
            "dtype": "float32",
        },
        tasks=[config],
        batch_size=args.batch_size,
        device="cpu",
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    names = [entry["metric"] for entry in config["metric_list"]]
    figures = {name: float(found["results"][config["task"]][f"{name},none"]) for name in names}
    return {name: figure if name == "chrf" else 100 * figure for name, figure in figures.items()}


if __name__ == "__main__":
    main()
