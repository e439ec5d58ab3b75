"""The engine on a thread of its own: requests from any thread or event loop, answers as streams."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Protocol, TypeVar

from shoal.errors import ShoalError, UnavailableError, reason
from shoal.inference.engine.arrivals import CLOSED
from shoal.inference.engine.core import Engine
from shoal.inference.engine.records import EngineClosed, EngineState, Event, Limits, Request, TokenScore
from shoal.inference.engine.stream import Stream

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Runner(Protocol):
    """Whatever answers requests: an engine here, or one elsewhere. Any thread may call any of it.

    Attributes:
        limits: what it takes on.
    """

    limits: Limits

    def check_numbers(self, request: Request) -> None:
        """Refuse numbers and formats that cannot be, before an adapter is generated; errors as `submit`."""

    def submit(self, request: Request, *, numbers_checked: bool = False) -> Stream:
        """Ask; raises what `EngineRunner.submit` raises."""

    def prompt_scores(self, request: Request, wanted: Callable[[], bool]) -> tuple[TokenScore, ...]:
        """Scores of all tokens of a prompt; see `EngineRunner.prompt_scores`."""

    def run(self, function: Callable[[], Result]) -> Result:
        """Call a function while nothing else uses the model."""

    def state(self) -> EngineState:
        """Counts of the work at hand."""

    def ready(self) -> None:
        """Do nothing, or raise what keeps it from answering.

        Raises:
            UnavailableError: it was closed, or what it needs is gone.
        """

    def close(self) -> None:
        """End every stream."""


class EngineRunner:
    """Drives an engine while it has something to do, and sleeps while it has not; also a context manager."""

    def __init__(self, engine: Engine) -> None:
        """Start the thread; the engine is driven by it alone from now on."""
        self._engine = engine
        self.limits = engine.limits
        self._wanted = threading.Condition()  # over the next three
        self._calls: deque[Callable[[], None]] = deque()
        self._streams: dict[int, Stream] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._drive, name="shoal-engine", daemon=True)
        self._thread.start()

    def check_numbers(self, request: Request) -> None:
        """See that the numbers of a request are within the limits and its format compiles.

        Raises:
            UsageError, EngineFull, EngineClosed: as `submit`.
        """
        self._engine.check_numbers(request)
        self._engine.compile(request)

    def submit(self, request: Request, *, numbers_checked: bool = False) -> Stream:
        """Ask, from any thread; adapters that the request names are loaded on this one.

        Args:
            request: the question.
            numbers_checked: `check_numbers` has passed the numbers of this request.

        Raises:
            UsageError: the request is outside the limits of the engine or the model.
            EngineFull: as many requests wait as may.
            EngineClosed: the engine was closed.
            Exception: what the adapter cache raises for an adapter's name.
        """
        if not numbers_checked:
            self._engine.check_numbers(request)
        self._engine.check_adapter(request)
        grammar = self._engine.compile(request)
        with self._wanted:
            ticket = self._engine.queue(request, grammar)
            stream = Stream(lambda: self._cancel(ticket), self._engine.limits.unread_events)
            self._streams[ticket] = stream
            self._wanted.notify()
        return stream

    def prompt_scores(self, request: Request, wanted: Callable[[], bool]) -> tuple[TokenScore, ...]:
        """Scores of all tokens of a prompt; nothing predicts the first, and steps run between its passes.

        Args:
            request: of the prompt.
            wanted: asked before every pass; False ends the work with the scores of the passes before it.

        Raises:
            UsageError: the request is outside the limits of the engine or the model.
            ShoalError: the logits are not finite.
        """
        self._engine.check_numbers(request)
        self._engine.check_adapter(request)
        pieces = self._engine.prompt_scores(request)
        found = list(next(pieces))
        while wanted() and (piece := self.run(lambda: next(pieces, []))):
            found += piece
        return tuple(found)

    def run(self, function: Callable[[], Result]) -> Result:
        """Call a function on the engine's thread between two steps, so that it has the model for itself.

        A step follows each call, so that neither functions nor requests keep the others waiting.

        Raises:
            EngineClosed: the engine was closed.
            Exception: what the function raises.
        """
        result: Future[Result] = Future()

        def call() -> None:
            try:
                if self._closing:
                    raise EngineClosed(CLOSED)
                result.set_result(function())
            except BaseException as error:
                result.set_exception(error)

        with self._wanted:
            if self._closing:
                raise EngineClosed(CLOSED)
            self._calls.append(call)
            self._wanted.notify()
        return result.result()

    def state(self) -> EngineState:
        """Counts of the engine's work, from any thread."""
        return self._engine.state()

    def ready(self) -> None:
        """See that the engine's thread runs.

        Raises:
            EngineClosed: the engine was closed.
            UnavailableError: its thread has ended by itself.
        """
        with self._wanted:
            if self._closing:
                raise EngineClosed(CLOSED)
        if not self._thread.is_alive():
            raise UnavailableError("the engine's thread has ended, nothing is answered; restart the service")

    def close(self, timeout: float = 10.0) -> None:
        """End every stream with `EngineClosed` and the thread after its step; a second time does nothing.

        Args:
            timeout: seconds to wait for the step that runs.

        Raises:
            ShoalError: the step takes longer; the thread ends after it.
        """
        with self._wanted:
            self._closing = True
            self._wanted.notify()
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise ShoalError(f"the engine's step still runs after {timeout:g} seconds; it ends after that")

    def __enter__(self) -> EngineRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cancel(self, ticket: int) -> None:
        self._engine.cancel(ticket)
        with self._wanted:
            self._streams.pop(ticket, None)
            self._wanted.notify()

    def _drive(self) -> None:
        while True:
            with self._wanted:
                self._wanted.wait_for(lambda: self._closing or self._calls or self._engine.busy)
                closing = self._closing
                due = len(self._calls) if closing else min(len(self._calls), 1)
                calls = [self._calls.popleft() for _ in range(due)]
            for call in calls:
                call()
            if closing:
                self._hand_out(self._engine.close())
                return
            try:
                events = self._engine.step()
            except Exception as error:  # the engine's own: those who are here fail, and it goes on
                log.exception("the engine failed between its steps")
                events = self._engine.fail_all(ShoalError(f"the engine failed: {reason(error)}; ask again"))
            self._hand_out(events)

    def _hand_out(self, events: list[Event]) -> None:
        for event in events:
            with self._wanted:
                stream = self._streams.get(event.ticket)
                if event.last:
                    self._streams.pop(event.ticket, None)
            if stream is not None:
                stream.put(event)
