"""From the experts' tasks to a first pass: label requests, train a probe, and write it with its scores.

A request is a description with an input. Every fourth description is kept from training, and so are the
`test` lists: what the probe scores is on sentences and inputs that it never saw. Which layer it reads is
chosen without them: on another fourth of the descriptions, by probes that were fitted to the rest.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from shoal.backbone import Backbone
from shoal.dispatch import NONE, Probe, mean_states, train_probe
from shoal.errors import UsageError
from shoal.files import check_place
from shoal.probe_store import PROBE_FILES, StoredProbe, save_probe
from shoal.tasks import Example, Task

# Description number n is of fold n % 4.
FOLDS, FIT, SELECT, TRAIN, TEST = 4, (0, 1), (2,), (0, 1, 2), (3,)


class LabelledRequest(NamedTuple):
    """A request that is known to need a skill, and what answers it."""

    text: str
    skill: str
    task: Task
    example: Example


def make_dispatch(
    backbone: Backbone,
    skills: Mapping[str, Sequence[Task]],
    others: Sequence[Task],
    directory: Path,
    *,
    layers: Sequence[int],
    requests: int = 200,
    test_requests: int = 50,
    penalty: float = 1e-3,
    seed: int = 0,
) -> StoredProbe:
    """Train the probe that chooses between skills, and write it.

    Args:
        backbone: the frozen model, whose states it reads.
        skills: skill -> the tasks that its expert was trained on.
        others: tasks that no expert serves.
        directory: of the probe.
        layers: decoder layers, from 0; it reads the input of the one that serves best.
        requests: to train on, a skill and for no skill.
        test_requests: to score on, as many.
        penalty: weight of the mean squared weights.
        seed: of the choice of requests.

    Raises:
        UsageError: no skills, one without tasks, no others, or a directory that holds something else.
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
    names = list(skills)

    def fitted(known: Sequence[LabelledRequest], layer: int) -> Probe:
        states = mean_states(backbone.model, backbone.encode_prompts([r.text for r in known]), layer)
        labels = torch.tensor([_class(names, r.skill) for r in known])
        return train_probe(states, labels, names, layer, penalty=penalty)

    selection = {}
    if len(layers) > 1:
        fit, select = (labelled_requests(groups, requests, fold, seed) for fold in (FIT, SELECT))
        selection = {layer: accuracy(backbone, fitted(fit, layer), select) for layer in layers}
    known = labelled_requests(groups, requests, TRAIN, seed)
    probe = fitted(known, max(selection, key=selection.__getitem__) if selection else layers[0])
    unseen = labelled_requests(groups, test_requests, TEST, seed)
    provenance = {
        "tasks": {name: [task.name for task in tasks] for name, tasks in groups.items()},
        "requests": len(known),
        "test_requests": len(unseen),
        "accuracy": accuracy(backbone, probe, unseen),
        "selection_accuracy": {str(layer): value for layer, value in selection.items()},
        "seed": seed,
        "penalty": penalty,
    }
    stored = StoredProbe(probe, backbone.shape.base_model, provenance)
    save_probe(directory, stored)
    return stored


def labelled_requests(
    groups: Mapping[str, Sequence[Task]], count: int, folds: Sequence[int], seed: int = 0
) -> list[LabelledRequest]:
    """So many requests of every group, drawn evenly from its tasks, each with the group's name.

    Args:
        groups: skill, or `NONE`, -> tasks.
        count: requests of each.
        folds: of the descriptions that may be used; those of `TEST` come with the `test` lists.
        seed: of the choice.
    """
    found = []
    for name, tasks in groups.items():
        for number in range(count):
            task = tasks[number % len(tasks)]
            chance = random.Random(f"{seed}/{folds}/{task.name}/{number}")
            descriptions = _descriptions(task, folds)
            example = chance.choice(task.test if folds == TEST else task.train)
            text = f"{chance.choice(descriptions)}\n\n{example.input}"
            found.append(LabelledRequest(text, name, task, example))
    return found


def accuracy(backbone: Backbone, probe: Probe, requests: Sequence[LabelledRequest]) -> float:
    """Share of the requests, in [0, 1], whose skill the probe finds; `NONE` counts as one."""
    states = mean_states(backbone.model, backbone.encode_prompts([r.text for r in requests]), probe.layer)
    chosen = probe.probabilities(states).argmax(-1).tolist()
    right = [_class(probe.skills, r.skill) == row for r, row in zip(requests, chosen, strict=True)]
    return sum(right) / len(right)


def _class(names: Sequence[str], skill: str) -> int:
    return len(names) if skill == NONE else list(names).index(skill)


def _descriptions(task: Task, folds: Sequence[int]) -> list[str]:
    texts = task.descriptions or (task.definition,)
    return [text for number, text in enumerate(texts) if number % FOLDS in folds] or list(texts)
