"""What comes while another call runs is done in one batch, and a mistake is its caller's alone."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from shoal.service.combining import Combined


def test_calls_are_done_together_and_mistakes_alone() -> None:
    batches: list[list[int]] = []
    first_runs, go_on = threading.Event(), threading.Event()

    def halve(numbers: Sequence[int]) -> list[float]:
        batches.append(list(numbers))
        first_runs.set()
        assert go_on.wait(10)
        if any(number < 0 for number in numbers):
            raise ValueError(f"a negative number among {len(numbers)}")
        return [number / 2 for number in numbers]

    half = Combined(halve, limit=4)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(half, 100)
        assert first_runs.wait(10)
        others = {number: pool.submit(half, number) for number in (-1, 2, 4, 6, 8)}
        while len(half._pending) < 5:
            pass
        go_on.set()
        assert first.result() == 50
        for number in (2, 4, 6, 8):
            assert others[number].result() == number / 2
        with pytest.raises(ValueError, match="a negative number among 1$"):
            others[-1].result()
    assert batches[0] == [100] and len(batches[1]) == 4 and sorted(batches[-1]) != []
