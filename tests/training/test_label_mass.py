"""Mass on the labels as a whole: equal to the sum over labels, and free of which one is right."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch

from shoal.models.backbone import Backbone
from shoal.training.batches import Corpus, TokenisedExample, tokenise
from shoal.training.label_mass import LabelMass, continuations

VOCABULARY = 7


def mass_of(answers: list[tuple[int, ...]]) -> LabelMass:
    mass = LabelMass.__new__(LabelMass)
    mass._continuations = {0: continuations(answers)}
    return mass


def example(task: int, completion: tuple[int, ...]) -> TokenisedExample:
    return TokenisedExample(task, 0, (1,), completion, 0)


def test_what_may_follow_each_beginning() -> None:
    assert continuations([(3, 4, 0), (3, 5, 0), (6, 0)]) == {
        (): (3, 6),
        (3,): (4, 5),
        (3, 4): (0,),
        (3, 5): (0,),
        (6,): (0,),
    }


def test_missing_mass_is_that_of_all_that_is_no_label() -> None:
    logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(0))
    likely = logits.softmax(-1)
    missing = mass_of([(3, 4, 0), (3, 5, 0), (6, 0)]).missing(logits, [example(0, (3, 5, 0))])
    steps = (likely[0, [3, 6]].sum(), likely[1, [4, 5]].sum(), likely[2, 0])
    assert float(missing) == pytest.approx(-sum(math.log(p) for p in steps) / 3, abs=1e-6)


def test_labels_of_one_token_need_no_right_answer() -> None:
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(1))
    mass = mass_of([(3,), (6,)])
    assert torch.equal(mass.missing(logits, [example(0, (3,))]), mass.missing(logits, [example(0, (6,))]))


def test_other_tasks_are_passed_over() -> None:
    logits = torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(2), requires_grad=True)
    mass = mass_of([(3, 0), (6, 0)])
    labelled = example(0, (6, 0))
    both = mass.missing(logits, [example(1, (1, 2, 0)), labelled])
    assert torch.equal(both, mass.missing(logits[3:], [labelled]))
    assert float(mass.missing(logits, [example(1, (1, 2, 0)), example(1, (1, 0))]).detach()) == 0
    both.backward()
    assert not logits.grad[:3].any() and logits.grad[3:].any()


def test_the_labels_are_those_of_tasks_with_a_closed_set(toy: ModuleType, backbone: Backbone) -> None:
    tasks = [toy.toy_task("upper"), toy.label_task()]
    corpus: Corpus = tokenise(tasks, backbone, 512)
    mass = LabelMass(backbone, corpus)
    assert list(mass._continuations) == [1]
    starts = {e.completion[0] for e in corpus.examples[1]}
    assert set(mass._continuations[1][()]) == starts
