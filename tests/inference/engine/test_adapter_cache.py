"""The adapter cache never holds more than it may, and loads a name once at a time."""

import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.adapters.lora import LoRA, LoraFactors
from shoal.errors import UsageError
from shoal.inference.engine.adapter_cache import AdapterCache


def sized(floats: int) -> LoRA:
    return LoRA({"w": LoraFactors(torch.zeros(1, floats - 1), torch.zeros(1, 1))}, 1.0)


@given(
    st.lists(st.tuples(st.sampled_from(["get", "get", "get", "discard"]), st.integers(2, 12)), max_size=40)
)
def test_it_is_a_least_recently_used_cache_within_its_bytes(calls: list[tuple[str, int]]) -> None:
    limit, loads = 30 * 4, []

    def load(name: str) -> LoRA:
        loads.append(name)
        return sized(int(name))

    cache, model = AdapterCache(load, limit), []  # the model: names, the one used last is last
    hits = evictions = 0
    for call, number in calls:
        name = str(number)
        if call == "discard":
            cache.discard(name)
            model = [other for other in model if other != name]
            continue
        assert cache.get(name).nbytes == number * 4
        hits += name in model
        model = [*(other for other in model if other != name), name]
        while sum(int(other) * 4 for other in model) > limit:
            model.pop(0)
            evictions += 1
        found = cache.statistics()
        assert found.bytes == sum(int(other) * 4 for other in model) <= limit
        assert (found.hits, found.misses, found.evictions) == (hits, len(loads), evictions)
        assert found.adapters == len(model)


def test_one_that_is_larger_than_the_cache_is_given_out_and_not_kept() -> None:
    cache = AdapterCache(lambda name: sized(100), 16)
    assert cache.get("big").nbytes == 400
    assert cache.statistics().adapters == 0
    with pytest.raises(UsageError, match="max_bytes -1"):
        AdapterCache(lambda name: sized(2), -1)


def test_threads_that_ask_together_load_once_and_an_error_is_told_to_all_and_not_kept() -> None:
    loads, failing = [], threading.Event()

    def load(name: str) -> LoRA:
        loads.append(name)
        time.sleep(0.05)
        if failing.is_set():
            raise UsageError("there is no such adapter")
        return sized(4)

    cache, told = AdapterCache(load, 1000), []

    def ask() -> None:
        try:
            told.append(cache.get("a"))
        except UsageError as error:
            told.append(error)

    for change in (failing.set, failing.clear):
        change()
        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(loads) == 2 and len(told) == 12
    assert sum(isinstance(answer, UsageError) for answer in told) == 6
    assert cache.statistics().adapters == 1
