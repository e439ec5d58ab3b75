"""A directory of experts: its probe is trained on their tasks, and a model with those weights finds it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from shoal.adapters.svf import ExpertVector
from shoal.adapters.svf_cache import decompose_model
from shoal.adapters.svf_files import StoredExpert, basis_of, read_expert, save_expert
from shoal.config import Transformer2Config
from shoal.errors import ShoalError, UsageError
from shoal.models.backbone import Backbone, load_backbone
from shoal.tasks.loading import Example, Task
from shoal.transformer2.experts import (
    ROUTER,
    experts_of,
    load_expert_set,
    shipped_experts,
    tasks_of,
)
from shoal.transformer2.model import Transformer2, mlp_modules
from shoal.transformer2.router import NONE, train_probe
from shoal.transformer2.router_files import CONFIG_FILE, WEIGHTS_FILE, StoredProbe, load_probe, save_probe
from shoal.transformer2.router_recipe import (
    TEST,
    TRAIN,
    EverydayRequest,
    accuracy,
    labelled_requests,
    make_router,
)

COMPONENTS = 4


def task(name: str, letter: str) -> Task:
    """Inputs of one letter, behind descriptions of it: easily told apart."""
    descriptions = tuple(f"{letter * 6} {number}" for number in range(8))
    examples = [Example(letter * (5 + number), ("x",)) for number in range(20)]
    return Task(name, "letters", descriptions[0], descriptions, tuple(examples[:14]), tuple(examples[14:]))


TASKS = {"maths": [task("sums", "1"), task("roots", "2")], "prose": [task("verse", "w")]}
OTHERS = [task("noise", "#")]


@pytest.fixture
def backbone(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
    return load_backbone(str(tiny_llama))


@pytest.fixture
def folder(backbone: Backbone, tmp_path: Path) -> Path:
    """Two experts of four singular values a weight, and a probe that tells their tasks apart."""
    names = mlp_modules(backbone.shape)
    basis = decompose_model(backbone.model, names, components=COMPONENTS)
    generator = torch.Generator().manual_seed(0)
    for skill, tasks in TASKS.items():
        z = {n: 1 + torch.randn(d.s.shape, generator=generator) for n, d in basis.items()}
        facts = {"tasks": [t.name for t in tasks]}
        stored = StoredExpert(ExpertVector(z), backbone.shape.base_model, skill, facts)
        save_expert(tmp_path / "set" / skill, stored, basis)
    make_router(
        backbone, TASKS, OTHERS, tmp_path / "set" / ROUTER, layers=(1, 2), requests=40, test_requests=10
    )
    return tmp_path / "set"


def test_training_and_test_share_no_input_and_no_description() -> None:
    known, unseen = labelled_requests(TASKS, 30, TRAIN), labelled_requests(TASKS, 30, TEST)
    assert [r.skill for r in known] == ["maths"] * 30 + ["prose"] * 30
    assert {r.task.name for r in known if r.skill == "maths"} == {"sums", "roots"}
    words = [{r.text.split("\n\n")[0] for r in part} for part in (known, unseen)]
    assert words[1] == {f"{letter * 6} {n}" for letter in "12w" for n in (3, 7)} and not words[0] & words[1]
    assert not {r.example.input for r in known} & {r.example.input for r in unseen}
    assert labelled_requests(TASKS, 30, TRAIN) == known != labelled_requests(TASKS, 30, TRAIN, seed=1)


def test_more_wordings_are_trained_on_and_never_scored_on() -> None:
    more = {"sums": [f"add up {n}" for n in range(6)]}

    def worded(folds: Sequence[int]) -> set[str]:
        requests = labelled_requests(TASKS, 300, folds, 0, more)
        return {r.text.split("\n\n")[0] for r in requests} & set(more["sums"])

    assert worded(TRAIN) == set(more["sums"]) and worded([1]) == {"add up 1", "add up 4"}
    assert labelled_requests(TASKS, 60, TEST, 0, more) == labelled_requests(TASKS, 60, TEST)


def test_the_probe_is_scored_on_what_it_never_saw(backbone: Backbone, folder: Path) -> None:
    stored = load_probe(folder / ROUTER)
    assert stored.provenance["accuracy"] == 1.0 and stored.provenance["test_requests"] == 30
    assert stored.provenance["tasks"] == {"maths": ["sums", "roots"], "prose": ["verse"], NONE: ["noise"]}
    assert stored.provenance["selection_accuracy"].keys() == {"1", "2"} and stored.probe.layer in (1, 2)
    wrong = [r._replace(skill=NONE) for r in labelled_requests(TASKS, 5, TEST)]
    assert accuracy(backbone, stored.probe, wrong) == 0


def test_everyday_requests_teach_a_skill_that_no_expert_has(
    backbone: Backbone, folder: Path, tmp_path: Path
) -> None:
    everyday = [EverydayRequest(f"zzzz {n} zzzz", "dreams") for n in range(12)]
    everyday += [EverydayRequest(f"???? {n}", NONE) for n in range(6)]
    stored = make_router(
        backbone, TASKS, OTHERS, tmp_path / "probe", layers=(1, 2), requests=24, everyday=everyday
    )
    assert stored.provenance["everyday"] == 18 and stored.provenance["requests"] == 24 * 4 + 18
    assert stored.probe.skills == ("maths", "prose", "dreams")
    assert stored.probe.classes == ("maths", "maths", "prose", "dreams", NONE, NONE)
    shutil.rmtree(folder / ROUTER)
    save_probe(folder / ROUTER, stored)
    two = Transformer2.shipped(backbone.model, Transformer2Config(adaptation_strength=1.0), folder=folder)
    ids = torch.tensor([backbone.encode_prompt("zzzz 20 zzzz")])
    output = two(ids)
    assert output.detected_skill == "dreams" and not output.adaptations
    assert torch.equal(output.logits, backbone.model(ids).logits)


def test_experts_under_their_old_names_answer_to_the_new_ones(
    backbone: Backbone, folder: Path, tmp_path: Path
) -> None:
    old, new = tmp_path / "old", ("code_generation", "translation")
    basis = decompose_model(backbone.model, mlp_modules(backbone.shape), components=COMPONENTS)
    for skill, name in zip(TASKS, ("code", "languages"), strict=True):
        expert = read_expert(folder / skill)
        save_expert(old / name, StoredExpert(expert.expert, expert.base_model, name, {}), basis)
    make_router(
        backbone, dict(zip(new, TASKS.values(), strict=True)), OTHERS, old / ROUTER, layers=(1,), requests=40
    )
    known = experts_of(backbone.model, old)
    assert list(known.experts) == list(new) and known.experts["code"] is known.experts["code_generation"]
    two = Transformer2.shipped(backbone.model, Transformer2Config(adaptation_strength=1.0), folder=old)
    output = two(torch.tensor([backbone.encode_prompt("111111 3\n\n11111")]))
    assert output.detected_skill == "code_generation" and output.adaptations
    assert "languages" in two.experts


def test_a_probe_that_names_skills_in_place_of_classes(backbone: Backbone, folder: Path) -> None:
    states = torch.randn(6, backbone.model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    probe = train_probe(states, torch.arange(6) % 3, list(TASKS), 1)
    shutil.rmtree(folder / ROUTER)
    save_probe(folder / ROUTER, StoredProbe(probe, backbone.shape.base_model))
    path = folder / ROUTER / CONFIG_FILE
    record = json.loads(path.read_text("utf-8"))
    assert record.pop("classes") == [*TASKS, NONE]
    path.write_text(json.dumps({**record, "skills": list(TASKS)}), "utf-8")
    assert load_probe(folder / ROUTER).probe.classes == probe.classes


def test_what_a_router_cannot_be_trained_on(backbone: Backbone, tmp_path: Path) -> None:
    for skills, others, says in (
        ({}, OTHERS, "0 skills"),
        (TASKS, [], "for none"),
        ({"a": []}, OTHERS, "for a"),
    ):
        with pytest.raises(UsageError, match=says):
            make_router(backbone, skills, others, tmp_path / "probe", layers=[1])
    with pytest.raises(UsageError, match="wordings of knitting, which is no task"):
        make_router(
            backbone, TASKS, OTHERS, tmp_path / "probe", layers=[1], wordings={"knitting": ["knit it"]}
        )
    assert not (tmp_path / "probe").exists()


def test_a_model_answers_with_the_experts_of_its_weights(
    backbone: Backbone, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.transformer2.experts.SHIPPED", tmp_path / "shipped")
    assert shipped_experts(backbone.model) is None
    (tmp_path / "shipped").mkdir()
    folder.rename(tmp_path / "shipped" / "tiny")
    assert list(shipped_experts(backbone.model).experts) == ["maths", "prose"]
    config = Transformer2Config(adaptation_strength=1.0)
    two = Transformer2.shipped(backbone.model, config)
    ids = torch.tensor([backbone.encode_prompt("111111 3\n\n11111")])
    output = two(ids)
    assert output.detected_skill == "maths" and output.adaptations
    assert not torch.equal(output.logits, backbone.model(ids).logits)
    other = torch.tensor([backbone.encode_prompt("###### 3\n\n#####")])
    assert two(other).detected_skill == NONE
    assert torch.equal(two(other).logits, backbone.model(other).logits)
    assert list(Transformer2.shipped(backbone.model, Transformer2Config(num_expert_vectors=1)).experts) == [
        "maths"
    ]

    torch.nn.init.normal_(backbone.model.get_submodule(min(mlp_modules(backbone.shape))).weight)
    assert shipped_experts(backbone.model) is None
    with pytest.raises(UsageError, match="no experts are shipped"):
        experts_of(backbone.model)


def test_another_architecture_has_no_shipped_experts(
    folder: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.transformer2.experts.SHIPPED", folder.parent)
    assert shipped_experts(AutoModelForCausalLM.from_pretrained(tiny_models["gpt2"])) is None


def test_a_model_of_another_width_is_not_decomposed(
    backbone: Backbone, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.transformer2.experts.SHIPPED", folder.parent)
    monkeypatch.setattr(
        "shoal.adapters.svf_files.decompose_model", lambda *_, **__: pytest.fail("decomposed")
    )
    monkeypatch.setattr(backbone.model.config, "hidden_size", 4096)
    assert shipped_experts(backbone.model) is None


def test_fewer_components_cut_experts_and_basis(backbone: Backbone, folder: Path) -> None:
    whole, cut = (
        load_expert_set(folder, backbone.model),
        load_expert_set(folder, backbone.model, components=2),
    )
    for skill, expert in whole.experts.items():
        assert {z.numel() for z in expert.z.values()} == {COMPONENTS}
        assert all(torch.equal(cut.experts[skill].z[n], z[:2]) for n, z in expert.z.items())
    assert {d.s.numel() for d in cut.basis.values()} == {2}


def test_one_expert_is_read_alone(backbone: Backbone, folder: Path) -> None:
    stored = read_expert(folder / "prose")
    basis = basis_of(stored, backbone.model)
    assert stored.skill == "prose" and basis.keys() == stored.expert.z.keys()
    assert tasks_of(folder) == {"maths": ["sums", "roots"], "prose": ["verse"]}


def test_sets_that_do_not_belong_together(backbone: Backbone, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no experts"):
        load_expert_set(tmp_path, backbone.model)
    stored = load_probe(folder / ROUTER)
    path = folder / "maths" / "expert.json"
    path.write_text(path.read_text("utf-8").replace('"skill": "maths"', '"skill": "history"'), "utf-8")
    with pytest.raises(ShoalError, match="the experts are for history, prose"):
        load_expert_set(folder, backbone.model)
    description = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**description, "provenance": {}}), "utf-8")
    with pytest.raises(ShoalError, match="does not say its skill and tasks"):
        tasks_of(folder)
    save_probe(tmp_path / "again", stored)
    for name in ("mean", "weight"):
        assert torch.equal(getattr(load_probe(tmp_path / "again").probe, name), getattr(stored.probe, name))


@pytest.mark.parametrize("change", [{"classes": ["one"]}, {"layer": "two"}, {"classes": None}, {"format": 9}])
def test_a_damaged_probe_is_named(folder: Path, change: dict) -> None:
    path = folder / ROUTER / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **change}), "utf-8")
    with pytest.raises(ShoalError, match="probe"):
        load_probe(folder / ROUTER)


def test_a_truncated_probe_is_named(folder: Path) -> None:
    path = folder / ROUTER / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ShoalError, match="probe.safetensors"):
        load_probe(folder / ROUTER)
