"""PEFT's orthogonal subspace fine-tuning (OSF) beside the table's methods, as a control on the tiny model.

Source: Nayak et al., "Sculpting Subspaces", arXiv 2504.07097; PEFT, `examples/orthogonal_subspace_learning`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from peft import OSFConfig, get_peft_model
from torch import nn

from shoal.config import LoraTrainingConfig
from shoal.inference.forward import answer_losses, pad_sequences
from shoal.models.backbone import Backbone
from shoal.tasks.records import Task
from shoal.training.continual import learn_stream

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

MODULES = ["q_proj", "v_proj"]
STEPS, KEPT = 60, 0.5  # of every weight's directions, as the example keeps


@pytest.fixture(scope="module")
def tasks(toy: ModuleType) -> list[Task]:
    return [toy.toy_task(rule) for rule in ("upper", "reverse")]


def sharp(toy: ModuleType, path: Path) -> Backbone:
    """The tiny Llama with larger logits."""
    backbone = toy.toy_backbone(path)
    with torch.no_grad():
        backbone.model.lm_head.weight.mul_(8)
    return backbone


@pytest.fixture
def model(toy: ModuleType, tiny_llama: Path) -> Backbone:
    return sharp(toy, tiny_llama)


def adapted_weights(backbone: Backbone) -> dict[str, nn.Parameter]:
    own = backbone.model.named_parameters()
    return {name: parameter for name, parameter in own if name.split(".")[-2] in MODULES}


def copied(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in backbone.model.named_parameters()}


def loss(backbone: Backbone, task: Task) -> torch.Tensor:
    prompts = backbone.encode_prompts([e.input for e in task.train])
    answers = backbone.encode_completions([e.outputs[0] for e in task.train])
    batch = pad_sequences(list(zip(prompts, answers, strict=True)), 0, torch.device("cpu"))
    return answer_losses(backbone, batch).mean()


def descend(backbone: Backbone, parameters: Iterable[nn.Parameter], task: Task) -> None:
    """Plain gradient descent: what a projected gradient keeps, its steps keep."""
    optimiser = torch.optim.SGD(list(parameters), lr=0.2)
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss(backbone, task).backward()
        optimiser.step()


def learn_by_osf(backbone: Backbone, task: Task) -> None:
    wrapped = get_peft_model(backbone.model, OSFConfig(target_modules=MODULES, effective_rank=KEPT))
    descend(backbone, [p for p in wrapped.parameters() if p.requires_grad], task)
    wrapped.merge_and_unload()


def learn_by_all_weights(backbone: Backbone, task: Task) -> None:
    own = adapted_weights(backbone).values()
    for parameter in own:
        parameter.requires_grad_()
    descend(backbone, own, task)
    for parameter in own:
        parameter.requires_grad_(False)


def losses_of_the_first(
    backbone: Backbone, tasks: list[Task], learn: Callable[[Backbone, Task], None]
) -> tuple[float, float]:
    """Of the first task, when it was learnt and after the second one."""
    learn(backbone, tasks[0])
    learnt = loss(backbone, tasks[0]).item()
    learn(backbone, tasks[1])
    return learnt, loss(backbone, tasks[0]).item()


def test_a_step_leaves_the_kept_directions_of_every_weight_on_both_sides(
    model: Backbone, tasks: list[Task]
) -> None:
    before = copied(model)
    learn_by_osf(model, tasks[0])
    for name, now in adapted_weights(model).items():
        u, _, v = torch.linalg.svd(before[name])
        kept, change = int(KEPT * min(now.shape)), now - before[name]
        torch.testing.assert_close(u[:, :kept].T @ change, torch.zeros(kept, now.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(change @ v[:kept].T, torch.zeros(now.shape[0], kept), atol=1e-5, rtol=0)


def test_it_changes_the_base_weights_and_orthogonal_adapters_do_not(
    model: Backbone, tasks: list[Task], toy: ModuleType, tmp_path: Path
) -> None:
    before = copied(model)
    targets = model.shape.select(tuple(MODULES), 3)
    start = toy.toy_adapters(targets, 1)[0]
    config = LoraTrainingConfig(steps=2, batch_size=4)
    settings = {"method": "orthogonal", "start": start, "show_progress": False}
    list(learn_stream(model, tasks, targets, tmp_path, config, **settings))
    assert all(torch.equal(now, before[name]) for name, now in copied(model).items())
    learn_by_osf(model, tasks[0])
    assert not any(torch.equal(now, before[name]) for name, now in adapted_weights(model).items())


def test_it_forgets_less_than_all_weights_do_since_it_has_learnt_less(
    model: Backbone, tasks: list[Task], toy: ModuleType, tiny_llama: Path
) -> None:
    by_osf = losses_of_the_first(model, tasks, learn_by_osf)
    by_all = losses_of_the_first(sharp(toy, tiny_llama), tasks, learn_by_all_weights)
    assert by_osf[1] - by_osf[0] < by_all[1] - by_all[0]
    assert by_osf[0] > by_all[0]
