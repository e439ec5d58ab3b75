"""Tasks that no training saw: Text-to-LoRA beside every control, with intervals over tasks.

    python benchmarks/unseen_tasks.py --multi-task DIR

Rows that are finished are kept under --work and reused, so a run that was stopped goes on. A full run (every
row, every task) writes docs/results/report.json and report.md; any other writes them under --work, unless
--out says where.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from _machine import DATA, ROOT, machine
from _unseen_tasks_page import (
    BASE,
    DESCRIBED,
    DESCRIBED_MULTI_TASK,
    ECHO,
    FEW_SHOT,
    INPUTS,
    MULTI_TASK,
    NEAREST,
    ORACLE,
    SHOTS,
    TUNED_ORACLE,
    answer_facts,
    page,
)
from _unseen_tasks_rows import (
    SALAD,
    Conditions,
    Repetition,
    content,
    digest,
    measure,
    say,
    tensors_of,
    tokens_of,
    word_salad_description,
)

from shoal.adapters.card import LabelSet
from shoal.adapters.files import load_adapter
from shoal.adapters.lora import LoRA
from shoal.config import LoraTrainingConfig
from shoal.evaluation.baselines import (
    GIBBERISH,
    NONE,
    OTHER,
    RIGHT,
    gibberish_description,
    nearest_tasks,
    no_description,
    other_description,
    right_description,
)
from shoal.evaluation.evaluate import Method, MethodResult, Report, described, echo, mean_result, with_shots
from shoal.evaluation.label_sets import SUFFIX, described_label_sets
from shoal.evaluation.reports import METRICS, cell
from shoal.files import write_file
from shoal.models.backbone import DEFAULT_MODEL, Backbone, load_backbone
from shoal.tasks.loading import Split, Task, load_split
from shoal.text_to_lora.encoders.sentence import TaskEncoder
from shoal.text_to_lora.few_shot import MAX_TOKENS, REFINING, refine
from shoal.text_to_lora.generator import TextToLoRA
from shoal.text_to_lora.label_similarity import WEIGHT
from shoal.text_to_lora.self_training import self_train
from shoal.training.lora import train_lora

SHIPPED = ROOT / "shoal" / "weights" / DEFAULT_MODEL
ROWS = (
    *(ECHO, BASE, DESCRIBED, SHOTS, MULTI_TASK, DESCRIBED_MULTI_TASK, NEAREST, ORACLE, TUNED_ORACLE),
    *(RIGHT, INPUTS, OTHER, GIBBERISH, SALAD, NONE, FEW_SHOT),
)
EXAMPLES_TO_REFINE = 16
INPUTS_TO_TRAIN = 16


class LoraLibrary:
    """LoRAs of single tasks, each trained when it is first asked for and kept under the work directory."""

    def __init__(self, backbone: Backbone, like: LoRA, config: LoraTrainingConfig, args: argparse.Namespace):
        self._backbone, self._like, self._config = backbone, like, config
        self._start = None if args.from_scratch else like
        self._folder = args.work / "loras"
        self._targets = [t for t in backbone.shape.targets if t.name in like.factors]
        self.key = digest(config.model_dump_json(), args.from_scratch, content(like))
        self.tokens: list[int] = []

    def lora(self, task: Task) -> LoRA:
        """The task's LoRA, trained on its `train` list."""
        started = time.perf_counter()
        lora, summary = train_lora(
            self._backbone,
            [task],
            self._targets,
            self._folder / f"{task.name}-{self.key}",
            self._config,
            rank=self._like.rank,
            alpha=self._like.alpha,
            start=self._start,
            show_progress=False,
        )
        self.tokens.append(summary.tokens)
        say(f"  LoRA of {task.name}: loss {summary.final_loss:.2f}, {time.perf_counter() - started:.0f} s")
        return lora


def main() -> None:
    args = parse()
    split = load_split(args.data)
    tasks = getattr(split, args.split)[: args.tasks]
    label_sets = described_label_sets(tasks)
    backbone = load_backbone(args.base)
    generators = [TextToLoRA(backbone=backbone, hypernetwork=folder) for folder in args.hypernetwork]
    multi_task = load_adapter(args.multi_task).lora if args.multi_task else None
    config = LoraTrainingConfig(
        steps=args.lora_steps,
        batch_size=args.lora_batch,
        learning_rate=args.lora_rate,
        checkpoint_every=args.lora_steps,
        seed=args.seed,
    )
    start = load_adapter(args.lora_start).lora if args.lora_start else multi_task
    like = start or generators[0].checkpoint.network.offset_lora()
    library = LoraLibrary(backbone, like, config, args)
    tuned = LoraLibrary(backbone, like, config.model_copy(update={"learning_rate": args.oracle_rate}), args)
    shots = Method(SHOTS, request=with_shots(3, args.seed))
    rows = {ECHO: [Repetition(echo())], BASE: [Repetition(Method(BASE), labels=True)]}
    rows[DESCRIBED] = [Repetition(Method(DESCRIBED, request=described), labels=True)]
    rows[SHOTS] = [Repetition(shots, f"seed {args.seed}")]
    if multi_task:
        method = Method(MULTI_TASK, lambda task: multi_task)
        rows[MULTI_TASK] = [Repetition(method, content(multi_task), labels=True)]
    if args.described_multi_task:
        prompted = load_adapter(args.described_multi_task).lora
        method = Method(DESCRIBED_MULTI_TASK, lambda task: prompted, described)
        rows[DESCRIBED_MULTI_TASK] = [Repetition(method, content(prompted), labels=True)]
    rows |= single_task_rows(args, library, tuned, split, tasks)
    rows |= description_rows(args, generators, tasks)
    rows[INPUTS] = [inputs_row(args, backbone, generators[0], label_sets)]
    rows[FEW_SHOT] = [few_shot_row(args, backbone, generators[0])]

    limits = (args.examples, args.max_new_tokens)
    model = (backbone.shape.base_model, backbone.dtype)
    conditions = Conditions(tasks, *limits, *model, args.work, label_sets, generators[0].label_similarity)
    results, trained_on, spread = [], training(args, generators), None
    for name, repetitions in rows.items():
        if name in args.without:
            continue
        noted = tuned.tokens if name == TUNED_ORACLE else library.tokens
        measured = [measure(conditions, backbone, r, noted) for r in repetitions]
        for repeated in zip(*(found for found, _ in measured), strict=True):
            row = mean_result(repeated[0].name, repeated)
            results.append(row)
            say(f"{row.name}: " + ", ".join(f"{METRICS[m]} {cell(i, m)}" for m, i in row.intervals.items()))
        if name == RIGHT and args.descriptions > 1:
            spread = description_spread([found[0] for found, _ in measured], args.descriptions)
        if measured[0][1]:
            trained_on[name] += f", {measured[0][1]:,.0f} tokens a task"
    notes = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": machine(backbone.dtype),
        "seed": args.seed,
        "descriptions": args.descriptions,
        "description_spread": spread,
        "hypernetworks": len(generators),
        "max_new_tokens": args.max_new_tokens,
        "trained_on": trained_on,
        "label_sets": label_sets,
        "answers": answer_facts(results, tasks),
    }
    results = [replace(row, samples={n: own[:1] for n, own in row.samples.items()}) for row in results]
    names = tuple(t.name for t in tasks)
    write(Report(backbone.shape.base_model, names, args.examples, tuple(results), notes), args, split)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--hypernetwork", type=Path, nargs="+", default=[SHIPPED], help="one, or several seeds to average")
    add("--multi-task", type=Path, help="PEFT directory of the multi-task LoRA of equal training tokens")
    add("--multi-task-tokens", type=int, help="tokens that it was trained on, for the record")
    add("--described-multi-task", type=Path, help="PEFT directory of one trained with `--describe`")
    add(
        "--described-multi-task-tokens", type=int, help="tokens that it was trained on, those before included"
    )
    add("--base", default=DEFAULT_MODEL)
    add("--data", type=Path, default=DATA)
    add("--work", type=Path, default=ROOT / "runs" / "unseen_tasks", help="finished rows and trained LoRAs")
    add("--out", type=Path, help="where report.json and report.md go")
    add("--split", choices=("validation", "validation_2"), default="validation", help="tasks that are asked")
    add("--tasks", type=int, help="take the first N of them; default all")
    add("--examples", type=int, default=20, help="test examples a task")
    add("--max-new-tokens", type=int, default=40, help="limit of an answer")
    add("--descriptions", type=int, default=3, help="right descriptions a task, averaged")
    add("--lora-steps", type=int, default=40, help="of each nearest-task and oracle LoRA")
    add("--lora-batch", type=int, default=8)
    add("--lora-rate", type=float, default=1e-3)
    add("--oracle-rate", type=float, default=3e-3, help="of the oracle LoRA at a tuned rate")
    add("--lora-start", type=Path, help="PEFT directory that those start from; default the multi-task LoRA")
    add("--from-scratch", action="store_true", help="train those from zero")
    add("--without", nargs="*", default=[], choices=ROWS, help="rows to leave out")
    add("--seed", type=int, default=0, help="of examples in prompts, gibberish and LoRA training")
    return parser.parse_args()


def single_task_rows(
    args: argparse.Namespace, library: LoraLibrary, tuned: LoraLibrary, split: Split, tasks: Sequence[Task]
) -> dict[str, list[Repetition]]:
    """The LoRA of the training task that is nearest by description, and those of the task itself."""
    rows = {ORACLE: [Repetition(Method(ORACLE, library.lora), library.key)]}
    rows[TUNED_ORACLE] = [Repetition(Method(TUNED_ORACLE, tuned.lora), tuned.key)]
    if NEAREST not in args.without:
        nearest = dict(
            zip((t.name for t in tasks), nearest_tasks(TaskEncoder(), tasks, split.train), strict=True)
        )
        chosen = digest(*(t.name for t in nearest.values()))
        method = Method(NEAREST, lambda task: library.lora(nearest[task.name]))
        rows = {NEAREST: [Repetition(method, library.key + chosen)], **rows}
    return rows


def description_rows(
    args: argparse.Namespace, generators: Sequence[TextToLoRA], tasks: Sequence[Task]
) -> dict[str, list[Repetition]]:
    """Every row of Text-to-LoRA, once a hypernetwork; the right one also once a description."""
    rows: dict[str, list[Repetition]] = {RIGHT: [], OTHER: [], GIBBERISH: [], SALAD: [], NONE: []}
    for folder, generator in zip(args.hypernetwork, generators, strict=True):
        emitter = generator.emitter
        methods = [(right_description(emitter, i), f"description {i}") for i in range(args.descriptions)]
        methods += [(other_description(emitter, tasks), "")] if len(tasks) > 1 else []
        methods += [(gibberish_description(emitter, args.seed), f"seed {args.seed}")]
        methods += [(word_salad_description(emitter, tasks, args.seed), f"seed {args.seed}")]
        methods += [(no_description(emitter), "")]
        for method, setting in methods:
            labels = method.name in (RIGHT, NONE)
            rows[method.name].append(Repetition(method, f"{tensors_of(folder)} {setting}", labels))
    return {name: repetitions for name, repetitions in rows.items() if repetitions}


def inputs_row(
    args: argparse.Namespace,
    backbone: Backbone,
    generator: TextToLoRA,
    label_sets: Mapping[str, Sequence[str]],
) -> Repetition:
    """The adapter of the first description, trained on inputs of the `train` list without their answers.

    Where the first description names no labels it stays as it is.
    """
    right = right_description(generator.emitter)

    def trained(task: Task) -> LoRA:
        if task.name not in label_sets:
            return right.adapter(task)
        chance = random.Random(f"{args.seed}/{task.name}")
        inputs = [e.input for e in chance.sample(task.train, min(INPUTS_TO_TRAIN, len(task.train)))]
        labels = LabelSet(labels=tuple(label_sets[task.name]))
        found = self_train(
            backbone,
            right.adapter(task),
            labels,
            inputs,
            description=task.descriptions[0],
            similarity=generator.label_similarity,
        )
        say(
            f"  {task.name}: {found.steps} steps, agreement {found.agreement_before:.2f} -> "
            f"{found.agreement_after:.2f}, {found.reason or 'kept'}, {found.seconds:.0f} s"
        )
        return found.lora

    setting = digest(tensors_of(args.hypernetwork[0]), args.seed, INPUTS_TO_TRAIN, repr(label_sets), WEIGHT)
    return Repetition(Method(INPUTS, trained), setting)


def few_shot_row(args: argparse.Namespace, backbone: Backbone, generator: TextToLoRA) -> Repetition:
    """The first hypernetwork's adapter of the first description, refined on examples of the `train` list."""
    right = right_description(generator.emitter)

    def refined(task: Task) -> LoRA:
        chance = random.Random(f"{args.seed}/{task.name}")
        examples = chance.sample(task.train, min(EXAMPLES_TO_REFINE, len(task.train)))
        refinement = refine(backbone, right.adapter(task), examples, description=task.definition)
        say(
            f"  {task.name}: {refinement.steps} steps, held-out loss {refinement.loss_before:.2f} -> "
            f"{refinement.loss_after:.2f}, {refinement.seconds:.0f} s"
        )
        return refinement.lora

    network, recipe = tensors_of(args.hypernetwork[0]), (REFINING.model_dump_json(), MAX_TOKENS)
    setting = digest(network, args.seed, EXAMPLES_TO_REFINE, *recipe)
    return Repetition(Method(FEW_SHOT, refined), setting)


def description_spread(results: Sequence[MethodResult], descriptions: int) -> float:
    """Standard deviation of ROUGE-L over the descriptions of one task, one network: the median task's.

    `results` go network by network; a task's deviation is the mean over networks, in [0, 1].
    """
    by_task = [[r.scores["rouge_l"][task] for r in results] for task in results[0].scores["rouge_l"]]
    networks = range(0, len(results), descriptions)
    return statistics.median(
        statistics.mean(statistics.stdev(scores[first : first + descriptions]) for first in networks)
        for scores in by_task
    )


def training(args: argparse.Namespace, generators: Sequence[TextToLoRA]) -> dict[str, str]:
    """What each trained row was trained on."""
    ours = [tokens_of(g.checkpoint.provenance) for g in generators]
    theirs = args.multi_task_tokens
    start = (
        "zero"
        if args.from_scratch
        else f"an earlier {MULTI_TASK}"
        if args.lora_start
        else MULTI_TASK
        if args.multi_task
        else "the hypernetwork's shared adapter"
    )
    budget = f"started from {start}, {args.lora_steps} steps of {args.lora_batch} examples"
    said = {
        RIGHT: "training tasks, " + ", ".join(f"{n:,} tokens" if n else "tokens not recorded" for n in ours)
    }
    if args.multi_task:
        said[MULTI_TASK] = f"training tasks, {f'{theirs:,} tokens' if theirs else 'tokens not recorded'}"
    if args.described_multi_task:
        theirs, card = args.described_multi_task_tokens, load_adapter(args.described_multi_task).card
        last = f"{card.scores['training tokens']:,.0f}" if card else "some"
        whole = f"{theirs:,} tokens" if theirs else "tokens not recorded"
        said[DESCRIBED_MULTI_TASK] = f"training tasks, {whole}, the last {last} with descriptions"
    said[INPUTS] = (
        f"as Text-to-LoRA (first network, first description), then on its own calibrated labels of "
        f"{INPUTS_TO_TRAIN} inputs of the task, where the description names the labels"
    )
    said[FEW_SHOT] = (
        f"as Text-to-LoRA (first network, first description), then at most {REFINING.steps} steps of "
        f"{REFINING.batch_size} of the task's {EXAMPLES_TO_REFINE} examples"
    )
    said[NEAREST] = f"{budget} of the training task that is nearest by description"
    said[ORACLE] = f"{budget} of the task itself at the rate {args.lora_rate:g}"
    said[TUNED_ORACLE] = f"{budget} of the task itself at the rate {args.oracle_rate:g}"
    return {name: what for name, what in said.items() if name not in args.without}


def write(report: Report, args: argparse.Namespace, split: Split) -> None:
    names = {r.name.removesuffix(SUFFIX) for r in report.results}
    complete = (
        names == set(ROWS) and args.split == "validation" and len(report.tasks) == len(split.validation)
    )
    out: Path = args.out or (ROOT / "docs" / "results" if complete else args.work)
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / "report.json", json.dumps(report.to_json(), indent=1) + "\n")
    write_file(out / "report.md", page(report))
    print(page(report).split("## Answers")[0] + f"Written to {out / 'report.json'} and report.md.")


if __name__ == "__main__":
    main()
