"""Requests with labels in the engine: the likeliest label, in its turn and its room, beside other answers."""

from collections.abc import Callable, Sequence

import pytest
import torch

from shoal.adapters.card import LabelSet
from shoal.adapters.lora import LoRA
from shoal.errors import ShoalError, UsageError
from shoal.inference.engine import label_choice
from shoal.inference.engine.core import Engine
from shoal.inference.engine.records import Event, FinishedRecord, Limits, Request, StepRecord
from shoal.inference.labels import CONTENT_FREE, choose_labels, score_labels
from shoal.inference.sampling import Sampling
from shoal.models.backbone import Backbone

LABELS = LabelSet(labels=("no", "no way", "perhaps so", "yes"))
CALIBRATED = LabelSet(labels=LABELS.labels, priors=(0.0,) * 4)
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


def test_evidence_of_a_request_is_added(engine: Engine, backbone: Backbone, lora: LoRA) -> None:
    prompt, evidence = backbone.encode_prompt("a request"), torch.linspace(0, 9, len(LABELS.labels))
    engine.submit(Request(prompt, lora, labels=LABELS, evidence=tuple(evidence.tolist())))
    (event,) = finish(engine)
    expected = choose_labels(backbone, [prompt], LABELS, lora, evidence=evidence[None])[0]
    assert event.delta.probabilities == pytest.approx(expected.probabilities, abs=1e-4)


def test_answers_that_run_beside_it_are_as_alone(engine: Engine, lora: LoRA) -> None:
    ticket = engine.submit(FREE)
    alone = tokens(finish(engine), ticket)
    beside, _ = engine.submit(FREE), engine.submit(Request([3, 4], lora, labels=LABELS))
    assert tokens(finish(engine), beside) == alone


def test_running_answers_go_on_while_labels_are_scored(
    backbone: Backbone, lora: LoRA, records: list[StepRecord | FinishedRecord]
) -> None:
    engine = Engine(backbone, limits=Limits(prefill_tokens=16), observe=records.append)
    engine.submit(FREE)
    engine.step()
    records.clear()
    chosen = engine.submit(Request([3] * 40, lora, labels=CALIBRATED))
    while not any(event.ticket == chosen for event in engine.step()):
        pass
    running = [record.running for record in records if isinstance(record, StepRecord)]
    assert len(running) > 2 and set(running) == {1}


def test_a_long_prompt_is_read_in_pieces(backbone: Backbone) -> None:
    def steps(prefill_tokens: int) -> int:
        engine = Engine(backbone, limits=Limits(prefill_tokens=prefill_tokens))
        engine.submit(Request([3] * 40, labels=CALIBRATED))
        taken = 0
        while engine.busy:
            engine.step()
            taken += 1
        return taken

    assert steps(8) >= steps(512) + 4


def test_labels_need_no_rows_of_those_that_run(engine: Engine, lora: LoRA) -> None:
    first = engine.submit(Request([1, 2], max_tokens=40, n=6, stop_at_end=False))
    chosen = [engine.submit(Request([3, 4], lora, labels=LABELS)) for _ in range(2)]
    ends = [event.ticket for event in finish(engine) if event.last]
    assert ends == [*chosen, first]


def test_many_labels_make_do_with_the_rows_that_are_free(engine: Engine, backbone: Backbone) -> None:
    many = LabelSet(labels=tuple(f"label {i}" for i in range(12)), priors=tuple([0.0] * 12))
    long = engine.submit(Request([1, 2], max_tokens=200, n=4, stop_at_end=False))
    engine.step()
    chosen, beside = engine.submit(Request([3, 4], labels=many)), engine.submit(FREE)
    events = finish(engine)
    ends = [event.ticket for event in events if event.last]
    assert ends.index(chosen) < ends.index(long) and beside in ends
    expected = choose_labels(backbone, [[3, 4]], many)[0].label
    assert [event.delta.text for event in events if event.ticket == chosen] == [expected]


def test_labels_of_a_prompt_with_room_for_one_row_are_scored_and_block_nobody(backbone: Backbone) -> None:
    engine = Engine(backbone, limits=Limits(kv_tokens=200, prefill_tokens=64))
    tickets = {engine.submit(Request([3] * 150, max_tokens=1, labels=CALIBRATED, owner="a"))}
    tickets.add(engine.submit(Request([3] * 120, max_tokens=2, owner="b")))
    events = [event for _ in range(100) for event in engine.step()]
    assert {event.ticket for event in events if event.last and event.delta} == tickets


@pytest.mark.parametrize("steps", [0, 3])
def test_a_cancelled_request_says_no_more_and_frees_its_rows(
    backbone: Backbone, lora: LoRA, records: list[StepRecord | FinishedRecord], steps: int
) -> None:
    # So few tokens a step that three do not end, however fast the machine is.
    engine = Engine(backbone, limits=Limits(max_batch=6, prefill_tokens=16), observe=records.append)
    chosen = engine.submit(Request([3, 4], lora, labels=LABELS))
    assert not any(engine.step() for _ in range(steps))
    engine.cancel(chosen)
    assert finish(engine) == [] and engine.state().kv_tokens == 0
    assert [r.outcome for r in records if isinstance(r, FinishedRecord)] == ["cancelled"]
    assert engine.submit(Request([3, 4], lora, labels=LABELS)) in {e.ticket for e in finish(engine)}


def test_closing_fails_what_is_being_scored(engine: Engine, lora: LoRA) -> None:
    chosen = engine.submit(Request([3, 4], lora, labels=LABELS))
    engine.step()
    (event,) = engine.close()
    assert (event.ticket, event.last) == (chosen, True) and isinstance(event.error, ShoalError)
    assert not engine.busy


def test_labels_take_the_rows_and_places_of_their_request(
    backbone: Backbone, lora: LoRA, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []

    def counted(*arguments: object, places: int, **options: object) -> object:
        given.append(places)
        return score_labels(*arguments, places=places, **options)

    monkeypatch.setattr(label_choice, "score_labels", counted)
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

    def counted(backbone: Backbone, texts: Sequence[object], **options: object) -> object:
        if len(texts) == len(CONTENT_FREE):
            measured.append(options["adapter"])
        return score_labels(backbone, texts, **options)

    monkeypatch.setattr(label_choice, "score_labels", counted)
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
