"""The measures of continual learning on a matrix that was worked out by hand."""

from __future__ import annotations

import pytest

from shoal.library.history import history, measures
from shoal.library.versions import Asked, Step, Version

R = [[60.0, None, None], [50.0, 80.0, None], [40.0, 85.0, 70.0]]


def test_the_measures_are_those_of_the_papers() -> None:
    found = measures(R, [10.0, 20.0, 30.0], [10.0, 25.0, 40.0])
    assert found.acc.mean == pytest.approx((40 + 85 + 70) / 3)
    assert found.bwt.mean == pytest.approx((-20 + 5) / 2)
    assert found.fwt.mean == pytest.approx((5 + 10) / 2)
    assert found.forgetting.mean == pytest.approx((20 - 5) / 2)
    assert found.learned.mean == pytest.approx((60 + 80 + 70) / 3)


def test_one_skill_and_none_have_nothing_to_forget() -> None:
    one = measures([[50.0]], [10.0], [20.0])
    assert one.acc.mean == one.learned.mean == 50 and one.bwt is one.fwt is one.forgetting is None
    assert measures([], [], []).acc is None


def version(number: int, step: Step, **scores: float) -> Version:
    asked = {name: Asked(routes=(name,), scores=(score,)) for name, score in scores.items()}
    return Version(number=number, step=step, skills=dict.fromkeys(scores, "0" * 64), asked=asked)


def test_what_was_rolled_back_is_not_in_the_matrix() -> None:
    steps = [
        version(1, Step(kind="create")),
        version(2, Step(kind="learn", skill="a"), a=0.5),
        version(3, Step(kind="learn", skill="bad"), a=0.1, bad=0.9),
        version(4, Step(kind="rollback", to=2), a=0.5),
        version(5, Step(kind="learn", skill="b"), a=0.4, b=0.6),
    ]
    found = history(steps, {"a": 10.0, "b": 10.0}, {"a": 10.0, "b": 20.0})
    assert (found.skills, found.versions) == (("a", "b"), (2, 5))
    assert found.matrix == ((50, None), (40, 60))
    assert found.measures.bwt.mean == pytest.approx(-10)
    table = found.table()
    assert "b (5)" in table and "learned: 55.0" in table and "BWT: -10.0" in table
    assert history(steps[:1], {}, {}).table() == "no skills"
