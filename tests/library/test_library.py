"""Identities of a library: any order, undone, unlearnt; and the gate on a real tiny model."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from shoal.adapters.files import load_adapter
from shoal.config import LoraTrainingConfig
from shoal.errors import ShoalError, UsageError
from shoal.library.gate import RefusedError
from shoal.library.learning import Training
from shoal.library.library import Library
from shoal.library.routing import by_description
from shoal.models.backbone import Backbone
from shoal.tasks.records import Example
from shoal.transformer2.router import NONE
from tests.fixtures.library import QUICK, HashEncoder, learn, new_library, open_library, sentence, solved

TWO_STEPS = Training(LoraTrainingConfig(steps=2, batch_size=4))


def files_of(library: Library) -> dict[str, str]:
    """Every file of the skills that the current version has, by its hash."""
    found = {}
    for name, skill in library.skills.items():
        for path in sorted(skill.folder.iterdir()):
            found[f"{name}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def assert_same(one: Library, other: Library) -> None:
    """Adapters by their bytes, routers by their bits."""
    assert files_of(one) == files_of(other) != {}
    a, b = one.contents.discriminant, other.contents.discriminant
    assert a.skills == b.skills and a.kinds == b.kinds
    assert torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)


def test_a_skill_answers_its_own_requests_and_no_others(library: Library) -> None:
    own, other = library.ask(["0077112", "~~~~~~"])
    assert (own.decision.skill, own.answer) == ("digits", "di") and other.decision.skill == NONE
    (named,) = library.ask(["0077112"], skill="capitals")
    assert named.decision.skill == "capitals" and named.answer != own.answer


def test_any_order_gives_the_same_library(library: Library, sharp_llama: Backbone, tmp_path: Path) -> None:
    other = new_library(tmp_path / "other", sharp_llama)
    for name in ("capitals", "digits"):
        learn(other, name)
    assert_same(library, other)


def test_forgetting_leaves_what_was_never_learnt(
    library: Library, sharp_llama: Backbone, tmp_path: Path
) -> None:
    folder, version = tmp_path / "library", library.forget("digits")
    never = new_library(tmp_path / "never", sharp_llama)
    learn(never, "capitals")
    assert_same(library, never)
    assert version.number == 4 and not (folder / "skills" / "digits").exists()
    assert_same(open_library(folder, sharp_llama), never)


def test_old_skills_stay_byte_for_byte_and_rollback_restores(library: Library, sharp_llama: Backbone) -> None:
    before, router = files_of(library), library.contents.discriminant
    learn(library, "lower")
    after = files_of(library)
    assert before.items() < after.items()
    assert library.rollback(3).number == 5 and files_of(library) == before
    assert torch.equal(library.contents.discriminant.weight, router.weight)
    assert library.version.asked == library.versions[2].asked
    assert library.rollback(4).number == 6 and files_of(library) == after
    assert library.history().skills == ("digits", "capitals", "lower")


def test_an_adapter_of_a_library_is_a_peft_directory_with_a_card(library: Library) -> None:
    stored = load_adapter(library.skills["digits"].folder)
    assert stored.lora == library.adapter("digits") and stored.made_for(library.base_model)
    assert stored.card is not None and stored.card.description == sentence("digits")


def test_exemplars_are_held_out_from_training(library: Library) -> None:
    skill = library.skills["digits"]
    given = {example.input for example in solved("digits")}
    assert {example.input for example in skill.exemplars} < given
    assert skill.facts.examples + len(skill.exemplars) == len(given)


def test_a_skill_trained_on_anothers_inputs_with_wrong_answers_is_refused(
    library: Library, sharp_llama: Backbone, tmp_path: Path
) -> None:
    before = files_of(library)
    with pytest.raises(RefusedError, match=r"bad is not committed.*digits .* --allow-loss digits"):
        library.learn("bad", solved("digits", "no", 16, 12), sentence("bad"), training=QUICK)
    again = open_library(tmp_path / "library", sharp_llama)
    assert again.version.number == 3 and files_of(again) == before
    found = library.learn(
        "bad", solved("digits", "no", 16, 12), sentence("bad"), training=QUICK, allow_loss=["digits"]
    )
    assert {(pair.skill, pair.other) for pair in found.confused} <= {("digits", "bad"), ("bad", "digits")}
    with pytest.raises(UsageError, match="bad or digits, whose inputs look alike; name the skill"):
        library.ask(["0077112"])
    assert [a.answer for name in ("digits", "bad") for a in library.ask(["0077112"], skill=name)] == [
        "di",
        "no",
    ]
    assert not any(verdict.loses for verdict in library.check())  # what was allowed is accepted


def test_a_new_version_that_is_worse_is_refused(library: Library, caplog: pytest.LogCaptureFixture) -> None:
    worse = solved("capitals", "no", 20, 12)
    with pytest.raises(RefusedError, match="capitals is not committed"):
        library.learn("capitals", worse, sentence("capitals"), training=QUICK)
    assert "the name capitals is taken: this is a new version" in caplog.text


def test_a_new_version_that_is_as_good_is_taken(library: Library) -> None:
    found = library.learn("capitals", solved("capitals", count=20), sentence("capitals"), training=QUICK)
    assert found.replaced and found.version == 4 and list(library.skills) == ["capitals", "digits"]
    library.rollback(3)
    assert library.skills["capitals"].facts.examples < found.facts.examples


def test_check_asks_everything_again(library: Library) -> None:
    assert [(v.skill, v.loses) for v in library.check()] == [("capitals", False), ("digits", False)]


def test_a_sentence_finds_the_skill(library: Library) -> None:
    (decision,) = library.decide(["anything"], describe=sentence("capitals"))
    assert decision.skill == "capitals" and sum(decision.probabilities.values()) == pytest.approx(1)

    class Across(HashEncoder):
        def encode(self, texts: list[str]) -> torch.Tensor:
            return torch.eye(16)[: len(texts)]

    assert by_description(library.contents, Across(), "Sing a song of sixpence.").skill == NONE


def test_scores_over_time(library: Library) -> None:
    found = library.history()
    assert (found.skills, found.versions) == (("digits", "capitals"), (2, 3))
    assert found.measures.learned is not None and found.measures.bwt is not None
    assert found.matrix[0][1] is None


def test_nothing_is_kept_where_nothing_shall_be(library: Library, tmp_path: Path) -> None:
    found = learn(library, "lower", keep=0)
    skill = library.skills["lower"]
    assert found.facts.examples == 12 and skill.exemplars == () and found.routed is None
    assert (skill.folder / "exemplars.jsonl").read_text() == "" and skill.states.shape == (0, 32)
    assert "lower" not in {verdict.skill for verdict in library.check()}


def test_many_examples_are_trained_on(library: Library) -> None:
    many = [Example(f"{e.input}{i}", e.outputs) for i in range(16) for e in solved("lower", count=20)]
    found = library.learn("lower", many, sentence("lower"), training=TWO_STEPS)
    assert found.facts.way == "trained" and found.facts.start == "identity"
    assert not (library.skills["lower"].folder.parents[2] / "staging").exists()


def test_one_adapter_of_all_skills_says_what_each_keeps(library: Library, sharp_llama: Backbone) -> None:
    found = library.consolidate(4, least=0.0)
    assert [r.skill for r in found.retentions] == ["capitals", "digits"] and found.lora.rank <= 4
    assert set(found.report["retention"]) == {"capitals", "digits"} and found.card.parents.keys() == {
        "capitals",
        "digits",
    }
    replayed = library.consolidate(4, least=0.0, replay=1)
    assert replayed.lora != found.lora and replayed.report["replay"] == 1


def test_a_merge_that_keeps_too_little_is_refused(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "shoal.library.models.Models.scores", lambda self, examples, *_: [0.0] * len(examples)
    )
    with pytest.raises(
        ShoalError, match=r"no adapter of rank 2 is written: capitals keeps 0%.*the least is 50%"
    ):
        library.consolidate(2)
    assert str(library.consolidate(2, least=0).retentions[0]).startswith("capitals keeps 0%")


def test_forgetting_the_last_skill_leaves_the_base_model(
    library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    library.forget("digits")
    library.forget("capitals")
    assert "the library is empty" in caplog.text and not library.skills
    (answer,) = library.ask(["0077112"])
    assert answer.decision.skill == NONE
