"""What comes while another call runs is done in one batch, and a mistake is its caller's alone."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from shoal.server.microbatching import MicroBatcher


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

    half = MicroBatcher(halve, limit=4)
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


def test_a_batch_waits_for_those_who_came_last_time_but_not_for_ever() -> None:
    batches: list[int] = []

    def same(numbers: Sequence[int]) -> Sequence[int]:
        batches.append(len(numbers))
        return numbers

    patient = MicroBatcher(same, limit=8, linger=60.0)
    alone = ThreadPoolExecutor(1)
    assert alone.submit(patient, 1).result(10) == 1  # nobody came before: nobody is waited for
    patient._last = 3
    with ThreadPoolExecutor(3) as pool:
        first, second = pool.submit(patient, 1), pool.submit(patient, 2)
        while len(patient._pending) < 2:
            pass
        assert batches == [1]
        third = pool.submit(patient, 3)
        assert [one.result(10) for one in (first, second, third)] == [1, 2, 3]
    assert batches == [1, 3]
    patient._linger = 0.01
    assert alone.submit(patient, 4).result(10) == 4  # the others stay away
    assert batches == [1, 3, 1]
    alone.shutdown()
