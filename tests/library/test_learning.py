"""The adapter that a new skill gets: the learnt one, or what it started from; and its labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shoal.adapters.files import load_adapter
from shoal.adapters.lora import LoRA
from shoal.config import LoraTrainingConfig
from shoal.errors import UsageError
from shoal.library.learning import Training, likeliest
from shoal.library.lessons import prepare
from shoal.library.library import Library
from shoal.models.backbone import Backbone
from shoal.tasks.records import Example
from shoal.text_to_lora.generated_adapter import GeneratedAdapter
from shoal.text_to_lora.generator import TextToLoRA
from tests.fixtures.library import learn, sentence, solved, tools

RUINOUS = Training(LoraTrainingConfig(steps=4, batch_size=4, learning_rate=10.0), way="trained")
LABELS = ("lo", "no")


def two_answers(name: str = "lower") -> list[Example]:
    """Twelve requests with two answers that their first letter tells apart."""
    return [Example(e.input, (LABELS[i % 2],)) for i, e in enumerate(solved(name))]


class GoodStart:
    """A generator whose every adapter answers as a skill that was learnt."""

    checkpoint = None

    def __init__(self, generator: TextToLoRA, lora: LoRA) -> None:
        self.generator, self.lora = generator, lora

    def generate(self, description: str) -> GeneratedAdapter:
        found = self.generator.generate(description)
        return replace(found, lora=self.lora, hypernetwork={**found.hypernetwork, "trained": True})


def test_a_learnt_adapter_that_is_worse_than_its_start_is_not_kept(
    library: Library, sharp_llama: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start, generator = library.adapter("digits"), tools(sharp_llama)["generator"]
    again = Library.open(tmp_path / "library", sharp_llama, generator=GoodStart(generator, start))
    more = solved("digits", count=16, begin=12)
    facts = learn(again, "more", examples=more, training=RUINOUS, allow_loss=["digits"]).facts
    assert facts.kept == "sentence" and facts.losses["sentence"] < facts.losses["learnt"]
    assert facts.own_scores == facts.scores["sentence"] and again.adapter("more") == start
    assert "the sentence's adapter is kept: its mean loss on 4 exemplars is" in caplog.text
    card = load_adapter(again.skills["more"].folder).card
    assert card is not None and "the sentence's adapter is kept" in card.notes[0]


def test_a_learnt_adapter_that_is_better_is_kept(library: Library) -> None:
    facts = library.skills["digits"].facts
    assert facts.kept == "learnt" and facts.losses["learnt"] < facts.losses["sentence"]
    assert facts.why.startswith("the learnt adapter is kept: its mean loss on 3 exemplars is")


def test_a_new_version_that_is_worse_than_the_earlier_one_keeps_that(library: Library) -> None:
    before = library.adapter("capitals")
    found = learn(library, "capitals", examples=solved("capitals", count=20), training=RUINOUS)
    assert found.replaced and found.facts.kept == "earlier" and library.adapter("capitals") == before
    assert set(found.facts.losses) == {"earlier", "sentence", "learnt"}


def test_equal_losses_keep_the_start_and_without_exemplars_the_learnt_one() -> None:
    assert likeliest({"sentence": 1.0, "learnt": 1.0}) == "sentence"
    assert likeliest({"earlier": 1.0, "sentence": 2.0, "learnt": 0.5}) == "learnt"
    assert likeliest({}) == "learnt"


@pytest.mark.parametrize(
    ("labels", "description", "expected"),
    [
        (None, sentence("lower"), (LABELS, "examples")),
        (None, "Decide whether the text is lo or no.", (LABELS, "description")),
        (("no", "lo", "so"), sentence("lower"), (("no", "lo", "so"), "given")),
        ((), sentence("lower"), None),
    ],
)
def test_labels_are_given_described_or_shown(
    labels: tuple[str, ...] | None, description: str, expected: tuple[tuple[str, ...], str] | None
) -> None:
    found = prepare("lower", description, two_answers(), labels=labels).label_set
    assert (found and (found.labels, found.source)) == expected


def test_labels_without_an_examples_answer_are_refused() -> None:
    with pytest.raises(UsageError, match="an example answers 'no', which is none of the 2 labels"):
        prepare("lower", sentence("lower"), two_answers(), labels=["lo", "so"])


def test_a_skill_of_closed_answers_answers_with_its_labels(library: Library) -> None:
    facts = learn(library, "lower", examples=two_answers(), labels=LABELS).facts
    assert facts.label_set is not None and facts.label_set.priors is not None
    answers = library.ask([e.input for e in two_answers()], skill="lower")
    assert {found.answer for found in answers} <= set(LABELS)
    exemplars = library.skills["lower"].exemplars
    again = [
        float(a.answer in e.outputs)
        for e, a in zip(exemplars, library.ask([e.input for e in exemplars], skill="lower"), strict=True)
    ]
    assert again == list(facts.own_scores)
    (base,) = library.ask(["~~~~~~"])
    assert base.answer not in LABELS
