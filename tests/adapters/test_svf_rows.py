"""Experts of single rows, as rows come, change and go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from shoal.adapters.decomposition import decompose
from shoal.adapters.svf import ExpertVector
from shoal.adapters.svf_rows import ExpertRows

X = torch.randn(8, 3, 6, generator=torch.Generator().manual_seed(1))


class Toy:
    """Two linear maps, some experts of one or both, and the batch that is under test."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.ModuleDict({name: nn.Linear(6, 5, bias=False) for name in ("one", "two")})
        self.basis = {name: decompose(module.weight) for name, module in self.model.items()}
        ones = {name: torch.ones(5) for name in self.model}
        self.experts = [ExpertVector({**ones, "one": torch.linspace(0, k, 5)}) for k in range(1, 4)]
        self.narrow = ExpertVector({"one": torch.linspace(2, 5, 5)})
        self.rows = ExpertRows(self.model, self.basis)

    @torch.no_grad()
    def deltas(self, count: int) -> Tensor:
        """The part that the hooks add to the first map, for so many rows."""
        hook = next(hook for module, hook in self.rows.hooks() if module is self.model["one"])
        return hook(self.model["one"], (X[:count],), torch.zeros(count, 3, 5))

    @torch.no_grad()
    def alone(self, row: int, expert: ExpertVector) -> Tensor:
        u, s, vt = self.basis["one"]
        return X[row] @ (u * (s * (expert.z["one"] - 1)) @ vt).T


@pytest.fixture
def toy() -> Toy:
    return Toy()


def test_rows_that_come_and_go_have_their_own_expert(toy: Toy) -> None:
    first, second, third = toy.experts
    toy.rows.update([first, None], [0, 1])
    toy.rows.update([first, None, second, toy.narrow, third], [2, 3, 4])  # more than there was room for
    toy.rows.update([first, None, second, toy.narrow], [])  # the last has gone
    toy.rows.update([first, toy.narrow, second], [1])  # the last took a place
    toy.rows.update([first, toy.narrow, second, None], [3])
    found = toy.deltas(4)
    for row, expert in enumerate([first, toy.narrow, second]):
        torch.testing.assert_close(found[row], toy.alone(row, expert), atol=1e-5, rtol=1e-4)
    assert not found[3].any()


def test_an_update_writes_the_rows_that_changed_and_no_others(toy: Toy) -> None:
    first, second, third = toy.experts
    toy.rows.update([first, second], [0, 1])
    toy.rows.update([third, third], [1])
    found = toy.deltas(2)
    torch.testing.assert_close(found[0], toy.alone(0, first), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[1], toy.alone(1, third), atol=1e-5, rtol=1e-4)


def test_a_module_that_no_row_scales_any_more_is_let_go(toy: Toy) -> None:
    toy.rows.update([toy.experts[0], toy.narrow], [0, 1])
    assert {module for module, _ in toy.rows.hooks()} == set(toy.model.values())
    toy.rows.update([toy.narrow], [0])
    assert [module for module, _ in toy.rows.hooks()] == [toy.model["one"]]
    torch.testing.assert_close(toy.deltas(1)[0], toy.alone(0, toy.narrow), atol=1e-5, rtol=1e-4)


def test_rows_without_experts_need_no_room(toy: Toy) -> None:
    toy.rows.update([None] * 3, [0, 1, 2])
    assert not list(toy.rows.hooks())
    toy.rows.update([None] * 3 + [toy.narrow], [3])
    found = toy.deltas(4)
    assert not found[:3].any()
    torch.testing.assert_close(found[3], toy.alone(3, toy.narrow), atol=1e-5, rtol=1e-4)
