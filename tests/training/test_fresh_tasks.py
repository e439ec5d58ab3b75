"""Fresh tasks: each comes once, whoever draws it, and carries what its examples are read with."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import pytest

from shoal.config import HypernetworkTrainingConfig
from shoal.errors import UsageError
from shoal.models.backbone import Backbone
from shoal.tasks.procedural.derived import Derivation
from shoal.tasks.records import Example, Task
from shoal.training.batches import POOL_BATCHES, BatchOrder, tokenise
from shoal.training.fresh_tasks import FreshPools, FreshTasks, fresh_pools


def fresh(toy: ModuleType, backbone: Backbone, **changes: Any) -> FreshTasks:
    settings = {"seed": 3, "groups": 6, "group": 4, "max_length": 200, **changes}
    return FreshTasks([toy.lines_task()], backbone.shape.base_model, **settings)


def config(**changes: Any) -> HypernetworkTrainingConfig:
    return HypernetworkTrainingConfig(
        **{"steps": 4, "batch_size": 8, "examples_a_task": 2, "fresh_share": 0.5, **changes}
    )


def test_every_example_comes_once_and_carries_its_description(toy: ModuleType, backbone: Backbone) -> None:
    drawn = fresh(toy, backbone)
    examples = [example for number in range(3) for group in drawn[number] for example in group]
    assert len(examples) == 3 * 6 * 4
    assert all(example.task == -1 and example.description for example in examples)
    indices = [example.index for example in examples]
    assert len(set(indices)) == len(indices)
    assert max(indices) < 0


def test_a_group_is_of_one_task(toy: ModuleType, backbone: Backbone) -> None:
    for group in fresh(toy, backbone)[0]:
        assert len({example.description for example in group}) == 1


def test_pools_are_known_from_the_seed(toy: ModuleType, backbone: Backbone) -> None:
    assert fresh(toy, backbone)[1] == fresh(toy, backbone)[1]
    assert fresh(toy, backbone)[1] != fresh(toy, backbone)[2]
    assert fresh(toy, backbone)[1] != fresh(toy, backbone, seed=4)[1]


def test_workers_draw_the_same_in_order_and_after_a_resume(toy: ModuleType, backbone: Backbone) -> None:
    alone, ahead = FreshPools(fresh(toy, backbone), 0), FreshPools(fresh(toy, backbone), 2)
    assert [ahead(number) for number in (5, 6, 7)] == [alone(number) for number in (5, 6, 7)]


def test_long_examples_are_left_out(toy: ModuleType, backbone: Backbone) -> None:
    groups = fresh(toy, backbone, max_length=90)[0]
    assert all(example.length <= 90 for group in groups for example in group)


def test_tasks_that_give_nothing_are_refused(toy: ModuleType, backbone: Backbone) -> None:
    with pytest.raises(UsageError, match="no new tasks can be derived from the 1 given ones"):
        FreshTasks([toy.lines_task(3)], backbone.shape.base_model, seed=0, groups=1, group=1, max_length=200)


def test_a_share_of_the_batches_is_fresh(toy, backbone: Backbone) -> None:
    task = toy.lines_task()
    pools = fresh_pools([task], backbone.shape.base_model, config())
    order = BatchOrder(tokenise([task], backbone, 200), 8, 0, 2, fresh=pools)
    drawn = [example for step in range(POOL_BATCHES) for example in order.batch(step)]
    assert sum(example.task == -1 for example in drawn) == len(drawn) // 2
    assert fresh_pools([task], backbone.shape.base_model, config(fresh_share=0)) is None


def test_all_kinds_of_tasks_are_derived(toy: ModuleType) -> None:
    labels = ("north gate", "south gate", "east gate", "west gate")
    rows = [Example(f"{text.input} {i}", (labels[i % 4],)) for i, text in enumerate(toy.lines_task().train)]
    names = ", ".join(labels)
    gates = Task("gates", "classification", f"Say which: {names}.", (f"Choose: {names}.",), tuple(rows), ())
    derivation, chance = Derivation([gates]), random.Random(1)
    tasks = [task for i in range(60) if (task := derivation.task(chance, str(i)))]
    assert {task.name.split("-")[0] for task in tasks} == {"rewrite", "labels", "gates"}
