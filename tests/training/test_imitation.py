"""A LoRA learns a teacher's answers, hard and soft, and leaves the model as it was."""

import pytest
import torch

from shoal.adapters.lora import LoRA
from shoal.inference.generate import generate_greedy
from shoal.inference.scoring import reference_losses
from shoal.models.backbone import Backbone, load_backbone
from shoal.training.imitation import Imitation, SoftTargets, TaughtAnswer
from shoal.training.short_runs import optimise

TEXTS, SAID = ["one", "two", "three"], ["aa", "b", "ccc"]


@pytest.fixture
def backbone(tiny_llama) -> Backbone:
    return load_backbone(str(tiny_llama), device="cpu")


@pytest.fixture
def identity(backbone) -> LoRA:
    return LoRA.identity(backbone.shape.targets, 4, 8.0, generator=torch.Generator().manual_seed(0))


def taught(backbone, soft=False) -> list[TaughtAnswer]:
    prompts, completions = backbone.encode_prompts(TEXTS), backbone.encode_completions(SAID)
    return [
        TaughtAnswer(p, c, SoftTargets(torch.tensor(c)[:, None], torch.ones(len(c), 1)) if soft else None)
        for p, c in zip(prompts, completions, strict=True)
    ]


def test_the_student_comes_to_give_the_teachers_answers(backbone, identity) -> None:
    imitation = Imitation(backbone, identity, taught(backbone), learning_rate=2e-2)
    assert len(list(optimise(backbone, imitation, 60))) == 60
    assert generate_greedy(backbone, TEXTS, imitation.lora(), max_new_tokens=8) == SAID


def test_soft_targets_of_one_token_are_hard_ones(backbone, identity) -> None:
    hard = Imitation(backbone, identity, taught(backbone)).loss(0)
    soft = Imitation(backbone, identity, taught(backbone, soft=True)).loss(0)
    assert (
        float(hard.loss.detach()) == pytest.approx(float(soft.loss.detach()), rel=1e-4)
        and hard.tokens == soft.tokens
    )


def test_the_first_loss_is_that_of_the_adapter_given(backbone, identity) -> None:
    expected = reference_losses(backbone, TEXTS, SAID, identity)
    first = Imitation(backbone, identity, taught(backbone)).loss(0)
    assert float(first.loss.detach()) == pytest.approx(sum(expected) / 3, rel=1e-3)


def test_the_model_and_the_adapter_given_stay_as_they_were(backbone, identity) -> None:
    before = generate_greedy(backbone, TEXTS, max_new_tokens=4)
    kept, attention = identity.copy(), backbone.model.config._attn_implementation
    steps = optimise(backbone, Imitation(backbone, identity, taught(backbone), learning_rate=1e-2), 2)
    next(steps)
    assert identity == kept and backbone.model.config._attn_implementation == attention
    assert generate_greedy(backbone, TEXTS, max_new_tokens=4) == before


def test_the_rate_is_that_of_the_step(backbone, identity) -> None:
    imitation = Imitation(backbone, identity, taught(backbone), learning_rate=1e-2)
    steps = optimise(backbone, imitation, 2, rate=lambda step: float(step == 1))
    next(steps)
    assert imitation.lora() == identity
    next(steps)
    assert imitation.lora() != identity


def test_every_answer_comes_once_before_any_comes_again(backbone, identity) -> None:
    answers = taught(backbone)
    imitation = Imitation(backbone, identity, answers, batch_size=2)
    drawn = [answers.index(answer) for number in range(3) for answer in imitation.batch(number)]
    assert sorted(drawn[:3]) == [0, 1, 2] and sorted(drawn) == [0, 0, 1, 1, 2, 2]
