"""From the experts' tasks to a first pass: label requests, train a probe, and write it with its scores.

A request is a description with an input. Every fourth description is kept from training, and so are the
`test` lists: what the probe scores is on sentences and inputs that it never saw.
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

KEPT_BACK = 4  # one description in so many is only for the test
TRAIN, TEST = "train", "test"


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
    layer: int,
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
        layer: decoder layer whose input it reads, from 0.
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
    if not skills or empty:
        raise UsageError(
            f"{len(skills)} skills, and no tasks for {', '.join(empty) or 'any'}: give each its tasks, and "
            "others that no expert serves"
        )
    names = list(skills)
    known = labelled_requests(groups, requests, TRAIN, seed)
    probe = train_probe(
        mean_states(backbone.model, backbone.encode_prompts([r.text for r in known]), layer),
        torch.tensor([_class(names, r.skill) for r in known]),
        names,
        layer,
        penalty=penalty,
    )
    unseen = labelled_requests(groups, test_requests, TEST, seed)
    provenance = {
        "tasks": {name: [task.name for task in tasks] for name, tasks in groups.items()},
        "requests": len(known),
        "test_requests": len(unseen),
        "accuracy": accuracy(backbone, probe, unseen),
        "seed": seed,
        "penalty": penalty,
    }
    stored = StoredProbe(probe, backbone.shape.base_model, provenance)
    save_probe(directory, stored)
    return stored


def labelled_requests(
    groups: Mapping[str, Sequence[Task]], count: int, part: str, seed: int = 0
) -> list[LabelledRequest]:
    """So many requests of every group, drawn evenly from its tasks, each with the group's name.

    Args:
        groups: skill, or `NONE`, -> tasks.
        count: requests of each.
        part: `train` or `test`: which list of a task, and which of its descriptions, may be used.
        seed: of the choice.
    """
    found = []
    for name, tasks in groups.items():
        for number in range(count):
            task = tasks[number % len(tasks)]
            chance = random.Random(f"{seed}/{part}/{task.name}/{number}")
            descriptions = _descriptions(task, part)
            example = chance.choice(task.train if part == TRAIN else task.test)
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


def _descriptions(task: Task, part: str) -> list[str]:
    texts = task.descriptions or (task.definition,)
    chosen = [t for number, t in enumerate(texts) if (number % KEPT_BACK == KEPT_BACK - 1) == (part == TEST)]
    return chosen or list(texts)
