"""The engine on its thread: streams for threads and for asyncio, readers who go away, and its end."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from shoal.errors import ShoalError, UsageError
from shoal.inference.engine.core import Engine
from shoal.inference.engine.records import (
    EngineClosed,
    EngineFull,
    FinishedRecord,
    Limits,
    Request,
    StepRecord,
)
from shoal.inference.engine.runner import EngineRunner
from shoal.inference.engine.stream import Stream
from shoal.inference.sampling import Sampling
from shoal.models.backbone import Backbone

LONG = Request([1, 2], max_tokens=400, stop_at_end=False, logprobs=0)
SHORT = Request([1, 2], max_tokens=5, sampling=Sampling(0.0), stop_at_end=False, logprobs=0)
PATIENCE = 30.0  # seconds until a test that waits for another thread gives up


class Records:
    """What the engine recorded; `wait` until something is true of it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.finished: list[FinishedRecord] = []
        self.steps = 0

    def __call__(self, record: StepRecord | FinishedRecord) -> None:
        with self._changed:
            self.steps += isinstance(record, StepRecord)
            if isinstance(record, FinishedRecord):
                self.finished.append(record)
            self._changed.notify_all()

    def wait(self, condition: Callable[[], object]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE)


@pytest.fixture
def records() -> Records:
    return Records()


@pytest.fixture
def runner(llama_backbone: Backbone, records: Records) -> Iterator[EngineRunner]:
    limits = Limits(max_batch=2, max_waiting=2, unread_events=20)
    with EngineRunner(Engine(llama_backbone, limits=limits, observe=records)) as started:
        yield started


def tokens_of(stream: Stream) -> list[int]:
    return [score.token for delta in stream for score in delta.tokens]


async def tokens_of_async(stream: Stream) -> list[int]:
    return [score.token async for delta in stream for score in delta.tokens]


def test_threads_and_event_loops_read_the_same_answer(runner: EngineRunner) -> None:
    expected = tokens_of(runner.submit(SHORT))
    assert len(expected) == 5

    async def ask() -> list[list[int]]:
        streams = [await asyncio.to_thread(runner.submit, SHORT) for _ in range(2)]
        return await asyncio.gather(*map(tokens_of_async, streams))

    assert asyncio.run(ask()) == [expected] * 2
    assert tokens_of(runner.submit(SHORT)) == expected


def test_a_reader_who_leaves_the_block_frees_the_place(runner: EngineRunner, records: Records) -> None:
    with runner.submit(LONG) as stream:
        next(stream)
    assert list(stream) == []
    records.wait(lambda: records.finished)
    assert records.finished[0].outcome == "cancelled"
    assert runner.run(lambda: runner.state().running) == 0
    stream.cancel()


def test_an_event_loops_reader_who_is_cancelled_frees_the_place(
    runner: EngineRunner, records: Records
) -> None:
    async def read() -> None:
        async with runner.submit(LONG) as stream:
            async for _ in stream:
                pass

    async def leave() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read(), 0.05)

    asyncio.run(leave())
    records.wait(lambda: records.finished)
    assert records.finished[0].outcome == "cancelled"


def test_a_client_that_never_reads_holds_neither_a_place_nor_memory(
    runner: EngineRunner, records: Records
) -> None:
    stream = runner.submit(LONG)
    records.wait(lambda: records.finished)
    assert records.finished[0].outcome == "cancelled"
    assert records.finished[0].completion_tokens < 100
    with pytest.raises(ShoalError, match="20 pieces of the answer were not read"):
        list(stream)
    assert len(tokens_of(runner.submit(SHORT))) == 5


def test_errors_come_to_who_asked_and_to_no_one_else(
    runner: EngineRunner, llama_backbone: Backbone, records: Records
) -> None:
    with pytest.raises(UsageError, match="max_tokens 0"):
        runner.submit(Request([1], max_tokens=0))
    hook = llama_backbone.layers[0].register_forward_pre_hook(lambda *_: 1 / 0)
    try:
        with pytest.raises(ShoalError, match="reading this prompt failed: division by zero"):
            list(runner.submit(SHORT))
    finally:
        hook.remove()
    assert len(tokens_of(runner.submit(SHORT))) == 5


def test_a_full_queue_is_an_error_of_its_own(runner: EngineRunner) -> None:
    hold = threading.Event()
    blocked = threading.Thread(target=runner.run, args=(lambda: hold.wait(PATIENCE),))
    blocked.start()
    try:
        while runner._calls:
            pass
        streams = [runner.submit(SHORT) for _ in range(2)]
        with pytest.raises(EngineFull):
            runner.submit(SHORT)
    finally:
        hold.set()
        blocked.join()
    assert all(len(tokens_of(stream)) == 5 for stream in streams)


def test_a_function_has_the_engines_thread_for_itself(runner: EngineRunner) -> None:
    assert runner.run(lambda: threading.current_thread().name) == "shoal-engine"
    with pytest.raises(ZeroDivisionError):
        runner.run(lambda: 1 / 0)
    assert len(tokens_of(runner.submit(SHORT))) == 5


def queued(runner: EngineRunner, function: Callable[[], object], count: int) -> list[threading.Thread]:
    threads = [threading.Thread(target=runner.run, args=(function,)) for _ in range(count)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + PATIENCE
    while len(runner._calls) < count:
        assert time.monotonic() < until
        time.sleep(0.001)
    return threads


def test_a_step_follows_each_function_while_requests_run(runner: EngineRunner, records: Records) -> None:
    before: list[int] = []
    held, free = threading.Event(), threading.Event()
    first = threading.Thread(target=runner.run, args=(lambda: held.set() or free.wait(PATIENCE),))
    first.start()
    assert held.wait(PATIENCE)
    with runner.submit(LONG):
        threads = queued(runner, lambda: before.append(records.steps), 3)
        free.set()
        for thread in [first, *threads]:
            thread.join(PATIENCE)
    assert len(set(before)) == 3


def test_closing_ends_every_stream(llama_backbone: Backbone, records: Records) -> None:
    runner = EngineRunner(Engine(llama_backbone, limits=Limits(max_batch=1), observe=records))
    streams = [runner.submit(LONG) for _ in range(3)]
    next(streams[0])
    told: list[type[BaseException]] = []

    def read(stream: Stream) -> None:
        try:
            list(stream)
        except ShoalError as error:
            told.append(type(error))

    readers = [threading.Thread(target=read, args=(stream,)) for stream in streams]
    for reader in readers:
        reader.start()
    runner.close()
    for reader in readers:
        reader.join(PATIENCE)
    assert told == [EngineClosed] * 3
    assert [record.outcome for record in records.finished] == ["failed"] * 3
    runner.close()
    for refused in (lambda: runner.submit(SHORT), lambda: runner.run(int)):
        with pytest.raises(EngineClosed):
            refused()


def test_many_clients_who_come_go_and_wait_are_all_served(runner: EngineRunner, records: Records) -> None:
    expected = tokens_of(runner.submit(SHORT))
    wrong: list[object] = []

    def client(number: int) -> None:
        for round_ in range(6):
            try:
                with runner.submit(LONG if (number + round_) % 3 == 0 else SHORT) as stream:
                    found = [next(stream)] if (number + round_) % 3 == 0 else tokens_of(stream)
                    wrong.extend([found] if len(found) > 1 and found != expected else [])
            except EngineFull:
                continue
            except Exception as error:
                wrong.append(error)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(PATIENCE)
    assert not wrong
    while runner.state().waiting:  # cancelled ones leave with the next step
        runner.run(int)
    assert len(tokens_of(runner.submit(SHORT))) == 5
    assert not runner._streams
