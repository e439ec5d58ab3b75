"""Known tasks: nearest by direction, trusted where descriptions are usual, not where nonsense is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from shoal.errors import UsageError
from shoal.text_to_lora.familiarity import KnownTasks

SENSIBLE = torch.tensor([0.0, 0.0, 1.0])  # whatever the text


def known(near: float = 0.2, far: float = 0.6) -> KnownTasks:
    return KnownTasks(
        ("east", "north", "west"), torch.tensor([[1.0, 0], [0, 1], [-1, 0]]), near, far, SENSIBLE
    )


def test_the_nearest_tasks_are_by_direction() -> None:
    first, second = known().compare(torch.tensor([[5.0, 0.0], [-3.0, 3.0]]), count=2)
    assert first.nearest == {"east": 0.0, "north": 1.0} and first.distance == 0.0
    assert set(second.nearest) == {"north", "west"}
    assert second.distance == pytest.approx(1 - 2**-0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("distance", "confidence"), [(0.0, 1.0), (0.2, 1.0), (0.3, 0.75), (0.5, 0.25), (0.6, 0.0), (1.7, 0.0)]
)
def test_confidence_falls_between_near_and_far(distance: float, confidence: float) -> None:
    assert known().confidence(distance) == pytest.approx(confidence)
    angle = torch.acos(torch.tensor(1 - distance))
    task = KnownTasks(("east",), torch.tensor([[1.0, 0.0]]), 0.2, 0.6, SENSIBLE)
    (found,) = task.compare(torch.stack([angle.cos(), angle.sin()])[None])
    assert found.confidence == pytest.approx(confidence, abs=1e-5) and not found.nonsense
    assert found.far == (confidence < 1)


def test_a_measured_confidence_falls_between_the_shares_that_were_reached() -> None:
    measured = replace(known(), reached=(0.6, 0.2))
    assert [measured.confidence(d) for d in (0.1, 0.4, 0.9)] == pytest.approx([0.6, 0.4, 0.2])
    near, far = measured.compare(torch.tensor([[1.0, 0.0], [1.0, -2.0]]))
    assert (near.far, far.far) == (False, True)


def test_a_task_nearest_to_a_hard_one_is_hard() -> None:
    measured = replace(known(), hard={"east": 0.12})
    east, north = measured.compare(torch.tensor([[1.0, 0.1], [0.1, 1.0]]))
    assert (east.hard, north.hard) == (0.12, None)
    assert "hard" in east.facts() and "hard" not in north.facts()
    with pytest.raises(UsageError, match="up is called hard and is none of the 3 tasks"):
        replace(known(), hard={"up": 0.1})


@pytest.mark.parametrize("reached", [(0.2, 0.6), (1.1, 0.0), (0.5, -0.1)])
def test_shares_that_cannot_be_are_refused(reached: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="confidence is to fall from"):
        replace(known(), reached=reached)


def test_nonsense_has_no_confidence_however_near() -> None:
    north_is_nonsense = replace(known(), sense=torch.tensor([0.0, -1.0, 0.5]))
    east, north = north_is_nonsense.compare(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
    assert (east.confidence, east.nonsense) == (1, False)
    assert (north.confidence, north.nonsense) == (0, True) and north.distance == 0


def test_distances_are_measured_on_other_tasks_and_on_nonsense() -> None:
    generator = torch.Generator().manual_seed(0)
    axes = torch.eye(8)[:4] + 0.5  # four tasks with something in common
    descriptions = [axis + 0.05 * torch.randn(6, 8, generator=generator) for axis in axes]
    letters = -0.5 + 0.1 * torch.randn(50, 8, generator=generator)
    words = axes.mean(0) * torch.tensor([1.0] * 4 + [-1.0] * 4) + 0.05 * torch.randn(
        50, 8, generator=generator
    )
    measured = KnownTasks.measure(("a", "b", "c", "d"), descriptions, letters, words)
    torch.testing.assert_close(measured.centres.norm(dim=-1), torch.ones(4))
    between = 1 - (measured.centres @ measured.centres.T)
    apart = float(between[~torch.eye(4, dtype=torch.bool)].mean())
    assert measured.near == pytest.approx(apart, abs=0.1)  # not the distance to their own centre, almost 0
    assert 1.5 < measured.far < 2
    trusted = [f for f in measured.compare(letters) if measured.confidence(f.distance) > 0]
    assert 0 < len(trusted) <= 5  # one in ten
    assert all(f.nonsense for f in measured.compare(torch.cat([letters, words])))
    for task, own in zip("abcd", descriptions, strict=True):
        assert all(
            next(iter(f.nearest)) == task and f.confidence == 1 and not f.nonsense
            for f in measured.compare(own)
        )


def test_further_sensible_texts_are_no_nonsense_and_no_place() -> None:
    descriptions = [(axis + 0.5).repeat(20, 1) for axis in torch.eye(8)[:2]]
    letters, sensible = (-0.5 + torch.eye(8)[at : at + 2].repeat(20, 1) for at in (2, 4))
    given = (("a", "b"), descriptions, letters, letters)
    without, having = KnownTasks.measure(*given), KnownTasks.measure(*given, sensible)
    assert all(f.nonsense for f in without.compare(sensible))
    assert not any(f.nonsense for f in having.compare(sensible))
    torch.testing.assert_close(without.centres, having.centres)
    assert (without.near, without.far) == (having.near, having.far)


def test_what_tells_nothing_is_refused() -> None:
    rows = torch.eye(4)
    with pytest.raises(UsageError, match="at least 2 of them, got 1"):
        KnownTasks.measure(("a",), [rows], rows, rows)
    with pytest.raises(UsageError, match="nonsense is 0 from the nearest task and most descriptions 1 from"):
        KnownTasks.measure(("a", "b"), [rows[:1], rows[1:2]], rows[:2], rows[2:])
    with pytest.raises(UsageError, match="near < far"):
        KnownTasks(("a", "b"), rows[:2], 0.3, 0.2, torch.ones(5))
    with pytest.raises(UsageError, match="got 2 for 1"):
        KnownTasks(("a",), rows[:2], 0.1, 0.2, torch.ones(5))
    with pytest.raises(UsageError, match="the probe for nonsense has 4 numbers, not 5"):
        KnownTasks(("a", "b"), rows[:2], 0.1, 0.2, torch.ones(4))


def test_tasks_that_are_added_are_places_too() -> None:
    more = known().with_tasks({"south": torch.tensor([[0.0, -2.0], [0.0, -1.0]])})
    (found,) = more.compare(torch.tensor([[0.0, -5.0]]), count=1)
    assert found.nearest == {"south": 0.0} and more.names == ("east", "north", "west", "south")
    assert known().with_tasks({"east": torch.tensor([[0.0, 1.0]])}).names == known().names
