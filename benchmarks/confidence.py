"""What the confidence that is printed with an adapter says, on training tasks that a network has not seen.

    python benchmarks/confidence.py --network DIR --out runs/confidence

For each held-out task: the confidence of its descriptions, the adapter's ROUGE-L, and that of an oracle LoRA
trained on the task's other examples. The share of the oracle's score that the adapter reaches is what a
confidence should foretell: the table gives it by confidence, with the rank correlation. Then confidence is
fitted to these shares by least squares, each task's own left out for the table. Tasks of --maybe-hard, which
were trained on, are called hard where even their oracle stays below a ROUGE-L of 30. With --keep the
network's directory gets all this. Finished tasks are kept under --out and reused.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from _machine import DATA, ROOT, table
from _unseen_tasks_rows import digest
from kinds_of_answer import HELD_OUT, Asked, questions

from shoal.config import LoraTrainingConfig
from shoal.evaluation.evaluate import score
from shoal.files import write_file
from shoal.models.backbone import DEFAULT_MODEL, Backbone, load_backbone
from shoal.tasks.loading import Task, load_task_directory
from shoal.tasks.metrics import bootstrap_interval
from shoal.text_to_lora.checkpoint import CONFIG_FILE
from shoal.text_to_lora.familiarity import KnownTasks
from shoal.text_to_lora.generator import TextToLoRA
from shoal.training.lora import train_lora

HARD = 30.0  # ROUGE-L, in percent, below which an oracle shows that the base model can hardly do a task
BELOW = (0.25, 0.5, 0.75, 1.0)  # upper ends of the ranges of confidence


@dataclass(frozen=True)
class Found:
    """One task: its mean confidence, and ROUGE-L in percent."""

    task: str
    kind: str
    confidence: float
    distance: float
    adapter: float
    oracle: float

    @property
    def share(self) -> float:
        """The adapter's part of the oracle's score, at most 1."""
        return min(1.0, self.adapter / max(self.oracle, 1e-9))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--network", type=Path, help="hypernetwork; by default the shipped one")
    add("--held-out", type=Path, default=HELD_OUT, help="JSON: kind of answer -> names of tasks")
    add("--per-kind", type=int, help="take the first N tasks of a kind; by default all")
    add("--data", type=Path, default=DATA)
    add("--examples", type=int, default=10, help="a task")
    add("--descriptions", type=int, default=4, help="a task, in turn")
    add("--steps", type=int, default=40, help="of an oracle")
    add("--out", type=Path, required=True)
    add("--maybe-hard", nargs="*", default=[], metavar="TASK", help="training tasks that may be too hard")
    add("--keep", action="store_true", help="write the fitted confidence into the network's directory")
    args = parser.parse_args()
    kinds: dict[str, list[str]] = json.loads(args.held_out.read_text("utf-8"))
    backbone = load_backbone()
    generator = TextToLoRA(backbone=backbone, hypernetwork=args.network)
    key = digest(generator.facts()["sha256"], args.examples, args.descriptions, args.steps)

    def measured(kind: str, names: Sequence[str]) -> list[Found]:
        rows = []
        for task in load_task_directory(args.data / "tasks", names) if names else ():
            place = args.out / f"{task.name}-{key}.json"
            if not place.is_file():
                asked = questions(backbone, [task], args.examples, args.descriptions)
                row = measure(generator, task, kind, asked, args.steps, args.out / f"oracles-{key}")
                write_file(place, json.dumps(asdict(row)))
            rows.append(Found(**json.loads(place.read_text("utf-8"))))
            print(rows[-1], flush=True)
        return rows

    found = [row for kind, names in kinds.items() for row in measured(kind, names[: args.per_kind])]
    rank = correlation([f.confidence for f in found], [f.share for f in found])
    print(f"{page(found)}\n\nrank correlation {rank}, {len(found)} tasks")
    hard = {
        row.task: row.oracle / 100 for row in measured("trained on", args.maybe_hard) if row.oracle < HARD
    }
    known = generator.checkpoint.known_tasks
    print(calibrated_page(known, found))
    if args.keep:
        keep(args.network or ROOT / "shoal" / "weights" / DEFAULT_MODEL, fitted(known, found), hard)


def measure(
    generator: TextToLoRA, task: Task, kind: str, asked: Sequence[Asked], steps: int, runs: Path
) -> Found:
    """The adapter and the oracle on the same examples, which the oracle has not seen either."""
    backbone = generator.backbone
    own = {text: generator.generate(text, labels=[]) for text in dict.fromkeys(a.description for a in asked)}
    familiar = [adapter.hypernetwork for adapter in own.values()]
    used = {a.example for a in asked}
    others = tuple(example for example in task.train if example not in used)
    config = LoraTrainingConfig(steps=steps, batch_size=8, checkpoint_every=steps)
    oracle, _ = train_lora(
        backbone,
        [replace(task, train=others, test=())],
        [t for t in backbone.shape.targets if t.name in generator.emitter.fallback.factors],
        runs / task.name,
        config,
        start=generator.emitter.fallback,
        show_progress=False,
    )
    return Found(
        task.name,
        kind,
        statistics.fmean(facts["confidence"] for facts in familiar),
        statistics.fmean(facts["distance"] for facts in familiar),
        rouge(backbone, asked, [own[a.description].lora for a in asked]),
        rouge(backbone, asked, [oracle] * len(asked)),
    )


def calibrated_page(known: KnownTasks, found: Sequence[Found]) -> str:
    """The fitted confidence, and the shares by it, where each task's own was left out of the fit."""
    rows = []
    for i, own in enumerate(found):
        one = replace(known, reached=fitted(known, [*found[:i], *found[i + 1 :]]))
        rows.append(replace(own, confidence=one.confidence(own.distance)))
    near, far = fitted(known, found)
    ends = f"{near:.2f} up to distance {known.near:.2f}, {far:.2f} from {known.far:.2f}"
    return f"\nFitted: {ends}\n\n{page(rows)}"


def fitted(known: KnownTasks, found: Sequence[Found]) -> tuple[float, float]:
    """`reached` by least squares on the shares; the mean for both where they do not fall with distance."""
    plain = replace(known, reached=(1.0, 0.0))
    nearness, shares = [plain.confidence(f.distance) for f in found], [f.share for f in found]
    mean = statistics.fmean(shares)
    if len(set(nearness)) < 2:
        return mean, mean
    slope, far = statistics.linear_regression(nearness, shares)
    if slope <= 0:
        return mean, mean
    return min(1.0, far + slope), max(0.0, far)


def keep(folder: Path, reached: tuple[float, float], hard: Mapping[str, float]) -> None:
    """Write a network's confidence and its hard tasks into its description."""
    path = folder / CONFIG_FILE
    description = json.loads(path.read_text("utf-8"))
    known = description["known_tasks"]
    known["reached"] = [round(share, 3) for share in reached]
    known["hard"] = {name: round(score, 3) for name, score in sorted(hard.items())}
    write_file(path, json.dumps(description, indent=1))


def rouge(backbone: Backbone, asked: Sequence[Asked], adapters: Sequence) -> float:
    """Mean ROUGE-L of greedy answers, in percent."""
    examples = [a.example for a in asked]
    answers = score(
        backbone, examples, [e.input for e in examples], adapters, max_new_tokens=56, batch_size=24
    )
    return 100 * statistics.fmean(a.rouge_l for a in answers)


def page(found: Sequence[Found]) -> str:
    """The share of the oracle by confidence."""
    rows, low = [], -1.0
    for high in BELOW:
        some = [f for f in found if low < f.confidence <= high]
        if some:
            reached = bootstrap_interval([100 * f.share for f in some])
            inside = f" ({reached.low:.0f} to {reached.high:.0f})" if reached.low is not None else ""
            mean = statistics.fmean(f.confidence for f in some)
            rows.append(
                [
                    f"{max(low, 0):.2f} to {high:.2f}",
                    str(len(some)),
                    f"{mean:.2f}",
                    f"{reached.mean:.0f}{inside}",
                ]
            )
        low = high
    return table(["confidence", "tasks", "its mean", "share of the oracle's ROUGE-L, %"], rows)


def correlation(one: Sequence[float], other: Sequence[float]) -> str:
    """Spearman's rank correlation, or that there is none where all values of one are the same."""
    if min(len(set(one)), len(set(other))) < 2:
        return "undefined"
    return f"{statistics.correlation(ranks(one), ranks(other)):.2f}"


def ranks(values: Sequence[float]) -> list[float]:
    """The place of each value in their order; equal ones share the mean of theirs."""
    order = sorted(values)
    return [order.index(value) + (order.count(value) - 1) / 2 for value in values]


if __name__ == "__main__":
    main()
