"""The benchmark's router by prompt: likelihoods without a favourite, and names that can be told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks._prompt_router import CONTENT_FREE, PromptRouter
from shoal.errors import UsageError
from shoal.models.backbone import Backbone, load_backbone
from shoal.transformer2.router import NONE

SKILLS = ("arithmetic", "poems")


@pytest.fixture(params=["llama", "gpt2"])
def backbone(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Backbone:
    return load_backbone(str(tiny_models[request.param]), device="cpu", dtype=torch.float32)


def test_the_prompt_decides_by_calibrated_likelihood(backbone: Backbone) -> None:
    router = PromptRouter(backbone, SKILLS)
    prompts = backbone.encode_prompts(["What is 3 + 4?", "Write a verse"])
    together = router.decide(prompts)
    for ids, decision in zip(prompts, together, strict=True):
        assert set(decision.probabilities) == {*SKILLS, NONE}
        assert sum(decision.probabilities.values()) == pytest.approx(1)
        assert decision.skill == max(decision.probabilities, key=decision.probabilities.__getitem__)
        assert router.decide([ids])[0].probabilities == pytest.approx(decision.probabilities)


def test_without_content_no_skill_is_preferred(backbone: Backbone) -> None:
    """Calibration leaves the content-free requests nearer to even than the model's own likelihoods are."""
    router = PromptRouter(backbone, SKILLS)
    for text in filter(None, CONTENT_FREE):
        (decision,) = router.decide([backbone.encode_prompt(text)])
        own = router._likelihoods(text).softmax(-1)
        calibrated = torch.tensor(list(decision.probabilities.values()))
        assert float((calibrated - 1 / 3).abs().max()) < float((own - 1 / 3).abs().max())


def test_the_request_is_what_is_asked_about(backbone: Backbone) -> None:
    router = PromptRouter(backbone, SKILLS)
    assert router._request(backbone.encode_prompt("What is 3 + 4?")) == "What is 3 + 4?"
    one, two = router.decide(backbone.encode_prompts(["What is 3 + 4?", "Zebras! Zebras! Zebras!"]))
    assert one.probabilities != pytest.approx(two.probabilities, abs=1e-6)


def test_a_long_request_is_read_as_far_as_fits(tiny_models: dict[str, Path]) -> None:
    backbone = load_backbone(str(tiny_models["gpt2"]), device="cpu", dtype=torch.float32)
    router = PromptRouter(backbone, SKILLS)
    long = "a" * (backbone.model.config.max_position_embeddings - 40)
    assert router.decide([backbone.encode_prompt(long)])[0].skill in (*SKILLS, NONE)


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
        PromptRouter(backbone, skills)
