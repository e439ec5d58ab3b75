"""From the experts' tasks to a first pass: label requests, train a probe, and write it with its scores.

A request is a description with an input. Every fourth description is kept from training, and so are the
`test` lists: what the probe scores is on sentences and inputs that it never saw. Everyday requests may be
trained on beside them; they teach skills that no expert serves as well. Which layer it reads is chosen
without the fourth, by cross-validation: each third of what is trained on in turn, by probes that were fitted
to the rest. Every task is a class of its own, and so are the everyday requests of a skill: they are easier
told apart than what all requests of a skill have in common.
"""

from __future__ import annotations

import logging
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from shoal.errors import UsageError
from shoal.files import check_place
from shoal.models.backbone import Backbone
from shoal.tasks.loading import Example, Task
from shoal.tasks.texts import prompted_input
from shoal.transformer2.router import NONE, Probe, mean_states, train_probe
from shoal.transformer2.router_files import PROBE_FILES, StoredProbe, save_probe

log = logging.getLogger(__name__)

# Description number n is of fold n % 4.
FOLDS, TRAIN, TEST = 4, (0, 1, 2), (3,)
EVERYDAY = "everyday requests"


class LabelledRequest(NamedTuple):
    """A request that is known to need a skill, and what answers it."""

    text: str
    skill: str
    task: Task
    example: Example


class EverydayRequest(NamedTuple):
    """A request in a person's own words, of no task; `also` names other skills that would be right."""

    request: str
    skill: str
    also: tuple[str, ...] = ()


class _Labelled(NamedTuple):
    """A request to train on, its skill and the class that it is one of, a task or everyday."""

    text: str
    skill: str
    source: str


class _Fitted(NamedTuple):
    probe: Probe
    accuracy: float  # in [0, 1], on descriptions left out


def make_router(
    backbone: Backbone,
    skills: Mapping[str, Sequence[Task]],
    others: Sequence[Task],
    directory: Path,
    *,
    layers: Sequence[int],
    requests: int = 24,
    test_requests: int = 50,
    penalty: float = 1e-3,
    wordings: Mapping[str, Sequence[str]] | None = None,
    everyday: Sequence[EverydayRequest] = (),
    seed: int = 0,
) -> StoredProbe:
    """Train the probe that chooses between skills, and write it.

    Args:
        backbone: the frozen model, whose states it reads.
        skills: skill -> the tasks that its expert was trained on.
        others: tasks that no expert serves.
        directory: of the probe.
        layers: decoder layers, from 0; it reads the input of the one that serves best.
        requests: of each task, to train on.
        test_requests: to score on, a skill and for no skill.
        penalty: weight of the mean squared weights.
        wordings: task -> more descriptions of it, to train on alone.
        everyday: requests of no task, to train on alone; a skill that only they name has no expert.
        seed: of the choice of requests.

    Raises:
        UsageError: no skills, one without tasks, no others, wordings of a task that is not there, or a
            directory that holds something else.
        ShoalError: the directory cannot be written.
    """
    check_place(directory, PROBE_FILES)
    groups = {**skills, NONE: others}
    empty = [name for name, tasks in groups.items() if not tasks]
    if not skills or empty or not layers:
        raise UsageError(
            f"{len(skills)} skills, {len(layers)} layers, and no tasks for {', '.join(empty) or 'any'}: give "
            "each its tasks, and others that no expert serves"
        )
    more = dict(wordings or {})
    if unknown := sorted(more.keys() - {task.name for tasks in groups.values() for task in tasks}):
        raise UsageError(f"wordings of {unknown[0]}, which is no task of a skill or of none; leave them out")
    names = list(dict.fromkeys([*skills, *(r.skill for r in everyday if r.skill != NONE)]))
    classes = [(name, source) for name in (*names, NONE) for source in _sources(groups, everyday, name)]
    each = -(-requests // len(TRAIN))
    pools = [
        [r for part in groups.items() for r in _requests_of(*part, each, fold, seed, more)] for fold in TRAIN
    ]
    asked = [
        [_Labelled(r.text, r.skill, r.task.name) for r in pool]
        + [_Labelled(r.request, r.skill, EVERYDAY) for r in everyday[fold :: len(TRAIN)]]
        for fold, pool in zip(TRAIN, pools, strict=True)
    ]
    labels = [torch.tensor([classes.index((r.skill, r.source)) for r in pool]) for pool in asked]
    log.info("reading the states of %d requests", sum(len(pool) for pool in asked))
    prompts = [backbone.encode_prompts([r.text for r in pool]) for pool in asked]
    fitted = {
        layer: _cross_validated(
            [mean_states(backbone.model, pool, layer) for pool in prompts],
            labels,
            [name for name, _ in classes],
            layer,
            penalty,
        )
        for layer in layers
    }
    probe = max(fitted.values(), key=lambda found: found.accuracy).probe
    unseen = labelled_requests(groups, test_requests, TEST, seed)
    provenance = {
        "tasks": {name: [task.name for task in tasks] for name, tasks in groups.items()},
        "requests": sum(len(pool) for pool in asked),
        "everyday": len(everyday),
        "test_requests": len(unseen),
        "accuracy": accuracy(backbone, probe, unseen),
        "selection_accuracy": {str(layer): found.accuracy for layer, found in fitted.items()},
        "seed": seed,
        "penalty": penalty,
    }
    stored = StoredProbe(probe, backbone.shape.base_model, provenance)
    save_probe(directory, stored)
    return stored


def labelled_requests(
    groups: Mapping[str, Sequence[Task]],
    count: int,
    folds: Sequence[int],
    seed: int = 0,
    wordings: Mapping[str, Sequence[str]] | None = None,
) -> list[LabelledRequest]:
    """So many requests of every group, drawn evenly from its tasks, each with the group's name.

    Args:
        groups: skill, or `NONE`, -> tasks.
        count: requests of each.
        folds: of the descriptions that may be used; those of `TEST` come with the `test` lists.
        seed: of the choice.
        wordings: task -> more descriptions, number n of them in fold n % 3 of `TRAIN`.
    """
    folds, found = tuple(folds), []
    for name, tasks in groups.items():
        for number in range(count):
            task = tasks[number % len(tasks)]
            chance = random.Random(f"{seed}/{folds}/{task.name}/{number}")
            descriptions = _descriptions(task, folds, (wordings or {}).get(task.name, ()))
            example = chance.choice(task.test if folds == TEST else task.train)
            text = prompted_input(chance.choice(descriptions), example.input)
            found.append(LabelledRequest(text, name, task, example))
    return found


def _requests_of(
    name: str, tasks: Sequence[Task], each: int, fold: int, seed: int, more: Mapping[str, Sequence[str]]
) -> list[LabelledRequest]:
    """So many requests of every task of one group."""
    return labelled_requests({name: tasks}, each * len(tasks), [fold], seed, more)


def accuracy(backbone: Backbone, probe: Probe, requests: Sequence[LabelledRequest]) -> float:
    """Share of the requests, in [0, 1], whose skill the probe finds; `NONE` counts as one."""
    states = mean_states(backbone.model, backbone.encode_prompts([r.text for r in requests]), probe.layer)
    return _right(probe, states, [r.skill for r in requests])


def _cross_validated(
    states: Sequence[Tensor], labels: Sequence[Tensor], classes: Sequence[str], layer: int, penalty: float
) -> _Fitted:
    """The probe of all folds, and how right those are that miss one of them."""

    def fit(folds: Sequence[int]) -> Probe:
        x, y = (torch.cat([values[fold] for fold in folds]) for values in (states, labels))
        return train_probe(x, y, classes[:-1], layer, penalty=penalty)

    right = [
        _right(fit([f for f in TRAIN if f != out]), states[out], [classes[i] for i in labels[out].tolist()])
        for out in TRAIN
    ]
    return _Fitted(fit(TRAIN), statistics.mean(right))


def _sources(
    groups: Mapping[str, Sequence[Task]], everyday: Sequence[EverydayRequest], skill: str
) -> list[str]:
    """What the requests of a skill are from, each a class."""
    asked = any(r.skill == skill for r in everyday)
    return [task.name for task in groups.get(skill, ())] + [EVERYDAY] * asked


def _right(probe: Probe, states: Tensor, skills: Sequence[str]) -> float:
    names = (*probe.skills, NONE)
    found = [names[i] for i in probe.probabilities(states).argmax(-1).tolist()]
    return statistics.mean(float(one == other) for one, other in zip(found, skills, strict=True))


def _descriptions(task: Task, folds: Sequence[int], more: Sequence[str]) -> list[str]:
    texts = task.descriptions
    own = [text for number, text in enumerate(texts) if number % FOLDS in folds] or list(texts)
    return own + [text for number, text in enumerate(more) if number % len(TRAIN) in folds and folds != TEST]
