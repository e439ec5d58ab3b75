"""The engine without threads: answers do not depend on what else runs, and nothing that fails stops it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.adapters.decomposition import Decompositions
from shoal.adapters.lora import LoRA
from shoal.adapters.merging import compose
from shoal.adapters.svf import ExpertVector
from shoal.errors import ShoalError, UsageError
from shoal.inference.engine.adapter_cache import AdapterCache
from shoal.inference.engine.core import Engine
from shoal.inference.engine.records import (
    Delta,
    EngineClosed,
    EngineFull,
    Event,
    FinishedRecord,
    Limits,
    Request,
    StepRecord,
)
from shoal.inference.sampling import Sampling
from shoal.models.backbone import Backbone

TOLERANCE = 1e-4  # of log-probabilities, float32: other batches are other orders of summation
GREEDY = Sampling(temperature=0.0)
ADAPTERS = {
    "a": (0, 2, ("q_proj", "v_proj")),
    "b": (1, 5, ("q_proj", "k_proj", "o_proj")),
    "c": (2, 1, ("down_proj",)),
}


@dataclass
class Told:
    """What one request was told."""

    text: dict[int, str] = field(default_factory=lambda: defaultdict(str))
    scores: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    tokens: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    finish: dict[int, str] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    error: ShoalError | None = None
    over: bool = False

    def take(self, event: Event) -> None:
        assert not self.over, "an event after the last"
        self.over, self.error = event.last, event.error
        if event.delta is not None:
            self.add(event.delta)

    def add(self, delta: Delta) -> None:
        assert delta.index not in self.finish, "a piece after an answer's last"
        self.text[delta.index] += delta.text
        self.scores[delta.index] += [score.logprob for score in delta.tokens]
        self.tokens[delta.index] += [score.token for score in delta.tokens]
        self.counts[delta.index] = delta.completion_tokens
        if delta.finish_reason:
            self.finish[delta.index] = delta.finish_reason


class Bench:
    """An engine with adapters to name, and everything that it said and recorded."""

    def __init__(
        self, backbone: Backbone, loras: dict[str, LoRA], basis: Decompositions | None = None, **limits: int
    ) -> None:
        self.records: list[StepRecord | FinishedRecord] = []
        self.cache = AdapterCache(self._load, 10**6)
        self.loras, self.told = loras, defaultdict[int, Told](Told)
        self.engine = Engine(
            backbone,
            limits=Limits(**limits),
            adapters=self.cache,
            basis=basis,
            observe=self.records.append,
            clock=lambda: 1.0,  # what is read in a step depends on no other work of the machine
        )

    def _load(self, name: str) -> LoRA:
        if name not in self.loras:
            raise UsageError(f"there is no adapter {name!r}")
        return self.loras[name]

    def step(self) -> None:
        for event in self.engine.step():
            self.told[event.ticket].take(event)

    def run(self, *requests: Request) -> list[Told]:
        tickets = [self.engine.submit(request) for request in requests]
        while self.engine.busy:
            self.step()
        return [self.told[ticket] for ticket in tickets]

    @property
    def finished(self) -> list[FinishedRecord]:
        return [record for record in self.records if isinstance(record, FinishedRecord)]


@pytest.fixture(scope="module")
def loras(backbone: Backbone, make_lora: Callable[..., LoRA]) -> dict[str, LoRA]:
    return {name: make_lora(backbone, *how) for name, how in ADAPTERS.items()}


@pytest.fixture
def bench(backbone: Backbone, loras: dict[str, LoRA], basis: Decompositions) -> Bench:
    return Bench(backbone, loras, basis)


def prompt(backbone: Backbone, text: str) -> list[int]:
    return backbone.encode_prompt(text)


@contextmanager
def failing(backbone: Backbone, when: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """The last layer raises."""

    def fail(module: torch.nn.Module, args: object) -> None:
        if when():
            raise RuntimeError("out of memory")

    hook = backbone.layers[-1].register_forward_pre_hook(fail)
    try:
        yield
    finally:
        hook.remove()


def test_greedy_answers_have_the_plain_models_logits(
    backbone: Backbone,
    loras: dict[str, LoRA],
    basis: Decompositions,
    make_expert: Callable[..., ExpertVector],
    plain_logits: Callable[..., torch.Tensor],
) -> None:
    expert = 0.5 * make_expert(basis, 0) + 0.5 * make_expert(basis, 1)
    adapters = [None, "a", "b", {"a": 0.7, "c": -1.5}, expert, "c", loras["b"]]
    values = [None, loras["a"], loras["b"], compose([loras["a"], loras["c"]], [0.7, -1.5]), expert]
    values += [loras["c"], loras["b"]]
    requests = [
        Request(
            prompt(backbone, "word " * i), adapter, 10 + i, sampling=GREEDY, logprobs=3, stop_at_end=False
        )
        for i, adapter in enumerate(adapters)
    ]
    together = Bench(backbone, loras, basis, max_batch=4).run(*requests)
    for request, value, told in zip(requests, values, together, strict=True):
        assert told.finish == {0: "length"} and told.counts == {0: request.max_tokens}
        ids = [*request.prompt, *told.tokens[0]]
        logits = plain_logits(backbone, ids, value, basis)[len(request.prompt) - 1 : -1]
        assert told.tokens[0] == logits.argmax(-1).tolist()
        expected = torch.log_softmax(logits, -1).max(-1).values
        assert told.scores[0] == pytest.approx(expected.tolist(), abs=TOLERANCE)
        alone = Bench(backbone, loras, basis).run(request)[0]
        assert alone.tokens == told.tokens and alone.text == told.text
        assert told.scores[0] == pytest.approx(alone.scores[0], abs=TOLERANCE)
    assert len({told.text[0] for told in together}) > 4


def test_an_answer_of_one_seed_is_the_same_in_any_batch(bench: Bench, backbone: Backbone) -> None:
    request = Request(prompt(backbone, "dice"), "a", 12, n=3, sampling=Sampling(0.9, 0.95, 50, seed=7))
    others = [Request(prompt(backbone, "x" * i), "b", 5 + i, sampling=Sampling(seed=i)) for i in range(9)]
    alone = bench.run(request)[0]
    crowded = bench.run(*others[:5], request, *others[5:])[5]
    assert crowded.text == alone.text and len(set(alone.text.values())) == 3
    other = bench.run(replace(request, sampling=replace(request.sampling, seed=8)))[0]
    assert other.text != alone.text
    unseeded = replace(request, sampling=replace(request.sampling, seed=None))
    assert bench.run(unseeded)[0].text != bench.run(unseeded)[0].text


def test_an_answer_ends_at_its_end_its_stop_string_or_its_limit(
    bench: Bench, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(prompt(backbone, "go"), "a", 20, sampling=GREEDY, logprobs=0, stop_at_end=False)
    whole = bench.run(request)[0]
    text, ids = whole.text[0], whole.tokens[0]
    stop = next(text[i : i + 2] for i in range(6, len(text)) if "\ufffd" not in text[i : i + 2])
    stopped = bench.run(replace(request, stop=("never there", stop)))[0]
    assert stopped.text[0] == text[: text.index(stop)] and stopped.finish == {0: "stop"}
    assert ids[: len(stopped.tokens[0])] == stopped.tokens[0]
    end = ids[7]
    monkeypatch.setitem(vars(backbone), "end_tokens", frozenset({end}))
    ended = bench.run(replace(request, stop_at_end=True))[0]
    assert ended.finish == {0: "stop"} and ended.counts == {0: ids.index(end) + 1}
    assert ended.text[0] == backbone.tokenizer.decode(ids[: ids.index(end)], skip_special_tokens=True)


def test_logprobs_name_the_likeliest_tokens_of_the_model_itself(
    backbone: Backbone, bench: Bench, plain_logits: Callable[..., torch.Tensor]
) -> None:
    request = Request(prompt(backbone, "p"), None, 4, sampling=Sampling(2.0, seed=1), logprobs=5)
    ticket = bench.engine.submit(request)
    scores = []
    while bench.engine.busy:
        for event in bench.engine.step():
            assert event.ticket == ticket and event.delta is not None
            scores += event.delta.tokens
    ids = [*request.prompt, *(score.token for score in scores)]
    expected = torch.log_softmax(plain_logits(backbone, ids), -1)[len(request.prompt) - 1 :]
    for score, row in zip(scores, expected, strict=False):
        assert score.logprob == pytest.approx(float(row[score.token]), abs=TOLERANCE)
        assert [top.token for top in score.top] == row.topk(5).indices.tolist()
        assert [top.logprob for top in score.top] == pytest.approx(row.topk(5).values.tolist(), abs=TOLERANCE)


def test_cancelling_frees_the_row_before_the_next_one_is_needed(bench: Bench, backbone: Backbone) -> None:
    engine = Engine(backbone, limits=Limits(max_batch=1))
    first = engine.submit(Request([1, 2], max_tokens=100, stop_at_end=False))
    second = engine.submit(Request([3], max_tokens=2, stop_at_end=False, logprobs=0))
    for _ in range(5):
        engine.step()
    assert (engine.state().running, engine.state().paused) == (1, 1)
    engine.cancel(first)
    (event,) = engine.step()
    assert event.ticket == second and event.last
    assert engine.state().running == 0 and not engine.busy


def test_a_request_is_cancelled_while_it_waits_and_while_its_prompt_is_read(backbone: Backbone) -> None:
    engine = Engine(backbone, limits=Limits(max_batch=2, prefill_tokens=4))
    reading = engine.submit(Request([1] * 40, max_tokens=5))
    waiting = engine.submit(Request([2] * 40, max_tokens=5))
    assert engine.step() == [] and engine.state().reading == 1
    engine.cancel(waiting)
    engine.cancel(reading)
    assert engine.step() == [] and not engine.busy
    assert engine.state().kv_tokens == 0


def test_running_answers_go_on_while_a_long_prompt_is_read(backbone: Backbone) -> None:
    records: list[StepRecord | FinishedRecord] = []
    engine = Engine(backbone, limits=Limits(max_batch=2, prefill_tokens=8), observe=records.append)
    engine.submit(Request([1], max_tokens=100, stop_at_end=False))
    engine.step()
    engine.submit(Request([2] * 80, max_tokens=5, stop_at_end=False))
    for _ in range(11):
        engine.step()
    told = [(r.running, r.prefill_tokens) for r in records if isinstance(r, StepRecord)]
    assert told == [(0, 1), *[(1, 8)] * 10, (2, 0)]


def test_requests_get_their_places_in_order(backbone: Backbone) -> None:
    ends = []
    limits = Limits(max_batch=3, kv_tokens=64)
    engine = Engine(backbone, limits=limits)
    lengths = [1, 20, 21, 2, 3]  # two at a time have room, as each may come to 32
    for length in lengths:
        engine.submit(Request([1] * length, max_tokens=32 - length, stop_at_end=False))
    while engine.busy:
        assert engine.state().kv_tokens <= limits.kv_tokens
        ends += [event.ticket for event in engine.step() if event.last]
    assert ends == [1, 2, 0, 3, 4]  # 2 in the place of 1, 3 in that of 2, 4 in that of 0


def test_a_step_that_fails_takes_its_requests_with_it_and_no_others(bench: Bench, backbone: Backbone) -> None:
    engine = bench.engine
    doomed = [engine.submit(Request([1, 2], "a", 50, stop_at_end=False)) for _ in range(2)]
    bench.step()
    with failing(backbone):
        bench.step()
    later = engine.submit(Request([1, 2], "a", 3, sampling=GREEDY, stop_at_end=False))
    while engine.busy:
        bench.step()
    for ticket in doomed:
        assert "step of this answer failed: out of memory" in str(bench.told[ticket].error)
    assert bench.told[later].finish == {0: "length"}
    with failing(backbone):
        unread = engine.submit(Request([1, 2], "a", 3))
        bench.step()
    assert "reading this prompt failed: out of memory" in str(bench.told[unread].error)
    assert [record.outcome for record in bench.finished] == ["failed", "failed", "length", "failed"]
    assert not engine.busy and engine.state().kv_tokens == 0


def test_an_adapter_that_is_not_finite_fails_alone(
    bench: Bench, backbone: Backbone, loras: dict[str, LoRA]
) -> None:
    broken = loras["a"].copy()
    next(iter(broken.factors.values())).b.fill_(math.nan)
    request = Request(prompt(backbone, "q"), "b", 6, sampling=GREEDY)
    alone = bench.run(request)[0]
    good, bad = bench.run(request, replace(request, adapter=broken))
    assert "not finite" in str(bad.error) and good.error is None
    assert good.text == alone.text


def test_an_adapter_that_is_gone_when_its_turn_comes_fails_alone(bench: Bench, backbone: Backbone) -> None:
    bench.loras = dict(bench.loras)
    gone = bench.engine.submit(Request([1], "a", 3))
    here = bench.engine.submit(Request([1], "b", 3))
    del bench.loras["a"]
    bench.cache.discard("a")
    while bench.engine.busy:
        bench.step()
    assert "no adapter 'a'" in str(bench.told[gone].error)
    assert bench.told[here].error is None and bench.told[here].over


def test_what_the_engine_cannot_do_is_refused_before_it_waits(
    bench: Bench, backbone: Backbone, make_lora: Callable[..., LoRA], basis: Decompositions
) -> None:
    engine = bench.engine
    wrong = make_lora(backbone, 0)
    odd = LoRA({"model.layers.0.nothing": next(iter(wrong.factors.values()))}, 1.0)
    cases = [
        (Request([]), "prompt of 0 tokens"),
        (Request([1], max_tokens=0), "max_tokens 0"),
        (Request([1] * 500, max_tokens=13), "exceed the 512 positions"),
        (Request([1], n=0), "n 0 is outside 1..16"),
        (Request([1], n=17), "n 17 is outside 1..16"),
        (Request([259 * 2]), "token 518 is outside the vocabulary"),
        (Request([-1]), "token -1 is outside"),
        (Request([1], stop=("",)), "stop strings"),
        (Request([1], stop=("x",) * 65), "65 stop strings"),
        (Request([1], logprobs=21), "logprobs 21 is outside 0..20"),
        (Request([1], "nobody"), "no adapter 'nobody'"),
        (Request([1], {"a": math.inf}), "finite numbers"),
        (Request([1], {}), "mix of 0 adapters"),
        (Request([1], odd), "no module 'model.layers.0.nothing'"),
    ]
    for request, message in cases:
        with pytest.raises(UsageError, match=message):
            engine.submit(request)
    for adapter, rank in (({"a": 1.0, "b": 1.0}, 7), ("b", 5)):
        with pytest.raises(UsageError, match=f"rank {rank} is above the limit of 4"):
            Engine(backbone, limits=Limits(max_rank=4), adapters=bench.cache).submit(Request([1], adapter))
    with pytest.raises(UsageError, match="9 places for keys and values"):
        Engine(backbone, limits=Limits(kv_tokens=9)).submit(Request([1], max_tokens=9))
    with pytest.raises(UsageError, match="the engine has no adapters"):
        Engine(backbone).submit(Request([1], "a"))
    with pytest.raises(UsageError, match="max_batch 0"):
        Limits(max_batch=0)
    assert not engine.busy


def test_a_full_queue_and_a_closed_engine_say_so(backbone: Backbone) -> None:
    engine = Engine(backbone, limits=Limits(max_waiting=2, max_batch=1))
    tickets = [engine.submit(Request([1], max_tokens=3)) for _ in range(2)]
    with pytest.raises(EngineFull, match="2 requests wait, of at most 2"):
        engine.submit(Request([1]))
    engine.step()
    tickets.append(engine.submit(Request([1], max_tokens=3)))
    events = engine.close()
    assert sorted(event.ticket for event in events) == tickets
    assert all(isinstance(event.error, EngineClosed) and event.last for event in events)
    with pytest.raises(EngineClosed):
        engine.submit(Request([1]))


def test_records_tell_times_and_tokens(backbone: Backbone) -> None:
    now = [100.0]
    records: list[StepRecord | FinishedRecord] = []
    engine = Engine(backbone, limits=Limits(max_batch=2), observe=records.append, clock=lambda: now[0])
    engine.submit(Request([1, 2, 3], max_tokens=3, n=2, stop_at_end=False))
    engine.submit(Request([1], max_tokens=1, stop_at_end=False))
    while engine.busy:
        now[0] += 1
        engine.step()
    finished = [record for record in records if isinstance(record, FinishedRecord)]
    assert finished == [
        FinishedRecord("length", 1.0, 1.0, 1.0, 1, 1),
        FinishedRecord("length", 1.0, 1.0, 3.0, 3, 6),
    ]
    steps = [record for record in records if isinstance(record, StepRecord)]
    assert steps[0] == StepRecord(0.0, 0, 0, 6, ())
    assert steps[1] == StepRecord(0.0, 2, 0, 0, (1.0, 1.0))


class Schedule:
    """Random arrivals, cancels and failures, and what must hold at every moment."""

    def __init__(self, bench: Bench, backbone: Backbone) -> None:
        self.bench, self.backbone = bench, backbone
        self.live: dict[int, Request] = {}
        self.cancelled: set[int] = set()
        self.crashes = 0

    def submit(self, request: Request) -> None:
        try:
            self.live[self.bench.engine.submit(request)] = request
        except EngineFull:
            assert 2 * self.bench.engine.state().waiting > self.bench.engine.limits.max_waiting

    def cancel(self, ticket: int) -> None:
        self.bench.engine.cancel(ticket)
        if not self.bench.told[ticket].over:
            self.cancelled.add(ticket)

    def step(self) -> None:
        before = {ticket: repr(self.bench.told[ticket]) for ticket in self.cancelled}
        self.bench.step()
        assert before == {ticket: repr(self.bench.told[ticket]) for ticket in self.cancelled}
        limits, state = self.bench.engine.limits, self.bench.engine.state()
        assert state.running <= limits.max_batch and state.kv_tokens <= limits.kv_tokens

    def crash(self) -> None:
        self.crashes += 1
        with failing(self.backbone):
            self.step()

    def end(self) -> None:
        for _ in range(2000):
            if not self.bench.engine.busy:
                break
            self.step()
        assert not self.bench.engine.busy
        assert self.bench.engine.state().kv_tokens == 0
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in self.backbone.model.modules())


def requests() -> st.SearchStrategy[Request]:
    return st.builds(
        Request,
        prompt=st.lists(st.integers(0, 255), min_size=1, max_size=30),
        adapter=st.sampled_from([None, "a", "b", "c", {"a": 0.5, "b": 0.5}]),
        max_tokens=st.integers(1, 8),
        n=st.sampled_from([1, 1, 2]),
        sampling=st.sampled_from([GREEDY, Sampling(seed=3), Sampling(0.7, 0.9, 20, seed=4)]),
        stop=st.sampled_from([(), ("a",), ("\ufffd",)]),
        logprobs=st.sampled_from([None, 0]),
    )


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_schedule_ends_every_request_as_if_it_were_alone(
    backbone: Backbone, loras: dict[str, LoRA], data: st.DataObject
) -> None:
    limits = dict(
        max_batch=data.draw(st.integers(2, 5)), prefill_tokens=data.draw(st.sampled_from([3, 16, 64]))
    )
    limits |= dict(max_waiting=4, kv_tokens=data.draw(st.sampled_from([80, 400])))
    schedule = Schedule(Bench(backbone, loras, **limits), backbone)
    for action in data.draw(
        st.lists(st.sampled_from("ssssxxxxxxcf"), min_size=4, max_size=24), label="actions"
    ):
        if action == "s":
            schedule.submit(data.draw(requests()))
        elif action == "c" and schedule.live:
            schedule.cancel(data.draw(st.sampled_from(sorted(schedule.live))))
        elif action == "f":
            schedule.crash()
        elif action == "x":
            schedule.step()
    schedule.end()
    outcomes = [record.outcome for record in schedule.bench.finished]
    assert len(outcomes) == len(schedule.live)
    assert outcomes.count("cancelled") == len(schedule.cancelled)
    for ticket, request in schedule.live.items():
        told = schedule.bench.told[ticket]
        if ticket in schedule.cancelled:
            continue
        assert told.over
        if told.error is not None:
            assert schedule.crashes and "failed: out of memory" in str(told.error)
            continue
        alone = Bench(backbone, loras).run(request)[0]
        assert (told.text, told.finish, told.counts) == (alone.text, alone.finish, alone.counts)
        assert told.tokens == alone.tokens
