"""The LM evaluation harness through the service beside its own `hf` backend, on one task of likelihoods.

    python benchmarks/lm_eval_service.py [--examples 100]

The task is a YAML file over a local JSON file, as anyone writes one. `local-completions` asks `shoal serve`
for the log probabilities of each choice, `hf` computes them from the same model directory, both in float32.
Exits with 1 where the accuracies differ by more than --tolerance, with a line where the data are missing.
Needs `pip install 'shoal[harness,serve]'`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the task and the model are local; nothing is asked of a hub

import torch
from _machine import DATA, machine, table
from attacks import served

from shoal.file_formats import read_json
from shoal.models.backbone import DEFAULT_MODEL
from shoal.models.sources import find_model

TASK = """\
task: shoal_{name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
num_fewshot: 0
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
"""
METRICS = ("acc", "acc_norm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default=DEFAULT_MODEL)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--task", default="arc_easy", help="of benchmarks/, with choices")
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--tolerance", type=float, default=0.5, help="points")
    args = parser.parse_args()
    source = args.data / "benchmarks" / f"{args.task}.json"
    if not source.is_file():
        sys.exit(f"no {source}: name another folder with --data")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"] = folder  # read when `datasets` is imported
        task = write_task(Path(folder), args.task, read_json(source)["test"][: args.examples])
        own = {"pretrained": find_model(args.base).location, "dtype": "float32"}
        expected, own_scores = scores(task, "hf", own, batch_size=args.batch_size, device="cpu")
        with served(args.base, "--dtype", "float32") as (_, target):
            os.environ["OPENAI_API_KEY"] = target.other
            api = {"base_url": f"{target.url}/v1/completions", "model": target.model}
            api |= {"tokenizer": own["pretrained"], "tokenizer_backend": "huggingface"}
            found, api_scores = scores(task, "local-completions", api, batch_size=args.batch_size)
    print(f"{args.base}, {args.examples} questions of {args.task}; {machine(torch.float32)}\n")
    rows = [[name, f"{expected[name]:.2f}", f"{found[name]:.2f}"] for name in METRICS]
    print(table(["metric", "lm-eval's hf", "lm-eval through the service"], rows))
    apart = max(abs(expected[name] - found[name]) for name in METRICS)
    nats = max(abs(a - b) for a, b in zip(own_scores, api_scores, strict=True))
    print(f"\nlargest difference: {apart:.2f} points; of {len(own_scores)} log-likelihoods: {nats:.4f} nats")
    sys.exit(apart > args.tolerance)


def write_task(folder: Path, name: str, records: list[dict[str, Any]]) -> Path:
    """The YAML of a task, beside its questions."""
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, file=file), "utf-8")
    return folder / f"{name}.yaml"


def scores(
    task: Path, model: str, options: dict[str, Any], **settings: Any
) -> tuple[dict[str, float], list[float]]:
    """(the harness's figures, in points of 100, the log-likelihood of every choice)."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    name = f"shoal_{task.stem}"
    known = TaskManager(include_path=str(task.parent), include_defaults=False)
    found = simple_evaluate(
        model=model, model_args=options, tasks=[name], task_manager=known, bootstrap_iters=0, **settings
    )
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    figures = {metric: 100 * float(found["results"][name][f"{metric},none"]) for metric in METRICS}
    return figures, [score for sample in samples for ((score, _),) in sample["resps"]]


if __name__ == "__main__":
    main()
