"""How often the label set that is read from a description, or shown by examples, is the task's own.

    python benchmarks/label_sets.py [--split train] [--wrong 20]

A read set is right where it equals the set of the task's answers, case apart; on a task without a closed set
every set is wrong. Recall counts descriptions of closed tasks that get the right set. A set that 8, 16 or 32
drawn examples show (five draws a task) is complete where it has 97% of the other examples' answers.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from _machine import DATA

from shoal.tasks.answer_kinds import has_labels
from shoal.tasks.loading import Task, load_split
from shoal.text_to_lora.example_labels import shown_label_set
from shoal.text_to_lora.label_sets import label_key, read_label_set

DRAWS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--split", choices=("train", "validation"), default="train")
    parser.add_argument("--wrong", type=int, default=0, help="wrong sets to print")
    args = parser.parse_args()
    split = load_split(args.data)
    tasks = split.train if args.split == "train" else split.validation
    counts: Counter[str] = Counter()
    shown = 0
    for task in tasks:
        own = answers_of(task) if has_labels(task) else None
        for number, description in enumerate(task.descriptions):
            read = {label.casefold() for label in read_label_set(description)}
            where = "first" if number == 0 else "other"
            verdict = "silent" if not read else "right" if read == own else "wrong"
            counts[f"{'closed' if own else 'open'} {where} {verdict}"] += 1
            if verdict == "wrong" and shown < args.wrong:
                shown += 1
                print(
                    f"WRONG {task.name}: {sorted(read)} own {sorted(own or ())[:9]} <- {description[:230]!r}"
                )
    print(f"{len(tasks)} tasks of {args.split}, {sum(map(has_labels, tasks))} with a closed set")
    for where in ("first", "other"):
        right, wrong = (counts[f"closed {where} {v}"] for v in ("right", "wrong"))
        loud = counts[f"open {where} wrong"]
        closed = right + wrong + counts[f"closed {where} silent"]
        print(
            f"{where} descriptions: {right + wrong + loud} sets read, {right} right "
            f"(precision {right / max(1, right + wrong + loud):.1%}); {wrong} wrong on closed tasks, {loud} "
            f"on open ones; recall {right / max(1, closed):.1%} of {closed}"
        )
    for count in (8, 16, 32):
        print_shown(tasks, count)


def print_shown(tasks: Sequence[Task], count: int) -> None:
    """Sets that so many examples show: how many there are, and how much of the other answers they have."""
    drawn, closed, shares = 0, [], []
    for task in tasks:
        if len(task.train) < 2 * count:
            continue
        for draw in range(DRAWS):
            examples = random.Random(f"{task.name}/{draw}").sample(task.train, len(task.train))
            shown = shown_label_set(examples[:count])
            drawn += 1
            if has_labels(task):
                closed.append(shown is not None)
            if shown is not None:
                keys = set(map(label_key, shown.labels))
                shares.append(fmean(label_key(e.outputs[0]) in keys for e in examples[count:]))
    print(
        f"{count} examples, {drawn} draws: {len(shares)} show a set, {fmean(closed):.0%} of those of closed "
        f"tasks; {fmean(s >= 0.97 for s in shares):.1%} are complete, with {fmean(shares):.1%} of the other "
        "answers on the mean"
    )


def answers_of(task: Task) -> set[str]:
    """The task's answers, casefolded."""
    return {" ".join(o.split()).casefold() for e in task.train for o in e.outputs}


if __name__ == "__main__":
    main()
