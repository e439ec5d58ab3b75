"""Requests with labels in the engine: the likeliest label, in its turn and its room, beside other answers."""

from collections.abc import Callable

import pytest

from shoal.adapters.card import LabelSet
from shoal.adapters.lora import LoRA
from shoal.errors import ShoalError, UsageError
from shoal.inference.engine import label_choice
from shoal.inference.engine.core import Engine
from shoal.inference.engine.records import Event, FinishedRecord, Limits, Request, StepRecord
from shoal.inference.labels import choose_labels, content_free_priors
from shoal.inference.sampling import Sampling
from shoal.models.backbone import Backbone

LABELS = LabelSet(labels=("no", "no way", "perhaps so", "yes"))
FREE = Request([1, 2], max_tokens=40, sampling=Sampling(0.0), stop_at_end=False, logprobs=0)


@pytest.fixture
def lora(backbone: Backbone, make_lora: Callable[..., LoRA]) -> LoRA:
    return make_lora(backbone, 1)


@pytest.fixture
def records() -> list[StepRecord | FinishedRecord]:
    return []


@pytest.fixture
def engine(backbone: Backbone, records: list[StepRecord | FinishedRecord]) -> Engine:
    return Engine(backbone, limits=Limits(max_batch=6), observe=records.append)


def finish(engine: Engine) -> list[Event]:
    events = []
    while engine.busy:
        events += engine.step()
    return events


def tokens(events: list[Event], ticket: int) -> list[int]:
    return [score.token for event in events if event.ticket == ticket for score in event.delta.tokens]


def test_the_answer_is_the_label_that_scoring_chooses(engine: Engine, backbone: Backbone, lora: LoRA) -> None:
    prompt = backbone.encode_prompt("a request")
    ticket = engine.submit(Request(prompt, lora, n=2, labels=LABELS))
    events = finish(engine)
    expected = choose_labels(backbone, [prompt], LABELS, lora)[0]
    assert [(e.ticket, e.delta.index, e.delta.text, e.last) for e in events] == [
        (ticket, 0, expected.label, False),
        (ticket, 1, expected.label, True),
    ]
    assert events[0].delta.probabilities == pytest.approx(expected.probabilities, abs=1e-4)


def test_answers_that_run_beside_it_are_as_alone(engine: Engine, lora: LoRA) -> None:
    ticket = engine.submit(FREE)
    alone = tokens(finish(engine), ticket)
    beside, _ = engine.submit(FREE), engine.submit(Request([3, 4], lora, labels=LABELS))
    assert tokens(finish(engine), beside) == alone


def test_running_answers_go_on_between_labels(engine: Engine, lora: LoRA) -> None:
    running = engine.submit(FREE)
    engine.step()
    chosen = [engine.submit(Request([3, 4], lora, labels=LABELS)) for _ in range(3)]
    for ticket in chosen:
        assert {event.ticket for event in engine.step()} == {running, ticket}


def test_labels_wait_for_rows_and_are_not_overtaken(engine: Engine, lora: LoRA) -> None:
    first = engine.submit(Request([1, 2], max_tokens=5, n=6, stop_at_end=False))
    chosen = engine.submit(Request([3, 4], lora, labels=LABELS))
    last = engine.submit(Request([5, 6], max_tokens=5, stop_at_end=False))
    ends = [event.ticket for event in finish(engine) if event.last]
    assert ends == [first, chosen, last]


def test_labels_take_the_rows_and_places_of_their_request(
    backbone: Backbone, lora: LoRA, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []

    def counted(*arguments: object, places: int, **options: object) -> object:
        given.append(places)
        return choose_labels(*arguments, places=places, **options)

    monkeypatch.setattr(label_choice, "choose_labels", counted)
    longest = max(map(len, backbone.encode_completions(LABELS.labels)))
    for limits, rows in ((Limits(), 5), (Limits(max_batch=2), 2), (Limits(kv_tokens=3 * (2 + longest)), 3)):
        engine = Engine(backbone, limits=limits)
        engine.submit(Request([1, 2], lora, max_tokens=4, labels=LABELS))
        finish(engine)
        assert given.pop() == rows * (2 + longest)


def test_a_label_counts_as_an_answer(
    engine: Engine, backbone: Backbone, records: list[StepRecord | FinishedRecord]
) -> None:
    engine.submit(Request([1, 2, 3], n=2, labels=LABELS))
    label = finish(engine)[0].delta.text
    (record,) = (record for record in records if isinstance(record, FinishedRecord))
    assert (record.outcome, record.prompt_tokens) == ("stop", 3)
    assert record.completion_tokens == 2 * len(backbone.encode_completion(label))
    assert 0 <= record.queue_seconds <= record.first_token_seconds <= record.total_seconds


def test_priors_are_measured_once_for_each_adapter(
    engine: Engine, lora: LoRA, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[object] = []

    def counted(backbone: Backbone, labels: object, adapter: object, **options: object) -> list[float]:
        measured.append(adapter)
        return content_free_priors(backbone, labels, adapter, **options)

    monkeypatch.setattr(label_choice, "content_free_priors", counted)
    for adapter in (lora, None, lora, None):
        engine.submit(Request([1, 2], adapter, labels=LABELS))
    finish(engine)
    assert measured == [lora, None]


@pytest.mark.parametrize(
    ("labels", "part"), [(("a", "b", "a"), "same tokens"), (("yes", "no " * 600), "positions|places")]
)
def test_labels_that_cannot_be_are_refused_at_once(
    engine: Engine, labels: tuple[str, ...], part: str
) -> None:
    with pytest.raises(UsageError, match=part):
        engine.submit(Request([1, 2], labels=LabelSet(labels=labels)))
    assert not engine.busy


def test_an_adapter_that_breaks_the_model_fails_its_request_alone(
    engine: Engine, lora: LoRA, records: list[StepRecord | FinishedRecord]
) -> None:
    broken = lora * float("inf")
    failed, free = engine.submit(Request([1, 2], broken, labels=LABELS)), engine.submit(FREE)
    events = finish(engine)
    errors = {event.ticket: event.error for event in events if event.error}
    assert errors.keys() == {failed} and isinstance(errors[failed], ShoalError)
    assert "not finite" in str(errors[failed]) and len(tokens(events, free)) == 40
    assert {r.outcome for r in records if isinstance(r, FinishedRecord)} == {"failed", "length"}
