"""Merged, mixed or routed: what each keeps of the parents' skills, costs in bytes and takes in time.

Routing gives every request its own parent, mixing adds the parents up as a service does for a request, and
the merge is one file. Examples that chose nothing decide. Where a bootstrap interval does not show that one
file keeps nearly all, the verdict is to keep the parents apart. Knows adapters and examples; nothing of how a
merge came about.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np

from shoal.adapters.lora import LoRA
from shoal.adapters.merging import Merged, compose
from shoal.errors import UsageError
from shoal.merging.config import MergeSearchConfig
from shoal.merging.levels import LEAST_GAIN, losses_under
from shoal.models.backbone import Backbone
from shoal.tasks.loading import Task
from shoal.tasks.metrics import Interval
from shoal.training.batches import tokenise

Choice = Literal["merge", "mix", "route"]
KEPT_ENOUGH = 0.9  # share of routing's gain that one file has to keep
LEAST_EXAMPLES = 4  # of a task; fewer give no interval
RESAMPLES, SCALES = 1000, (0.3, 0.5, 0.7, 1.0)
MOST_EXAMPLES = 32  # of a task, on either side


@dataclass(frozen=True)
class Way:
    """One way to serve several skills.

    Attributes:
        retention: mean over tasks of the share of routing's gain in loss over the start that it keeps, with a
            95% bootstrap interval over examples; 1 is as good as routing.
        by_task: task name -> that share.
        bytes: of the adapters that it needs.
        seconds: of one forward pass over an example, mean; on this machine.
    """

    retention: Interval
    by_task: Mapping[str, float]
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """What to do with several adapters.

    Attributes:
        choice: `merge` into one file, `mix` at each request, or `route`: keep them apart.
        sentence: the choice and why, for people.
        ways: the merge, the mixture and routing.
        parents: task name -> the parent that routing takes.
        weight: of every parent in the mixture.
        optimism: retention of the merge on the examples that chose it, minus that on the others.
        examples: that decided, of all tasks.
    """

    choice: Choice
    sentence: str
    ways: Mapping[Choice, Way]
    parents: Mapping[str, str]
    weight: float
    optimism: float
    examples: int


@dataclass(frozen=True)
class _Tried:
    """Losses of every example by task, and seconds of a forward pass over one."""

    losses: list[np.ndarray]
    seconds: float


def judge(
    backbone: Backbone,
    parents: Mapping[str, LoRA],
    merged: LoRA,
    tasks: Sequence[Task],
    start: LoRA | None = None,
) -> Verdict:
    """Compare a merge with mixing and routing its parents.

    The training examples of the tasks say which parent each task is routed to, and how much of each parent
    the mixture has; their test examples decide.

    Args:
        backbone: the frozen model.
        parents: name -> adapter.
        merged: one adapter from all of them.
        tasks: that the parents are for, each with training and test examples.
        start: that the parents were trained on from; gains count from it. None is the base model.

    Raises:
        UsageError: no tasks, or one without test examples; or adapters that do not fit the model.
    """
    if not tasks or (bare := next((task.name for task in tasks if not task.test), None)):
        lacking = f"task {bare!r} has no test examples" if tasks else "there are no tasks"
        raise UsageError(f"{lacking}, and a verdict needs examples that chose nothing; give some")
    chose, decide = ([_cut(task, name) for task in tasks] for name in ("train", "test"))

    # 1. The examples that choose: a parent for each task, and the weight of the mixture.
    bare_before = _losses(backbone, chose, _under(start))
    alone = {name: _losses(backbone, chose, _under(lora)) for name, lora in parents.items()}
    best = [_least(alone, i) for i in range(len(tasks))]
    routed_before = [alone[name].losses[i] for i, name in enumerate(best)]
    weight, mixture = _mixture(backbone, parents, chose, bare_before.losses, routed_before, start)

    # 2. The others: every way on the same examples.
    base = _losses(backbone, decide, _under(start))
    routed = _losses(backbone, decide, lambda task: parents[best[task]])
    mixed = _losses(backbone, decide, _under(mixture))
    one = _losses(backbone, decide, _under(merged))
    stored = sum(lora.nbytes for lora in parents.values())
    names = [task.name for task in tasks]
    ways: dict[Choice, Way] = {
        "merge": _way(names, base, routed, one, merged.nbytes),
        "mix": _way(names, base, routed, mixed, stored),
        "route": _way(names, base, routed, routed, stored),
    }
    before = _losses(backbone, chose, _under(merged))
    optimism = float(np.mean(_shares(bare_before.losses, routed_before, before.losses)))
    choice, sentence = _decided(ways)
    return Verdict(
        choice,
        sentence,
        ways,
        dict(zip(names, best, strict=True)),
        weight,
        optimism - ways["merge"].retention.mean,
        sum(map(len, base.losses)),
    )


def with_verdict(merged: Merged, verdict: Verdict) -> Merged:
    """A merge whose report has the verdict, and whose card has it for people."""
    card = merged.card.model_copy(
        update={
            "notes": (*merged.card.notes, *lines_of(verdict)),
            "scores": {
                **merged.card.scores,
                "retention": verdict.ways["merge"].retention.mean,
                "optimism": verdict.optimism,
                **{f"kept_{task}": share for task, share in verdict.ways["merge"].by_task.items()},
            },
        }
    )
    return replace(merged, card=card, report={**merged.report, "verdict": asdict(verdict)})


def lines_of(verdict: Verdict) -> list[str]:
    """A verdict for people: the sentence, a line for each way, and the optimism."""
    lines = [verdict.sentence]
    for name, way in verdict.ways.items():
        tasks = ", ".join(f"{task} {share:.0%}" for task, share in way.by_task.items())
        lines.append(
            f"{name}: keeps {_interval(way.retention)} ({tasks}); {way.bytes} bytes; "
            f"{1000 * way.seconds:.1f} ms an example"
        )
    lines.append(
        f"Optimism: the merge keeps {verdict.optimism:+.0%} more on the examples that chose it than on the "
        f"{verdict.examples} that decide."
    )
    return lines


def _decided(ways: Mapping[Choice, Way]) -> tuple[Choice, str]:
    merged, mixed = ways["merge"].retention, ways["mix"].retention
    said = f"one file keeps {_interval(merged)} of what routing gains"
    if (merged.low or 0.0) >= KEPT_ENOUGH:
        return "merge", f"Merge: {said}."
    if (mixed.low or 0.0) >= KEPT_ENOUGH:
        return "mix", f"Mix them at each request, which keeps {_interval(mixed)}: {said}."
    if merged.high is not None and merged.high < KEPT_ENOUGH:
        return "route", f"Keep them apart and route: {said}."
    return "route", f"Keep them apart and route: {said}, too few examples to show {KEPT_ENOUGH:.0%}."


def _interval(share: Interval) -> str:
    if share.low is None or share.high is None:
        return f"{share.mean:.0%}"
    return f"{share.mean:.0%} [{share.low:.0%}, {share.high:.0%}]"


def _under(lora: LoRA | None) -> Callable[[int], LoRA | None]:
    """One adapter for every task."""
    return lambda task: lora


def _least(tried: Mapping[str, _Tried], task: int) -> str:
    """The parent with the least mean loss on a task."""
    return min(tried, key=lambda name: float(tried[name].losses[task].mean()))


def _cut(task: Task, part: str) -> Task:
    return replace(task, train=getattr(task, part)[:MOST_EXAMPLES], test=())


def _mixture(
    backbone: Backbone,
    parents: Mapping[str, LoRA],
    tasks: Sequence[Task],
    base: Sequence[np.ndarray],
    routed: Sequence[np.ndarray],
    start: LoRA | None,
) -> tuple[float, LoRA]:
    """The weight of every parent at which their sum keeps most, and that sum."""
    loras, rest = list(parents.values()), [start] if start else []
    best, kept = (0.0, loras[0]), -math.inf
    for weight in (1 / len(loras), *SCALES):
        shares = [weight] * len(loras)
        mixture = compose([*loras, *rest], [*shares, *(1 - sum(shares) for _ in rest)])
        tried = _losses(backbone, tasks, _under(mixture))
        share = float(np.mean(_shares(base, routed, tried.losses)))
        if share > kept:
            best, kept = (weight, mixture), share
    return best


def _losses(backbone: Backbone, tasks: Sequence[Task], lora_of: Callable[[int], LoRA | None]) -> _Tried:
    """Loss of every training example of the tasks, in nats per token, under the adapter of each task."""
    corpus = tokenise(tasks, backbone, MergeSearchConfig().max_length)
    losses, seconds = [], 0.0
    for number, examples in enumerate(corpus.examples):
        started = time.perf_counter()
        losses.append(losses_under(backbone, lora_of(number), examples).numpy())
        seconds += time.perf_counter() - started
    return _Tried(losses, seconds / sum(map(len, losses)))


def _shares(
    base: Sequence[np.ndarray], routed: Sequence[np.ndarray], own: Sequence[np.ndarray]
) -> list[float]:
    """Every task's share of routing's gain."""
    return [
        float((b.mean() - o.mean()) / max(b.mean() - r.mean(), LEAST_GAIN))
        for b, r, o in zip(base, routed, own, strict=True)
    ]


def _way(names: Sequence[str], base: _Tried, routed: _Tried, own: _Tried, nbytes: int) -> Way:
    shares = _shares(base.losses, routed.losses, own.losses)
    mean, count = float(np.mean(shares)), sum(map(len, base.losses))
    by_task = dict(zip(names, shares, strict=True))
    if min(map(len, base.losses)) < LEAST_EXAMPLES:
        return Way(Interval(mean, None, None, count), by_task, nbytes, own.seconds)
    generator = np.random.default_rng(0)
    means = []
    for _ in range(RESAMPLES):  # examples within every task, the same of every way
        rows = [generator.integers(len(losses), size=len(losses)) for losses in base.losses]
        drawn = [
            [losses[row] for losses, row in zip(tried.losses, rows, strict=True)]
            for tried in (base, routed, own)
        ]
        means.append(float(np.mean(_shares(*drawn))))
    low, high = np.quantile(means, [0.025, 0.975])
    return Way(Interval(mean, float(low), float(high), count), by_task, nbytes, own.seconds)
