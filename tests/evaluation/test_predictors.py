"""Predictors: the model, an adapted one and Transformer² through one interface; choices by likelihood."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import log_softmax

from shoal.adapters.decomposition import decompose
from shoal.adapters.hooks import attach
from shoal.adapters.lora import LoRA, LoraFactors
from shoal.adapters.svf import ExpertVector
from shoal.adapters.svf_hooks import attach_expert, dense_weight
from shoal.config import Transformer2Config
from shoal.errors import UsageError
from shoal.evaluation.multiple_choice import ChoiceQuestion, answer_by_likelihood
from shoal.evaluation.predictors import Predictor
from shoal.evaluation.retention import GENERAL_KNOWLEDGE, base_ability
from shoal.inference.generate import generate_greedy
from shoal.inference.scoring import reference_losses
from shoal.models.backbone import Backbone, load_backbone
from shoal.transformer2.model import Transformer2, mlp_modules
from shoal.transformer2.router import NONE, Decision

REQUESTS = ["maths: a", "prose: a longer request than that", "x"]
REFERENCES = ["one", "two three", "4"]


@pytest.fixture(scope="module")
def backbone(tiny_llama: Path) -> Backbone:
    return load_backbone(str(tiny_llama), device="cpu", dtype=torch.float32)


class ByWord:
    """Stands for a trained router: a word of the request names its skill."""

    skills = ("maths", "prose")

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone

    def decide(self, prompts: list[list[int]]) -> list[Decision]:
        texts = [self._backbone.decode(ids) for ids in prompts]
        return [Decision(next((s for s in self.skills if s in text), NONE), {}) for text in texts]


def test_an_adapted_model_is_the_engine(backbone: Backbone) -> None:
    identity = LoRA.identity(backbone.shape.select(("q_proj", "v_proj"), None), 2, 4.0)
    generator = torch.Generator().manual_seed(1)
    lora = LoRA(
        {
            n: LoraFactors(f.a, torch.randn(f.b.shape, generator=generator))
            for n, f in identity.factors.items()
        },
        4.0,
    )
    adapted, bare = Predictor(backbone, lora), Predictor(backbone)
    assert adapted.answers(REQUESTS, max_new_tokens=5) == generate_greedy(
        backbone, REQUESTS, lora, max_new_tokens=5
    )
    with attach(backbone.model, lora):
        inside = bare.losses(REQUESTS, REFERENCES)
    assert adapted.losses(REQUESTS, REFERENCES) == pytest.approx(inside, rel=1e-4)
    assert bare.losses(REQUESTS, REFERENCES) != pytest.approx(inside, rel=1e-2)


def test_without_experts_transformer2_is_the_base(backbone: Backbone) -> None:
    alone = Predictor(backbone, wrapped=Transformer2(backbone.model))
    bare = Predictor(backbone)
    assert alone.answers(REQUESTS, max_new_tokens=5) == bare.answers(REQUESTS, max_new_tokens=5)
    assert alone.losses(REQUESTS, REFERENCES) == bare.losses(REQUESTS, REFERENCES)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_each_request_is_answered_by_its_own_expert(backbone: Backbone, batch_size: int) -> None:
    names = mlp_modules(backbone.shape)
    basis = {name: decompose(dense_weight(backbone.model.get_submodule(name))) for name in names}
    generator = torch.Generator().manual_seed(0)
    experts = {
        skill: ExpertVector({n: 1 + torch.randn(d.s.shape, generator=generator) for n, d in basis.items()})
        for skill in ByWord.skills
    }
    config = Transformer2Config(expert_vector_dim=None, adaptation_strength=1.0)
    wrapped = Transformer2(backbone.model, config, experts=experts, basis=basis, router=ByWord(backbone))
    predictor = Predictor(backbone, wrapped=wrapped)
    answers = predictor.answers(REQUESTS, max_new_tokens=5, batch_size=batch_size)
    losses = predictor.losses(REQUESTS, REFERENCES, batch_size=batch_size)
    for row, skill in enumerate([*ByWord.skills, None]):
        one, reference = REQUESTS[row : row + 1], REFERENCES[row : row + 1]
        if skill is None:
            said, loss = (
                generate_greedy(backbone, one, max_new_tokens=5),
                reference_losses(backbone, one, reference),
            )
        else:
            with attach_expert(backbone.model, basis, experts[skill]):
                said = generate_greedy(backbone, one, max_new_tokens=5)
                loss = reference_losses(backbone, one, reference)
        assert answers[row : row + 1] == said
        assert losses[row] == pytest.approx(loss[0], rel=1e-3)


@torch.no_grad()
def test_choices_are_scored_by_character(backbone: Backbone) -> None:
    question = ChoiceQuestion("Which?", ("a", "bcd", "ef ghij"), 1)
    result = answer_by_likelihood(Predictor(backbone), [question, question], batch_size=2)[0]
    by_hand = []
    for choice in question.choices:
        prompt, ids = backbone.encode_prompt("Which?"), backbone.encode_completion(choice)[:-1]
        logits = backbone.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        likely = log_softmax(logits, -1)[range(len(ids)), ids]
        by_hand.append((float(likely.sum()) / len(choice), -float(likely.mean()), float(likely.sum())))
    best = max(range(3), key=lambda i: by_hand[i][0])
    assert result.chosen == best and result.right == (best == 1)
    assert result.likeliest == max(range(3), key=lambda i: by_hand[i][2])
    assert result.nll == pytest.approx(by_hand[1][1], rel=1e-4)


@pytest.mark.parametrize(
    ("choices", "answer"), [(("a",), 0), (("a", " "), 0), (("a", "b"), 2), (("a", "b"), -1)]
)
def test_questions_that_are_none(choices: tuple[str, ...], answer: int) -> None:
    with pytest.raises(UsageError):
        ChoiceQuestion("Which?", choices, answer)


def test_general_questions(backbone: Backbone) -> None:
    found = base_ability(Predictor(backbone), 3)
    assert found.accuracy in (0, 1 / 3, 2 / 3, 1) and found.perplexity >= 1
    assert len({q for q, *_ in GENERAL_KNOWLEDGE}) == len(GENERAL_KNOWLEDGE)
    assert all(len(set(choices)) == 4 for _, *choices in GENERAL_KNOWLEDGE)
    for number in (0, len(GENERAL_KNOWLEDGE) + 1):
        with pytest.raises(UsageError, match="must be 1 to"):
            base_ability(Predictor(backbone), number)
    with pytest.raises(UsageError, match="at least 1"):
        answer_by_likelihood(Predictor(backbone), [])
