"""Turns: no load of others, long prompts or many long answers, keeps a newcomer from its first tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from shoal.adapters.base import Adapter
from shoal.adapters.lora import LoRA
from shoal.errors import ShoalError
from shoal.inference.engine.adapter_cache import AdapterCache
from shoal.inference.engine.batch import Batch, Paused
from shoal.inference.engine.core import Engine
from shoal.inference.engine.records import EngineFull, Event, Limits, Request
from shoal.inference.engine.sequences import Job
from shoal.inference.sampling import Sampling
from shoal.models.backbone import Backbone

GREEDY = Sampling(0.0)


def long_prompt(owner: str) -> Request:
    return Request([7] * 300, max_tokens=100, stop_at_end=False, owner=owner)


def long_answer(owner: str, tokens: int = 400) -> Request:
    return Request([5, 6], max_tokens=tokens, sampling=GREEDY, stop_at_end=False, logprobs=0, owner=owner)


def short(owner: str) -> Request:
    return Request([1, 2, 3], max_tokens=2, sampling=GREEDY, stop_at_end=False, logprobs=0, owner=owner)


def engine_of(backbone: Backbone, **limits: int) -> Engine:
    return Engine(backbone, limits=Limits(**{"prefill_tokens": 64, **limits}), clock=lambda: 0.0)


def steps_until(engine: Engine, ticket: int, *, last: bool = False) -> int:
    """Steps until a request has its first token, or its last."""
    for step in range(1, 5000):
        if any(event.ticket == ticket and (event.last or not last) for event in engine.step()):
            return step
    raise AssertionError("never")


def finish(engine: Engine) -> list[Event]:
    events = []
    while engine.busy:
        events += engine.step()
    return events


@pytest.mark.parametrize("newcomer", ["other", "hog"])
@pytest.mark.parametrize("load", [long_prompt, long_answer])
def test_a_short_request_has_its_first_token_at_once(
    llama_backbone: Backbone, load: type, newcomer: str
) -> None:
    engine = engine_of(llama_backbone, max_batch=2, kv_tokens=1000)
    for _ in range(8):
        engine.submit(load("hog"))
    for _ in range(6):
        engine.step()
    assert steps_until(engine, engine.submit(short(newcomer))) == 1


def test_a_newcomers_answer_goes_on_in_the_place_of_one_that_was_served_more(
    llama_backbone: Backbone,
) -> None:
    engine = engine_of(llama_backbone, max_batch=2)
    for _ in range(8):
        engine.submit(long_answer("hog"))
    for _ in range(80):
        engine.step()
    ticket = engine.submit(long_answer("other", 40))
    assert steps_until(engine, ticket, last=True) < 60


def test_the_rows_are_shared_by_owners_not_by_requests(llama_backbone: Backbone) -> None:
    engine = engine_of(llama_backbone, max_batch=4)
    owners = {engine.submit(long_answer("hog")): "hog" for _ in range(12)}
    owners |= {engine.submit(long_answer(name)): name for name in ("a", "b", "c") for _ in range(2)}
    tokens: Counter[str] = Counter()
    for _ in range(600):
        tokens.update(owners[event.ticket] for event in engine.step() if event.delta is not None)
    assert min(tokens.values()) > 0.6 * max(tokens.values())


def test_an_answer_that_gave_up_its_place_goes_on_as_if_alone(llama_backbone: Backbone) -> None:
    engine = engine_of(llama_backbone, max_batch=2)
    alone = finish_text(engine, engine.submit(long_answer("hog")))
    first = engine.submit(long_answer("hog"))
    events = [*engine.step(), *engine.step()]
    for name in ("a", "b", "c"):
        engine.submit(long_answer(name, 60))
    paused = 0
    while engine.busy:
        events += engine.step()
        paused = max(paused, engine.state().paused)
    assert paused > 1
    assert "".join(e.delta.text for e in events if e.ticket == first and e.delta) == alone


def finish_text(engine: Engine, ticket: int) -> str:
    return "".join(event.delta.text for event in finish(engine) if event.ticket == ticket and event.delta)


def test_nobody_is_left_behind_by_those_who_come_all_the_time(llama_backbone: Backbone) -> None:
    engine = engine_of(llama_backbone, max_batch=2)
    patient = engine.submit(Request([7] * 300, max_tokens=20, stop_at_end=False, owner="patient"))
    for step in range(400):
        engine.submit(short(f"newcomer {step}"))
        if any(event.ticket == patient and event.last for event in engine.step()):
            return
    raise AssertionError("the long request was never answered")


def test_places_for_keys_and_values_are_bounded_by_the_limits(llama_backbone: Backbone) -> None:
    engine = engine_of(llama_backbone, max_batch=4, kv_tokens=1000, max_waiting=100)
    for name in ("a", "b", "c", "d"):
        for _ in range(6):
            engine.submit(long_prompt(name))
            engine.submit(long_answer(name, 300))
    while engine.busy:
        engine.step()
        held = sum(part.room for part in engine._reading) + engine._batch.paused_room
        assert engine.state().kv_tokens <= 1000 and held <= 1000


def test_one_owner_cannot_take_all_places_to_wait(llama_backbone: Backbone) -> None:
    engine = engine_of(llama_backbone, max_waiting=8, max_batch=1)
    taken = 0
    with pytest.raises(EngineFull, match="5 of them are yours"):
        for _ in range(8):
            engine.submit(short("hog"))
            taken += 1
    assert taken == 5
    engine.submit(short("other"))


def test_a_failure_while_answers_change_places_is_theirs_alone(
    llama_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(llama_backbone, max_batch=2)
    tickets = [engine.submit(long_answer("a", 10)) for _ in range(2)]

    def fail(*arguments: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as broken:
        broken.setattr("shoal.inference.kv_cache.RowCache.join", fail)
        events = engine.step()
    errors = {event.ticket: event.error for event in events if event.error}
    assert errors.keys() == set(tickets) and all(isinstance(e, ShoalError) for e in errors.values())
    again = engine.submit(short("a"))
    assert steps_until(engine, again, last=True) < 5


def test_a_failure_while_answers_give_up_their_places_is_said_to_all_of_them(
    llama_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(llama_backbone, max_batch=2)
    tickets = [engine.submit(long_answer("hog")) for _ in range(2)]
    for _ in range(80):
        engine.step()
    tickets.append(engine.submit(replace(long_answer("other"), n=2)))
    taken_out = Batch._taken_out
    calls: list[Job] = []

    def fail_second(batch: Batch, job: Job) -> Paused:
        calls.append(job)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return taken_out(batch, job)

    monkeypatch.setattr(Batch, "_taken_out", fail_second)
    errors = [event.ticket for event in finish(engine) if event.error]
    assert len(calls) == 2 and sorted(errors) == tickets


def test_one_that_comes_while_others_are_taken_on_has_its_turn(
    llama_backbone: Backbone, make_lora: Callable[..., LoRA]
) -> None:
    late: list[int] = []

    class Cache(AdapterCache):
        def get(self, name: str, *, again: bool = False) -> Adapter:
            if again and not late:
                late.append(engine.submit(short("late")))
            return super().get(name, again=again)

    cache = Cache(lambda name: make_lora(llama_backbone, 1), 10**6)
    engine = Engine(llama_backbone, limits=Limits(), adapters=cache)
    first = engine.submit(replace(short("first"), adapter="a"))
    assert {event.ticket for event in finish(engine) if event.last} == {first, *late} and late


def test_many_answers_of_one_request_give_way_too(llama_backbone: Backbone) -> None:
    engine = engine_of(llama_backbone, max_batch=8, kv_tokens=4000)
    engine.submit(replace(long_answer("hog", 450), n=8))
    for _ in range(100):
        engine.step()
    assert steps_until(engine, engine.submit(long_answer("other", 20)), last=True) < 40


def ends_beside(engine: Engine, ticket: int, *, tokens: int, every: int, steps: int) -> bool:
    """Does a request end while one of a new owner comes every few steps?"""
    for step in range(steps):
        if step % every == 0:
            engine.submit(long_answer(f"owner {step}", tokens))
        if any(event.ticket == ticket and event.last for event in engine.step()):
            return True
    return False


def test_a_wide_request_ends_beside_short_ones_of_ever_new_owners(llama_backbone: Backbone) -> None:
    engine = engine_of(llama_backbone, max_batch=4, kv_tokens=1000)
    wide = engine.submit(replace(long_answer("wide", 20), n=4))
    assert ends_beside(engine, wide, tokens=20, every=10, steps=600)


def test_a_long_prompt_is_read_beside_short_ones_without_end(llama_backbone: Backbone) -> None:
    engine = engine_of(llama_backbone, max_batch=4, kv_tokens=400)
    for number in range(3):
        engine.submit(long_answer(f"first {number}", 60))
    engine.step()
    long = engine.submit(replace(long_answer("long", 4), prompt=[7] * 250))
    assert ends_beside(engine, long, tokens=60, every=20, steps=1500)
