"""Chats with an adapter that has labels: one of them with probabilities, unless the request differs."""

import json
from collections.abc import Iterator

import pytest
import torch

from shoal.adapters.card import AdapterCard, LabelSet
from shoal.adapters.lora import LoRA
from shoal.models.shapes import load_shape
from tests.fixtures.service import ASK, Running

LABELS = ("fruit", "animal", "tool")


@pytest.fixture
def name(running: Running) -> Iterator[str]:
    shape = load_shape(running.model)
    lora = LoRA.identity(shape.targets, 2, 4.0, generator=torch.Generator().manual_seed(0))
    card = AdapterCard(generator="test", trained=True, description="Sort.", label_set=LabelSet(labels=LABELS))
    running.service.registry.add("closed", lora, shape=shape, card=card, owner="ada")
    yield "closed"
    running.service.registry.delete("closed", "ada")


def asked(running: Running, **body: object) -> str:
    with running.http(running.ada) as client:
        return client.post("/v1/chat/completions", json={**ASK, **body}).text


def test_a_chat_is_answered_with_a_label_and_every_labels_probability(running: Running, name: str) -> None:
    body = json.loads(asked(running, model=name))
    probabilities = body["adapter"]["labels"]
    assert set(probabilities) == set(LABELS) and sum(probabilities.values()) == pytest.approx(1)
    assert body["choices"][0]["message"]["content"] == max(probabilities, key=probabilities.get)
    assert body["choices"][0]["finish_reason"] == "stop" and body["usage"]["completion_tokens"] > 1


def test_what_the_labels_mean_is_part_of_the_answer(running: Running, name: str) -> None:
    def odds(text: str) -> float:
        messages = [{"role": "user", "content": text}]
        found = json.loads(asked(running, model=name, messages=messages))["adapter"]["labels"]
        return found["fruit"] / found["animal"]

    assert odds("A ripe apple.") > 3 * odds("A barking dog.")


def test_a_stream_and_several_choices_hold_the_label_too(running: Running, name: str) -> None:
    several = json.loads(asked(running, model=name, n=2))["choices"]
    assert len(several) == 2 and len({choice["message"]["content"] for choice in several}) == 1
    text = asked(running, model=name, stream=True)
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    pieces = [choice["delta"].get("content") or "" for event in events for choice in event["choices"]]
    assert "".join(pieces) == several[0]["message"]["content"] and text.rstrip().endswith("[DONE]")
    assert [set(event["adapter"].get("labels", ())) for event in events if event["choices"]] == [
        set(),
        set(LABELS),
    ]


def test_a_temperature_asks_for_free_answers(running: Running, name: str) -> None:
    assert "labels" not in json.loads(asked(running, model=name, temperature=1.0, seed=1))["adapter"]


def test_a_label_counts_as_an_answer_of_the_engine(running: Running, name: str) -> None:
    def told() -> list[float]:
        registry = running.service.monitoring.registry
        names = [
            ("shoal_generations_total", {"outcome": "stop"}),
            ("shoal_tokens_total", {"kind": "completion"}),
        ]
        counts = [registry.get_sample_value(name, labels) or 0 for name, labels in names]
        return [*counts, registry.get_sample_value("shoal_first_token_seconds_count") or 0]

    before = told()
    used = json.loads(asked(running, model=name, n=2))["usage"]["completion_tokens"]
    assert told() == [before[0] + 1, before[1] + used, before[2] + 1]
