"""Which skill a request needs: likelihoods without a favourite, a probe that separates, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shoal.errors import UsageError
from shoal.models.backbone import Backbone, load_backbone
from shoal.transformer2.router import (
    CONTENT_FREE,
    NONE,
    Probe,
    ProbeDispatch,
    PromptDispatch,
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


def test_the_prompt_decides_by_calibrated_likelihood(backbone: Backbone) -> None:
    dispatch = PromptDispatch(backbone, SKILLS)
    prompts = backbone.encode_prompts(["What is 3 + 4?", "Write a verse"])
    together = dispatch.decide(prompts)
    for ids, decision in zip(prompts, together, strict=True):
        assert set(decision.probabilities) == {*SKILLS, NONE}
        assert sum(decision.probabilities.values()) == pytest.approx(1)
        assert decision.skill == max(decision.probabilities, key=decision.probabilities.__getitem__)
        assert dispatch.decide([ids])[0].probabilities == pytest.approx(decision.probabilities)


def test_without_content_no_skill_is_preferred(backbone: Backbone) -> None:
    """Calibration leaves the content-free requests nearer to even than the model's own likelihoods are."""
    dispatch = PromptDispatch(backbone, SKILLS)
    for text in filter(None, CONTENT_FREE):
        (decision,) = dispatch.decide([backbone.encode_prompt(text)])
        own = dispatch._likelihoods(text).softmax(-1)
        calibrated = torch.tensor(list(decision.probabilities.values()))
        assert float((calibrated - 1 / 3).abs().max()) < float((own - 1 / 3).abs().max())


def test_the_request_is_what_is_asked_about(backbone: Backbone) -> None:
    dispatch = PromptDispatch(backbone, SKILLS)
    assert dispatch._request(backbone.encode_prompt("What is 3 + 4?")) == "What is 3 + 4?"
    one, two = dispatch.decide(backbone.encode_prompts(["What is 3 + 4?", "Zebras! Zebras! Zebras!"]))
    assert one.probabilities != pytest.approx(two.probabilities, abs=1e-6)


def test_a_long_request_is_read_as_far_as_fits(tiny_models: dict[str, Path]) -> None:
    backbone = load_backbone(str(tiny_models["gpt2"]), device="cpu", dtype=torch.float32)
    dispatch = PromptDispatch(backbone, SKILLS)
    long = "a" * (backbone.model.config.max_position_embeddings - 40)
    assert dispatch.decide([backbone.encode_prompt(long)])[0].skill in (*SKILLS, NONE)


def test_a_probe_separates_what_can_be_told_apart(backbone: Backbone) -> None:
    dispatch = ProbeDispatch(backbone.model, probe_of(backbone))
    unseen = ["What is 19 + 77?", "Write a short verse about stars"]
    assert [d.skill for d in dispatch.decide(backbone.encode_prompts(unseen))] == list(SKILLS)
    unsure = ProbeDispatch(backbone.model, probe_of(backbone), least=1.1)
    assert {d.skill for d in unsure.decide(backbone.encode_prompts(unseen))} == {NONE}


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


@pytest.mark.parametrize(
    ("skills", "says"),
    [
        ((), "got 0"),
        (("maths", "Maths"), "names two choices"),
        (("none",), "names two choices"),
        (("code", "code review"), "'code review' begins with the name 'code'"),
    ],
)
def test_names_that_cannot_be_told_apart(backbone: Backbone, skills: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        PromptDispatch(backbone, skills)


@pytest.mark.parametrize("prompts", [[], [[]], [[5], []]])
def test_nothing_to_decide_about(backbone: Backbone, prompts: list[list[int]]) -> None:
    for dispatch in (PromptDispatch(backbone, SKILLS), ProbeDispatch(backbone.model, probe_of(backbone))):
        with pytest.raises(UsageError, match="at least 1 prompt of at least 1 token"):
            dispatch.decide(prompts)


def test_a_probe_of_another_model(backbone: Backbone) -> None:
    probe = probe_of(backbone)
    for change in ({"layer": 99}, {"mean": torch.zeros(3)}):
        with pytest.raises(UsageError, match="train one for it"):
            ProbeDispatch(backbone.model, Probe(**{**vars(probe), **change}))
    with pytest.raises(UsageError, match="2 states and 1 labels"):
        train_probe(torch.ones(2, 3), torch.tensor([0]), SKILLS, 0)
    with pytest.raises(UsageError, match="of 3 classes"):
        train_probe(torch.ones(1, 3), torch.tensor([3]), SKILLS, 0)
