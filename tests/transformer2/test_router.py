"""The router: a probe that separates skills, states that no batch changes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shoal.errors import UsageError
from shoal.models.backbone import Backbone, load_backbone
from shoal.transformer2.router import (
    NONE,
    Probe,
    ProbeRouter,
    mean_states,
    train_probe,
)

SKILLS = ("arithmetic", "poems")
SUMS = [f"What is {a} + {b}?" for a in range(3, 15) for b in (21, 34)]
POEMS = [
    f"Write a short verse about {what}"
    for what in ["rain", "snow", "wind", "sun", "fog", "ice", "sea", "sand", "dusk", "dawn"]
]


@pytest.fixture(params=["llama", "gpt2"])
def backbone(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Backbone:
    return load_backbone(str(tiny_models[request.param]), device="cpu", dtype=torch.float32)


def probe_of(backbone: Backbone, layer: int = 1) -> Probe:
    prompts = backbone.encode_prompts(SUMS + POEMS)
    labels = torch.tensor([0] * len(SUMS) + [1] * len(POEMS))
    return train_probe(mean_states(backbone.model, prompts, layer), labels, SKILLS, layer)


def test_a_probe_separates_what_can_be_told_apart(backbone: Backbone) -> None:
    router = ProbeRouter(backbone.model, probe_of(backbone))
    unseen = ["What is 19 + 77?", "Write a short verse about stars"]
    assert [d.skill for d in router.decide(backbone.encode_prompts(unseen))] == list(SKILLS)


def test_states_do_not_depend_on_the_batch(backbone: Backbone) -> None:
    prompts = backbone.encode_prompts(SUMS[:3] + POEMS[:3])
    together = mean_states(backbone.model, prompts, 1)
    for row, ids in enumerate(prompts):
        torch.testing.assert_close(
            mean_states(backbone.model, [ids], 1)[0], together[row], atol=1e-5, rtol=1e-4
        )


def test_a_probe_has_one_optimum() -> None:
    states, labels = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
    one, two = train_probe(states, labels, SKILLS, 0), train_probe(states.flip(0), labels.flip(0), SKILLS, 0)
    torch.testing.assert_close(one.weight, two.weight, atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(one.probabilities(states).sum(-1), torch.ones(40))


def test_classes_of_one_skill_are_one_choice() -> None:
    states, labels = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4
    probe = train_probe(states, labels, ("sums", "poems", "sums"), 0)
    assert probe.classes == ("sums", "poems", "sums", NONE) and probe.skills == ("sums", "poems")
    scores = ((states - probe.mean) / probe.scale) @ probe.weight.T + probe.bias
    each = scores.softmax(-1)
    wanted = torch.stack([each[:, 0] + each[:, 2], each[:, 1], each[:, 3]], dim=1)
    torch.testing.assert_close(probe.probabilities(states), wanted)


@pytest.mark.parametrize("prompts", [[], [[]], [[5], []]])
def test_nothing_to_decide_about(backbone: Backbone, prompts: list[list[int]]) -> None:
    router = ProbeRouter(backbone.model, probe_of(backbone))
    with pytest.raises(UsageError, match="at least 1 prompt of at least 1 token"):
        router.decide(prompts)


def test_a_probe_of_another_model(backbone: Backbone) -> None:
    probe = probe_of(backbone)
    for change in ({"layer": 99}, {"mean": torch.zeros(3)}):
        with pytest.raises(UsageError, match="train one for it"):
            ProbeRouter(backbone.model, Probe(**{**vars(probe), **change}))
    with pytest.raises(UsageError, match="2 states and 1 labels"):
        train_probe(torch.ones(2, 3), torch.tensor([0]), SKILLS, 0)
    with pytest.raises(UsageError, match="of 3 classes"):
        train_probe(torch.ones(1, 3), torch.tensor([3]), SKILLS, 0)
