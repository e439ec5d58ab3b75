"""Label scoring on a tiny random model: the same numbers as the plain loss, and what it refuses."""

import math

import pytest
import torch

from shoal.adapters.card import MAX_LABELS, LabelSet
from shoal.adapters.lora import LoRA
from shoal.adapters.svf import ExpertVector
from shoal.adapters.svf_cache import decompose_model
from shoal.adapters.svf_hooks import attach_expert
from shoal.errors import UsageError
from shoal.inference.decoding import Rows
from shoal.inference.labels import (
    answer_with_labels,
    choose_labels,
    content_free_priors,
    encode_labels,
    label_log_likelihoods,
    label_priors,
)
from shoal.inference.scoring import reference_losses
from shoal.models.backbone import Backbone, load_backbone

REQUESTS = ["a short one", "another request, which is a good deal longer", "third"]
LABELS = ["no", "no way", "perhaps so", "yes"]  # one is a prefix of another


@pytest.fixture(scope="module")
def backbone(tiny_llama) -> Backbone:
    return load_backbone(str(tiny_llama), device="cpu", dtype=torch.float32)


@pytest.fixture
def lora(backbone) -> LoRA:
    identity = LoRA.identity(backbone.shape.targets[:4], 2, 4.0, generator=torch.Generator().manual_seed(1))
    factors = {n: f._replace(b=torch.randn_like(f.b)) for n, f in identity.factors.items()}
    return LoRA(factors, identity.alpha)


def plain(backbone, adapters) -> torch.Tensor:
    requests = [r for r in REQUESTS for _ in LABELS]
    losses = reference_losses(backbone, requests, LABELS * len(REQUESTS), adapters)
    tokens = [len(ids) for ids in backbone.encode_completions(LABELS)] * len(REQUESTS)
    return -(torch.tensor(losses) * torch.tensor(tokens)).reshape(len(REQUESTS), len(LABELS))


def test_scores_are_the_log_probability_of_the_whole_answer(backbone) -> None:
    scores = label_log_likelihoods(backbone, backbone.encode_prompts(REQUESTS), LABELS)
    torch.testing.assert_close(scores, plain(backbone, None), atol=1e-3, rtol=1e-4)


def test_an_adapter_scores_as_attached(backbone, lora) -> None:
    prompts = backbone.encode_prompts(REQUESTS)
    scores = label_log_likelihoods(backbone, prompts, LABELS, lora)
    torch.testing.assert_close(scores, plain(backbone, lora), atol=1e-3, rtol=1e-4)


def test_an_expert_scores_as_attached(backbone) -> None:
    basis = decompose_model(backbone.model, [t.name for t in backbone.shape.select(("up_proj",), None)])
    expert = ExpertVector({name: torch.linspace(0, 3, d.s.numel()) for name, d in basis.items()})
    prompts = backbone.encode_prompts(REQUESTS)
    scores = label_log_likelihoods(backbone, prompts, LABELS, expert, basis=basis)
    with attach_expert(backbone.model, basis, expert):
        torch.testing.assert_close(scores, plain(backbone, None), atol=1e-3, rtol=1e-4)
    label_set = LabelSet(labels=tuple(LABELS))
    chosen = choose_labels(backbone, prompts, label_set, expert, basis=basis)
    priors = torch.tensor(content_free_priors(backbone, LABELS, expert, basis=basis))
    assert [LABELS.index(answer.label) for answer in chosen] == (scores - priors).argmax(-1).tolist()


def test_evidence_from_elsewhere_is_added_in_nats(backbone) -> None:
    prompts, label_set = backbone.encode_prompts(REQUESTS), LabelSet(labels=tuple(LABELS))
    plain = choose_labels(backbone, prompts, label_set)
    evidence = torch.zeros(len(REQUESTS), len(LABELS)).index_fill_(1, torch.tensor([1]), 3.0)
    moved = choose_labels(backbone, prompts, label_set, evidence=evidence)
    for before, after in zip(plain, moved, strict=True):
        odds = [a.probabilities[LABELS[1]] / a.probabilities[LABELS[0]] for a in (before, after)]
        assert odds[1] / odds[0] == pytest.approx(math.exp(3), rel=1e-3)


@pytest.mark.parametrize("places", [1, 150, 400])
def test_few_places_score_as_many(backbone, places) -> None:
    prompts = backbone.encode_prompts(REQUESTS)
    whole = label_log_likelihoods(backbone, prompts, LABELS)
    few = label_log_likelihoods(backbone, prompts, LABELS, places=places)
    torch.testing.assert_close(few, whole, atol=1e-3, rtol=1e-4)


def test_long_prompts_take_no_more_than_the_places(backbone, monkeypatch) -> None:
    class Counted(Rows):
        largest, read_rows, prompts = 0, 0, 0

        def read(self, columns=None):
            Counted.read_rows += len(self)
            Counted.prompts = len(self)
            return super().read(columns)

        def step(self, tokens):
            logits = super().step(tokens)
            Counted.largest = max(Counted.largest, (Counted.prompts + len(self)) * self.cache.width)
            return logits

    monkeypatch.setattr("shoal.inference.labels.Rows", Counted)
    prompts = [[5] * length for length in (20, 400, 20, 30, 420)]
    longest = max(map(len, encode_labels(backbone, LABELS)))
    label_log_likelihoods(backbone, prompts, LABELS, places=1400)
    assert 2 * (420 + longest) < Counted.largest <= 1400  # two labels of a long prompt went on together
    assert Counted.read_rows == len(prompts)  # each was read once


def test_a_label_that_is_likely_everywhere_wins_only_where_it_is_likelier_than_usual() -> None:
    scores = torch.tensor([[-1.0, -3.0], [-1.5, -2.0], [-0.5, -4.0]])
    answers = answer_with_labels(["often", "rare"], scores, label_priors(scores))
    assert [a.label for a in answers] == ["often", "rare", "often"]
    assert sum(answers[0].probabilities.values()) == pytest.approx(1)


def test_content_free_priors_are_one_finite_number_a_label(backbone, lora) -> None:
    priors = content_free_priors(backbone, LABELS, lora)
    assert len(priors) == len(LABELS) and all(p < 0 for p in priors)


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        (["one"], "got 1"),
        ("yes", "got 1"),
        ([str(n) for n in range(MAX_LABELS + 1)], f"2 to {MAX_LABELS}"),
        (["a", "b", "a"], "same tokens"),
        (["a", ""], "cannot spell"),
    ],
)
def test_sets_that_are_no_choice_are_refused(backbone, labels, part) -> None:
    with pytest.raises(UsageError, match=part):
        encode_labels(backbone, labels)


def test_labels_in_any_script_are_spelt_by_a_byte_tokenizer(backbone) -> None:
    assert len(encode_labels(backbone, ["да", "いいえ", "🙂"])) == 3


def test_a_prompt_without_room_for_the_label_is_refused(backbone) -> None:
    with pytest.raises(UsageError, match="exceed"):
        label_log_likelihoods(backbone, [[1] * 511], LABELS)
