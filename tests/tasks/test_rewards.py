"""What answers earn: known answers and their verdicts."""

from __future__ import annotations

import pytest

from shoal.config import ExpertTrainingConfig
from shoal.tasks.loading import Example
from shoal.tasks.rewards import REWARDS


@pytest.mark.parametrize(
    ("reward", "outputs", "answer", "earned"),
    [
        ("exact_match", ("Paris",), " paris. ", 1),
        ("exact_match", ("Paris",), "Paris, France", 0),
        ("label", ("positive",), '"Positive".\nBecause the film is good.', 1),
        ("label", ("positive",), "not positive", 0),
        ("label", ("yes", "no"), "no", 1),
        ("label", ("yes",), "", 0),
        ("numeric", ("1,200",), "So the sum is 1200.", 1),
        ("numeric", ("-3.5",), "= -3.50", 1),
        ("numeric", ("12",), "12 + 1 = 13", 0),
        ("numeric", ("12",), "twelve", 0),
        ("numeric", ("none",), "12", 0),
        ("rouge_l", ("the cat sat",), "the cat sat", 1),
        ("rouge_l", ("the cat sat",), "a dog", 0),
        ("format", ("12/03/2020",), "1/1/99", 1),
        ("format", ("12/03/2020",), "2020-03-12", 0),
        ("format", ('{"name": "Ada"}',), '{"town": "Ulm"}', 1),
        ("format", ("yes", "5 kg"), "70  g", 1),
    ],
)
def test_known_answers(reward: str, outputs: tuple[str, ...], answer: str, earned: float) -> None:
    assert REWARDS[reward](Example("question", outputs), answer) == earned


def test_rouge_l_is_between() -> None:
    assert 0 < REWARDS["rouge_l"](Example("question", ("the cat sat",)), "the cat ran") < 1


def test_every_reward_can_be_asked_for() -> None:
    for name in REWARDS:
        assert ExpertTrainingConfig(reward=name).reward == name
