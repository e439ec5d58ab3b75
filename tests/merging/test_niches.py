"""Niches: who is alone in doing something stays, mates are those who know what one lacks."""

from __future__ import annotations

import torch

from shoal.merging.niches import attraction, competition, evolve_niches

SUPPLY = torch.full((4,), 0.25)
# Two that do the same well, one that does something alone, one that does nothing.
SCORES = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0.9, 0], [0, 0, 0, 0.2], [0, -1, 0, 0]])


def test_an_example_feeds_members_by_their_shares_of_it() -> None:
    found = competition(SCORES, SUPPLY)
    torch.testing.assert_close(found.sum(), SUPPLY.sum())
    assert found[0] > found[1] and found[2] == 0.25 and found[3] == 0


def test_those_who_know_what_one_lacks_attract_it() -> None:
    found = attraction(SCORES, SUPPLY, 0)
    assert found[2] > 0 and found[[0, 1, 3]].tolist() == [0, 0, 0]


def test_specialists_stay_beside_a_better_all_round_member() -> None:
    # A member does example i as well as its number i is large; the four examples give alike.
    first = torch.cat(
        [torch.tensor([[share] * 3 + [0.0] for share in (0.9, 0.8, 0.7)]), torch.tensor([[0, 0, 0, 0.1]])]
    )

    def evolved(rounds: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        numbers = {"rounds": rounds, "children": 4, "size": 3}
        return evolve_niches(first, torch.Tensor.double, SUPPLY.double(), **numbers, generator=generator)[0]

    assert torch.equal(evolved(0), first[[0, 1, 3]])
    assert torch.equal(evolved(3), evolved(3))
    assert evolved(6)[:, 3].max() > 0.1 and evolved(6)[:, :3].max() > 0.8
