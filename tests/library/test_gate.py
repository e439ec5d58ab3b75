"""The gate: what is asked again, what loses, and how a refusal reads."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from shoal.library.gate import Exam, RefusedError, ask_exams, confusions, judge
from shoal.library.versions import Asked
from shoal.tasks.records import Example

EXAMPLES = tuple(Example(f"input {i}", ("yes",)) for i in range(4))


class Answers:
    """Stands for a model: every answer scores 0.25, and what was asked is kept."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def __call__(self, skill: str, examples: Sequence[Example]) -> list[float]:
        self.asked += [(example.input, skill) for example in examples]
        return [0.25] * len(examples)


def test_only_requests_whose_route_changed_are_asked_again() -> None:
    known = {"a": Asked(routes=("a", "b", "none", "b"), scores=(1.0, 0.5, 0.4, 0.3))}
    answers = Answers()
    exam = Exam("a", EXAMPLES, ("a", "b", "b", "none"), (0.9, 0.9, 0.9, 0.9))
    found = ask_exams([exam], known, (), answers)["a"]
    assert answers.asked == [("input 2", "b"), ("input 3", "none")]
    assert found.scores == (0.9, 0.5, 0.25, 0.25) and found.routes == exam.routes


def test_routes_to_an_adapter_that_is_another_are_asked_again() -> None:
    known = {"a": Asked(routes=("b",) * 4, scores=(1.0,) * 4)}
    answers = Answers()
    ask_exams([Exam("a", EXAMPLES, ("b",) * 4, None)], known, {"b"}, answers)
    assert len(answers.asked) == 4


def asked(*scores: float, route: str = "a") -> dict[str, Asked]:
    return {"a": Asked(routes=(route,) * len(scores), scores=scores)}


@pytest.mark.parametrize(
    ("now", "loses"),
    [
        ((1.0,) * 8, False),
        ((0.99,) * 8, False),
        ((0.0,) * 8, True),
        ((0.0, *[1.0] * 7), False),
        ((0.5,) * 8, True),
    ],
)
def test_a_skill_loses_where_its_interval_lies_below_the_bound(now: tuple[float, ...], loses: bool) -> None:
    (verdict,) = judge({"a": (1.0,) * 8}, asked(*now))
    assert verdict.loses is loses and verdict.before == 100


def test_one_exemplar_has_no_interval() -> None:
    assert judge({"a": (1.0,)}, asked(0.0))[0].loses
    assert not judge({"a": (1.0,)}, asked(0.99))[0].loses
    assert judge({"a": ()}, {"a": Asked(routes=(), scores=())}) == []


def test_the_bound_and_the_skills_that_may_lose() -> None:
    assert not judge({"a": (1.0,) * 8}, asked(*[0.5] * 8), bound=60)[0].loses
    (verdict,) = judge({"a": (1.0,) * 8}, asked(*[0.5] * 8), allowed={"a"})
    assert verdict.loses and verdict.allowed


def test_skills_that_would_need_a_name_lose() -> None:
    assert judge({"a": (1.0,) * 8}, asked(*[1.0] * 8), alike={"a"})[0].loses


def test_a_refusal_names_skill_loss_interval_and_the_way_out() -> None:
    now = asked(*[0.5] * 8, route="new")
    error = RefusedError("new", judge({"a": (1.0,) * 8}, now), confusions({"a": now["a"].routes}))
    text = str(error)
    assert "a 100.0 -> 50.0, -50.0 (95% -50.0 to -50.0); of 8 exemplars go 8 to new" in text
    assert "100% of a's inputs look like new's" in text and "--allow-loss a" in text and "\n" not in text


def test_confusions_need_a_share_and_two_exemplars() -> None:
    assert confusions({"a": ("b", "a", "a")}) == ()
    (pair,) = confusions({"a": ("b", "b", "a", "none"), "b": ("b",) * 9 + ("a",)})
    assert (pair.skill, pair.other, pair.share) == ("a", "b", 0.5)
