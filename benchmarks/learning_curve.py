"""How a chain of trainings learns: unseen loss and score by training tokens, and where the ceiling is.

    python benchmarks/learning_curve.py --network DIR ... --run DIR ...

Networks and runs are named in the order of the chain, but the one to compare with the bounds last; the tokens
of each are those of all trainings before it, from its provenance. Networks are scored as the row of right
descriptions of unseen_tasks.py, whose rows are kept under --work and reused, as is that of another task's
description. --report measures nothing and leaves out what is not there. Writes
docs/results/learning_curve.json, .md and .png.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from _learning_curve_page import draw, fits, page
from _machine import DATA, ROOT, machine
from _unseen_tasks_page import DESCRIBED_MULTI_TASK, MULTI_TASK, ORACLE
from _unseen_tasks_rows import Conditions, Repetition, measure, say, tensors_of, tokens_of

from shoal.evaluation.baselines import OTHER, RIGHT, right_description
from shoal.evaluation.evaluate import MethodResult, Report, mean_result
from shoal.evaluation.reports import METRICS
from shoal.file_formats import read_json, read_tensors
from shoal.files import write_file
from shoal.models.backbone import DEFAULT_MODEL, load_shape, pick_dtype
from shoal.tasks.loading import Task, load_split
from shoal.tasks.metrics import Interval, bootstrap_difference, bootstrap_interval
from shoal.text_to_lora.checkpoint import CONFIG_FILE, KNOWN_TASKS_FILE, WEIGHTS_FILE
from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.text_to_lora.generator import TextToLoRA

BOUNDS = (MULTI_TASK, DESCRIBED_MULTI_TASK, ORACLE)


def main() -> None:
    args = parse()
    tasks = load_split(args.data).validation[: args.tasks]
    base_model = load_shape(DEFAULT_MODEL).base_model
    dtype = pick_dtype(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    conditions = Conditions(tasks, args.examples, args.max_new_tokens, base_model, dtype, args.work)
    networks = [network for folder in args.network if (network := network_facts(args, conditions, folder))]
    sittings = [sitting for run in args.run if (sitting := sitting_facts(run))]
    if not networks or not sittings:
        sys.exit("at least 1 network with its rows and 1 run that is finished are needed; name them")
    facts = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": machine(dtype),
        "base_model": base_model,
        "tasks": [t.name for t in tasks],
        "examples": args.examples,
        "descriptions": args.descriptions,
        "max_new_tokens": args.max_new_tokens,
        "networks": networks,
        "sittings": sittings,
        "bounds": bounds(args, tasks, networks[-1]),
        "fits": fits(networks),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    write_file(args.out / "learning_curve.json", json.dumps(facts, indent=1) + "\n")
    write_file(args.out / "learning_curve.md", page(facts))
    draw(facts, args.out / "learning_curve.png")
    print(page(facts))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--network", type=Path, nargs="+", required=True, help="directories of hypernetworks, in order")
    add(
        "--run",
        type=Path,
        nargs="+",
        required=True,
        help="directories of runs; DIR.run is that of network DIR",
    )
    add("--data", type=Path, default=DATA)
    add("--work", type=Path, default=ROOT / "runs" / "unseen_tasks", help="finished rows of unseen_tasks.py")
    add("--bounds", type=Path, default=ROOT / "docs" / "results" / "report.json", help="its report")
    add("--out", type=Path, default=ROOT / "docs" / "results")
    add("--tasks", type=int, help="take the first N validation tasks; default all")
    add("--examples", type=int, default=60, help="test examples a task")
    add("--max-new-tokens", type=int, default=40, help="limit of an answer")
    add("--descriptions", type=int, default=3, help="right descriptions a task, averaged")
    add("--report", action="store_true", help="only write the results of the rows that are there")
    return parser.parse_args()


def network_facts(args: argparse.Namespace, conditions: Conditions, folder: Path) -> dict[str, Any] | None:
    """A network's place in the chain and its scores; None where rows are missing and none may be measured."""
    stored = read_json(folder / CONFIG_FILE)
    provenance, tasks = stored["provenance"], conditions.tasks
    tokens = tokens_of(provenance)
    if tokens is None:
        sys.exit(f"{folder} does not say how many tokens it was trained on; leave it out")
    with readable(folder) as place:
        results = rows(args, conditions, folder, place)
        replaced = taken_for_nonsense(place, tasks, args.descriptions)
    *right, other = results
    own = [result for result in right if result]
    if len(own) < len(right):
        return None
    result, averaged = mean_result(RIGHT, own), provenance.get("averaged_with") or []
    return {
        "step": step_of(provenance),
        "mean_of": sorted({*map(step_of, averaged), step_of(provenance) - 1}) if averaged else [],
        "head": stored["architecture"]["head"],
        "tokens": tokens,
        "training_tasks": provenance.get("tasks"),
        "intervals": {metric: asdict(interval) for metric, interval in result.intervals.items()},
        "margin": asdict(margin(other, result, tasks)) if other else None,
        "taken_for_nonsense": replaced,
        "scores": result.scores,
    }


def margin(other: MethodResult, right: MethodResult, tasks: Sequence[Task]) -> Interval:
    """How much worse another task's description is, in nats per token, paired over tasks."""
    wrong, own = ([r.scores["nll"][t.name] for t in tasks] for r in (other, right))
    return bootstrap_difference(wrong, own)


def rows(
    args: argparse.Namespace, conditions: Conditions, folder: Path, place: Path
) -> list[MethodResult | None]:
    """Results of the right descriptions, then of another task's; None for what is not there.

    The latter is never measured here. `place` is where the network can be read, `folder` what it is called.
    """
    digest = tensors_of(place)
    right = [f"{digest} description {i}" for i in range(args.descriptions)]
    paths = [*(conditions.path(RIGHT, name) for name in right), conditions.path(OTHER, f"{digest} ")]
    missing = [i for i in range(args.descriptions) if not paths[i].is_file()]
    say(f"{folder}: {len(missing)} of {args.descriptions} rows are not measured yet")
    if missing and not args.report:
        generator = TextToLoRA(DEFAULT_MODEL, hypernetwork=place)
        for i in missing:
            method = right_description(generator.emitter, i)
            measure(conditions, generator.backbone, Repetition(method, right[i]), [])
    kept = [json.loads(path.read_text("utf-8")) if path.is_file() else None for path in paths]
    return [report and Report.from_json(report).results[0] for report in kept]


@contextmanager
def readable(folder: Path) -> Iterator[Path]:
    """The network's directory; where its known tasks lack a probe for nonsense, a copy that has none."""
    known = folder / KNOWN_TASKS_FILE
    if not known.is_file() or "sense" in read_tensors(known):
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        stored = read_json(folder / CONFIG_FILE)
        left = {k: v for k, v in stored.items() if k not in {"known_tasks", "multi_task"}}
        (Path(place) / CONFIG_FILE).write_text(json.dumps(left), "utf-8")
        shutil.copyfile(folder / WEIGHTS_FILE, Path(place) / WEIGHTS_FILE)
        yield Path(place)


def taken_for_nonsense(folder: Path, tasks: Sequence[Task], descriptions: int) -> int | None:
    """How many of the right descriptions got the adapter of nonsense; None without a probe."""
    if not (folder / KNOWN_TASKS_FILE).is_file():
        return None
    sense = read_tensors(folder / KNOWN_TASKS_FILE)["sense"]
    texts = [t.descriptions[i % len(t.descriptions)] for t in tasks for i in range(descriptions)]
    directions = torch.nn.functional.normalize(TaskEncoder().encode(texts).float(), dim=-1)
    return int((directions @ sense[:-1].float() + sense[-1].float() < 0).sum())


def sitting_facts(run: Path) -> dict[str, Any] | None:
    """The unseen loss and margin of a run by the chain's tokens, spread evenly over its steps."""
    network = run.with_suffix("")
    if not (network / CONFIG_FILE).is_file():
        say(f"{run}: {network} is not there, so the run is not finished; left out")
        return None
    provenance = read_json(network / CONFIG_FILE)["provenance"]
    steps, own, whole = provenance["steps"], provenance["tokens"], tokens_of(provenance)
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
    if whole is None or logged[-1]["step"] != steps:
        sys.exit(
            f"{run} has {logged[-1]['step']} steps, {network} {steps} and {whole} tokens; name its own run"
        )
    watched = {row["step"]: row for row in logged if "unseen_margin" in row}  # a resumed run repeats steps
    return {
        "step": step_of(provenance),
        "steps": steps,
        "seed": provenance["seed"],
        "tokens_before": whole - own,
        "tokens": own,
        "points": [
            {
                "step": step,
                "tokens": round(whole - own + own * step / steps),
                "unseen_loss": row["unseen_loss"],
                "unseen_margin": row["unseen_margin"],
            }
            for step, row in sorted(watched.items())
        ],
    }


def step_of(provenance: Mapping[str, Any]) -> int:
    """Trainings and averages up to a network, itself included: the numbers of the shipped network's card."""
    start = provenance.get("start")
    return (step_of(start) if start else 0) + 1 + bool(provenance.get("averaged_with"))


def bounds(args: argparse.Namespace, tasks: Sequence[Task], last: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the last network is held against, from the report of unseen_tasks.py, on the same examples."""
    report = Report.from_json(read_json(args.bounds))
    lacking = {t.name for t in tasks} - set(report.tasks)
    if lacking or report.examples != args.examples:
        sys.exit(
            f"{args.bounds} has {report.examples} examples of {len(report.tasks)} tasks, not {args.examples} "
            f"of these {len(tasks)}; name the report of a run with the same limits"
        )
    found = []
    for name in BOUNDS:
        scores = {metric: [report.result(name).scores[metric][t.name] for t in tasks] for metric in METRICS}
        own = {metric: [last["scores"][metric][t.name] for t in tasks] for metric in METRICS}
        found.append(
            {
                "name": name,
                "trained_on": report.notes["trained_on"][name],
                "intervals": {m: asdict(bootstrap_interval(values)) for m, values in scores.items()},
                "last_minus_it": {m: asdict(bootstrap_difference(own[m], scores[m])) for m in METRICS},
            }
        )
    return found


if __name__ == "__main__":
    main()
