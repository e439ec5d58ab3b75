"""A model that re-tunes itself: each row its expert, the base where none serves, and the guide's snippet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, TextIteratorStreamer

from shoal.adapters.decomposition import Decomposition, decompose
from shoal.adapters.svf import ExpertVector
from shoal.adapters.svf_hooks import attach_expert, dense_weight
from shoal.config import Transformer2Config
from shoal.errors import UsageError
from shoal.models.backbone import load_backbone, shape_of
from shoal.tasks.procedural.catalogue import procedural_tasks
from shoal.text_to_lora.skill_keywords import SKILLS
from shoal.transformer2.model import Transformer2, mlp_modules
from shoal.transformer2.router import NONE, Decision

FULL = Transformer2Config(expert_vector_dim=None, adaptation_strength=1.0)
CLOSE = {"atol": 3e-5, "rtol": 1e-4}


class FirstToken:
    """Stands for a trained router: the first token of a request names its skill."""

    skills = ("maths", "prose")

    def __init__(self) -> None:
        self.passes = 0

    def decide(self, prompts: Sequence[Sequence[int]]) -> list[Decision]:
        self.passes += 1
        return [Decision((*self.skills, NONE)[ids[0] % 3], {}) for ids in prompts]


@pytest.fixture(params=["llama", "gpt2", "opt"])
def model(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_models[request.param]).requires_grad_(False).eval()


def basis_of(model: PreTrainedModel) -> dict[str, Decomposition]:
    names = mlp_modules(shape_of(model, "tiny"))
    return {name: decompose(dense_weight(model.get_submodule(name))) for name in names}


def experts_of(basis: dict[str, Decomposition]) -> dict[str, ExpertVector]:
    generator = torch.Generator().manual_seed(0)
    return {
        skill: ExpertVector({n: 1 + torch.randn(d.s.shape, generator=generator) for n, d in basis.items()})
        for skill in FirstToken.skills
    }


def wrapped(model: PreTrainedModel, config: Transformer2Config = FULL) -> Transformer2:
    basis = basis_of(model)
    return Transformer2(model, config, experts=experts_of(basis), basis=basis, router=FirstToken())


def tokens() -> Tensor:
    return torch.tensor([[3, 7, 9, 11], [4, 7, 9, 11], [5, 7, 9, 11]])  # maths, prose, none


@torch.no_grad()
def test_every_row_is_answered_by_its_own_expert(model: PreTrainedModel) -> None:
    two, ids = wrapped(model), tokens()
    base = model(ids).logits
    output = two(ids)
    assert output.detected_skills == ["maths", "prose", NONE]
    experts = experts_of(basis_of(model))
    for row, skill in enumerate(FirstToken.skills):
        with attach_expert(model, basis_of(model), experts[skill]):
            torch.testing.assert_close(output.logits[row], model(ids[row : row + 1]).logits[0], **CLOSE)
    torch.testing.assert_close(output.logits[2], base[2], **CLOSE)
    adapted = {(a.row, a.skill, a.module) for a in output.adaptations}
    assert adapted == {(r, s, n) for r, s in enumerate(FirstToken.skills) for n in basis_of(model)}
    assert all(a.change > 0 for a in output.adaptations)
    assert torch.equal(model(ids).logits, base)


@torch.no_grad()
def test_abstaining_is_the_base_bit_for_bit(model: PreTrainedModel) -> None:
    two, ids = wrapped(model), tokens()[2:]
    output = two(ids)
    assert torch.equal(output.logits, model(ids).logits)
    assert (output.detected_skill, output.adaptations) == (NONE, [])


@torch.no_grad()
def test_strength_scales_the_change(model: PreTrainedModel) -> None:
    ids = tokens()[:1]
    base, expert = model(ids).logits, experts_of(basis_of(model))["maths"]
    none = wrapped(model, Transformer2Config(expert_vector_dim=None, adaptation_strength=0.0))
    assert torch.equal(none(ids).logits, base) and none(ids).adaptations == []
    weak = wrapped(model, Transformer2Config(expert_vector_dim=None, adaptation_strength=0.1))
    changed = weak(ids).logits
    with attach_expert(model, basis_of(model), expert.strengthened(0.1)):
        torch.testing.assert_close(changed, model(ids).logits, **CLOSE)


@torch.no_grad()
def test_layers_are_chosen(model: PreTrainedModel) -> None:
    some = Transformer2Config(expert_vector_dim=None, adaptation_strength=1.0, adaptation_layers=(1,))
    output = wrapped(model, some)(tokens()[:1])
    layers = {t.name: t.layer for t in shape_of(model, "tiny").targets}
    assert {layers[a.module] for a in output.adaptations} == {1}
    with pytest.raises(UsageError, match="names layer 99"):
        wrapped(model, Transformer2Config(adaptation_layers=(99,)))


def test_answers_take_one_first_pass(model: PreTrainedModel) -> None:
    two, ids = wrapped(model), tokens()
    mask = torch.ones_like(ids)
    options = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    answers = two.generate(ids, **options)
    assert two._router.passes == 1
    experts = experts_of(basis_of(model))
    for row, skill in enumerate(FirstToken.skills):
        with attach_expert(model, basis_of(model), experts[skill]):
            alone = model.generate(ids[row : row + 1], **{**options, "attention_mask": mask[:1]})
        assert answers[row, : alone.shape[1]].tolist() == alone[0].tolist()


@torch.no_grad()
def test_padding_is_not_read_by_the_first_pass(model: PreTrainedModel) -> None:
    ids, mask = torch.tensor([[5, 5, 3, 7]]), torch.tensor([[0, 0, 1, 1]])
    assert wrapped(model)(ids, attention_mask=mask).detected_skill == "maths"
    assert wrapped(model)(ids).detected_skill == NONE


def test_answers_can_be_streamed(tiny_llama: Path) -> None:
    backbone = load_backbone(str(tiny_llama), device="cpu", dtype=torch.float32)
    two = wrapped(backbone.model)
    ids = torch.tensor([backbone.encode_prompt("hello")])
    streamer = TextIteratorStreamer(backbone.tokenizer, skip_prompt=True, skip_special_tokens=True)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 4, "do_sample": False}
    whole = two.generate(ids, streamer=streamer, **options)[0, ids.shape[1] :]
    assert "".join(streamer) == backbone.tokenizer.decode(whole, skip_special_tokens=True)


def test_a_model_without_experts_says_so(model: PreTrainedModel, caplog: pytest.LogCaptureFixture) -> None:
    transformer2_model = Transformer2(model)
    assert "no experts are given" in caplog.text
    tokens = torch.tensor([[1, 2, 3, 4, 5]])  # the guide's snippet
    outputs = transformer2_model(tokens)
    assert outputs.detected_skill == NONE and len(outputs.adaptations) == 0
    assert torch.equal(outputs.logits, model(tokens).logits)


def test_what_cannot_be_wrapped_or_continued(model: PreTrainedModel) -> None:
    with pytest.raises(UsageError, match="cannot wrap a Linear"):
        Transformer2(torch.nn.Linear(2, 2))
    with pytest.raises(UsageError, match="takes the first pass's `decisions`"):
        wrapped(model)(tokens()[:, -1:], attention_mask=torch.ones(3, 4))


def test_experts_that_cannot_be_used(model: PreTrainedModel) -> None:
    basis = basis_of(model)
    experts, router = experts_of(basis), FirstToken()

    def refused(says: str, **changes: object) -> None:
        given = {"experts": experts, "basis": basis, "router": router, **changes}
        with pytest.raises(UsageError, match=says):
            Transformer2(model, Transformer2Config(num_expert_vectors=2, expert_vector_dim=None), **given)

    refused("no router", router=None)
    refused("it knows maths, prose", experts={"verse": experts["maths"]})
    refused("3 experts are more than num_expert_vectors 2", experts={**experts, "none": experts["maths"]})
    stranger = {"maths": ExpertVector({"elsewhere": torch.ones(3)})}
    refused("no module 'elsewhere'", experts=stranger, basis=None)
    refused("not decomposed", experts=stranger)
    short = {"maths": ExpertVector({name: z[:2] for name, z in experts["maths"].z.items()})}
    refused("2 numbers, but", experts=short)


@pytest.mark.parametrize("ids", [torch.zeros(0, 4, dtype=torch.long), torch.zeros(1, 0, dtype=torch.long)])
def test_empty_requests_are_refused(model: PreTrainedModel, ids: Tensor) -> None:
    for two in (wrapped(model), Transformer2(model)):
        with pytest.raises(UsageError, match="at least 1 row"):
            two(ids)
    with pytest.raises(UsageError, match="1 decisions do not fit 3 rows"):
        wrapped(model)(tokens(), decisions=[Decision(NONE, {})])


def test_experts_find_their_own_basis(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).requires_grad_(False).eval()
    experts = {
        s: ExpertVector({n: z[:4] for n, z in e.z.items()}) for s, e in experts_of(basis_of(model)).items()
    }
    config = Transformer2Config(expert_vector_dim=4, adaptation_strength=1.0)
    output = Transformer2(model, config, experts=experts, router=FirstToken())(tokens()[:1])
    assert len(output.adaptations) == len(basis_of(model))


@pytest.mark.slow
def test_the_shipped_router_knows_everyday_wording_and_its_experts_answer() -> None:
    backbone = load_backbone()
    two = Transformer2.shipped(backbone.model, Transformer2Config(adaptation_strength=1.0))
    assert len(two.experts) == 8 and not set(two.experts) & set(SKILLS)
    task = next(t for t in procedural_tasks(size=32, test_size=16) if t.name == "news-topic")
    asked = {
        task.described(task.test[0].input): "news_topics",
        "Summarize: The council met on Monday and voted to close the old bridge.": "summarization",
        "Translate to French: Good morning, my friends.": "translation",
        "What is the capital of Italy?": "question_answering",
        "All cats are animals. Tom is a cat. What follows?": "reasoning",
        "Write a poem about the sea.": "creative_writing",
    }
    for request, skill in asked.items():
        ids = torch.tensor([backbone.encode_prompt(request)])
        (decision,) = two.decide(ids)
        assert decision.skill == skill, request
        same = torch.equal(two(ids).logits, backbone.model(ids).logits)
        assert same == (skill not in two.experts), request
