"""One adapter through a stream of tasks, by a literal table of methods.

After every task there is one adapter for all tasks so far. Each task is a run of its own in a folder of its
own, so a stream that was stopped goes on where it was. Knows adapters and tasks; nothing of routers or
libraries.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from shoal.adapters.lora import LoRA, LoraFactors
from shoal.adapters.merging import compose
from shoal.adapters.merging.closed_form import RANK
from shoal.adapters.merging.methods import method_of
from shoal.adapters.merging.modules import difference, folded, joined
from shoal.adapters.merging.regmean import RegMeanSums
from shoal.adapters.merging.truncation import Truncation
from shoal.config import LoraTrainingConfig
from shoal.errors import UsageError
from shoal.inference.covariances import input_covariances
from shoal.models.backbone import Backbone
from shoal.models.modules import TargetModule
from shoal.tasks.records import Task
from shoal.training.loop import RunSummary
from shoal.training.lora import Penalty, train_lora
from shoal.training.penalties import ElasticPenalty, OrthogonalPenalty, fisher_information

KEPT = 16  # examples of every old task that replay keeps
MEASURED = 48  # examples of a task that its Fisher information and covariances are measured on


@dataclass(frozen=True, eq=False)
class Stage:
    """One step of a stream.

    Attributes:
        task: that was learnt.
        lora: the adapter for all tasks so far.
        summary: of the training; its tokens are those of this task's run.
    """

    task: str
    lora: LoRA
    summary: RunSummary


@dataclass(frozen=True, eq=False)
class Stream:
    """Tasks in their order, and all that a method needs to learn them.

    Attributes:
        backbone: the frozen model.
        tasks: whose `train` lists are learnt, one after another.
        targets: modules to adapt.
        folder: of the runs, one for every task.
        config: optimisation settings of every run.
        start: adapter before the first task.
        keep: examples of every old task that may be kept.
        strength: weight of a method's penalty.
        show_progress: draw progress bars.
    """

    backbone: Backbone
    tasks: Sequence[Task]
    targets: Sequence[TargetModule]
    folder: Path
    config: LoraTrainingConfig
    start: LoRA
    keep: int
    strength: float
    show_progress: bool

    def train(
        self,
        number: int,
        tasks: Sequence[Task],
        start: LoRA,
        *,
        times: int = 1,
        frozen: LoRA | None = None,
        penalty: Penalty | None = None,
    ) -> tuple[LoRA, RunSummary]:
        """The run of one task, for `times` as many steps; errors as `train_lora`."""
        config = self.config.model_copy(update={"steps": self.config.steps * times})
        return train_lora(
            self.backbone,
            tasks,
            self.targets,
            self.folder / f"{number + 1:02d}-{self.tasks[number].name}",
            config,
            start=start,
            frozen=frozen,
            penalty=penalty,
            show_progress=self.show_progress,
        )

    def drawn(self, task: Task, count: int) -> Task:
        """A task with so many of its examples at most, drawn by seed and name."""
        chance = random.Random(f"{self.config.seed}/{task.name}/kept")
        return replace(task, train=tuple(chance.sample(task.train, min(count, len(task.train)))))


@dataclass(frozen=True)
class Method:
    """A way of learning one task after another.

    Attributes:
        learn: yields a stage for every task; the bound yields the last alone.
        paper: where it is from.
        old_data: old tasks' examples that it needs: `none`, `some` or `all`.
        strength: usual weight of its penalty; None where it has none.
    """

    learn: Callable[[Stream], Iterator[Stage]]
    paper: str
    old_data: str = "none"
    strength: float | None = None


def learn_stream(
    backbone: Backbone,
    tasks: Sequence[Task],
    targets: Sequence[TargetModule],
    folder: Path,
    config: LoraTrainingConfig,
    *,
    method: str = "sequential",
    start: LoRA | None = None,
    rank: int = 16,
    alpha: float = 32.0,
    keep: int = KEPT,
    strength: float | None = None,
    show_progress: bool = True,
) -> Iterator[Stage]:
    """Learn tasks one after another into one adapter; the stages, each as it is reached.

    Args:
        backbone: the frozen model.
        tasks: in the order of learning; each has its own name.
        targets: modules to adapt.
        folder: of the runs; a stream that was stopped goes on from it.
        config: optimisation settings of every task; joint training has as many steps as all together.
        method: of `METHODS`.
        start: adapter before the first task; by default a fresh identity.
        rank: LoRA rank, without `start`.
        alpha: LoRA alpha, without `start`.
        keep: examples of every old task that replay keeps.
        strength: weight of the penalty; None is the method's own.
        show_progress: draw progress bars.

    Raises:
        UsageError: no such method, no tasks or two of one name, a negative `keep`, or a strength that is
            negative, not finite, or for a method without a penalty; further as `train_lora`.
    """
    if method not in METHODS:
        raise UsageError(f"{method!r} is no method of continual learning; choose from {', '.join(METHODS)}")
    own = METHODS[method]
    names = [task.name for task in tasks]
    if not names or len(set(names)) < len(names):
        raise UsageError(
            f"a stream of {len(names)} tasks with {len(set(names))} names; at least 1 task is needed, each "
            "with a name of its own"
        )
    if keep < 0:
        raise UsageError(f"keep {keep} examples of every old task: the least is 0; {KEPT} are usual")
    if strength is not None and (own.strength is None or not 0 <= strength < math.inf):
        penalised = ", ".join(name for name, each in METHODS.items() if each.strength is not None)
        raise UsageError(
            f"strength {strength:g} of {method}: it is a finite number from 0 on, for {penalised} alone; "
            "leave it out"
        )
    generator = torch.Generator().manual_seed(config.seed)
    first = start or LoRA.identity(targets, rank, alpha, generator=generator)
    weight = own.strength or 0.0 if strength is None else strength
    stream = Stream(backbone, tasks, targets, folder, config, first, keep, weight, show_progress)
    return own.learn(stream)


def _sequential(stream: Stream) -> Iterator[Stage]:
    lora = stream.start
    for number, task in enumerate(stream.tasks):
        lora, summary = stream.train(number, [task], lora)
        yield Stage(task.name, lora, summary)


def _replay(stream: Stream) -> Iterator[Stage]:
    lora = stream.start
    kept: list[Task] = []
    for number, task in enumerate(stream.tasks):
        lora, summary = stream.train(number, [task, *kept], lora)
        kept += [stream.drawn(task, stream.keep)] if stream.keep else []
        yield Stage(task.name, lora, summary)


def _joint(stream: Stream) -> Iterator[Stage]:
    last = len(stream.tasks) - 1
    lora, summary = stream.train(last, stream.tasks, stream.start, times=len(stream.tasks))
    yield Stage(stream.tasks[last].name, lora, summary)


def _ewc(stream: Stream) -> Iterator[Stage]:
    lora, penalty = stream.start, ElasticPenalty(stream.strength)
    for number, task in enumerate(stream.tasks):
        lora, summary = stream.train(number, [task], lora, penalty=penalty if number else None)
        yield Stage(task.name, lora, summary)
        if number + 1 < len(stream.tasks):
            measured = stream.drawn(task, MEASURED)
            penalty = penalty.and_near(
                lora, fisher_information(stream.backbone, measured, lora, stream.config)
            )


def _orthogonal(stream: Stream) -> Iterator[Stage]:
    whole, old, start = stream.start, list[LoRA](), stream.start
    for number, task in enumerate(stream.tasks):
        generator = torch.Generator().manual_seed(stream.config.seed + number)
        fresh = LoRA.identity(stream.targets, start.rank, start.alpha, generator=generator)
        penalty = OrthogonalPenalty(stream.strength, old) if old else None
        lora, summary = stream.train(number, [task], fresh, frozen=whole, penalty=penalty)
        old.append(lora)
        whole = compose([whole, lora], [1.0, 1.0])
        yield Stage(task.name, whole, summary)


def _slao(stream: Stream) -> Iterator[Stage]:
    lora = merged = stream.start
    for number, task in enumerate(stream.tasks):
        lora, summary = stream.train(number, [task], with_orthonormal_a(lora) if number else lora)
        merged = merged_in_time(merged, lora, number + 1)
        yield Stage(task.name, merged, summary)


def _regmean(stream: Stream) -> Iterator[Stage]:
    start, sums = folded(stream.start), dict[str, RegMeanSums]()
    usual = {p.name: p.default for p in method_of("regmean").parameters}
    for number, task in enumerate(stream.tasks):
        lora, summary = stream.train(number, [task], stream.start)
        inputs = [example.input for example in stream.drawn(task, MEASURED).train]
        covariances = input_covariances(stream.backbone, lora, inputs)
        cut = Truncation(max(RANK, stream.start.rank))
        for name, own in folded(lora).items():
            delta = difference(own, start[name], own)
            sums.setdefault(name, RegMeanSums()).add(
                delta, covariances[name], weight=1.0, shrink=usual["shrink"], ridge=usual["ridge"]
            )
            cut.take(name, joined([start[name], sums[name].solve()]))
        yield Stage(task.name, cut.lora(), summary)


def with_orthonormal_a(lora: LoRA) -> LoRA:
    """Where SLAO starts the next task: the rows of A span what they did and are orthonormal; B is carried on.

    Signs are those for which the triangular factor has a positive diagonal, so the result is unique.

    Source: Qiao and Mahdavi, "Merge before Forget", arXiv 2512.23017, orthogonal initialisation.
    """
    factors = {}
    for name, (a, b) in lora.factors.items():
        q, r = torch.linalg.qr(a.mT)
        signs = r.diagonal(dim1=-2, dim2=-1).sign()
        factors[name] = LoraFactors((q * signs[..., None, :]).mT.contiguous(), b)
    return replace(lora, factors=factors)


def merged_in_time(before: LoRA, lora: LoRA, number: int) -> LoRA:
    """SLAO's merge after task `number`, from 1: the newest A, and B moved to the newest by 1 / sqrt(number).

    Source: as `with_orthonormal_a`, time-aware asymmetric merging.
    """
    share = 1 / math.sqrt(number)
    factors = {
        name: LoraFactors(a, b if number == 1 else before.factors[name].b.lerp(b, share))
        for name, (a, b) in lora.factors.items()
    }
    return replace(lora, factors=factors)


METHODS: Mapping[str, Method] = {
    "sequential": Method(_sequential, "fine-tuning without measures; McCloskey and Cohen 1989"),
    "replay": Method(_replay, "arXiv 2205.12393", old_data="some"),
    "ewc": Method(_ewc, "arXiv 1612.00796", strength=100.0),
    "orthogonal": Method(_orthogonal, "O-LoRA, arXiv 2310.14152", strength=0.5),
    "slao": Method(_slao, "arXiv 2512.23017"),
    "regmean": Method(_regmean, "arXiv 2212.09849"),
    "joint": Method(_joint, "the bound: all tasks at once", old_data="all"),
}
