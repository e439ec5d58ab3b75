"""Chats with an adapter that has labels: one of them with probabilities, unless the request differs."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shoal.adapters.card import AdapterCard, LabelSet
from shoal.adapters.lora import LoRA
from shoal.errors import UsageError
from shoal.inference.engine.adapter_cache import AdapterCache
from shoal.inference.engine.core import Engine
from shoal.inference.engine.records import FinishedRecord, Limits, Request
from shoal.inference.engine.runner import EngineRunner
from shoal.models.backbone import Backbone, load_backbone
from shoal.models.shapes import load_shape
from shoal.server.label_answers import LabelAnswers
from tests.fixtures.service import ASK, Running

LABELS = ("fruit", "animal", "tool")


@pytest.fixture(scope="module")
def backbone(tiny_llama: Path) -> Backbone:
    return load_backbone(str(tiny_llama), device="cpu")


@pytest.fixture(scope="module")
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


def test_a_stream_and_several_choices_hold_the_label_too(running: Running, name: str) -> None:
    several = json.loads(asked(running, model=name, n=2))["choices"]
    assert len(several) == 2 and len({choice["message"]["content"] for choice in several}) == 1
    text = asked(running, model=name, stream=True)
    assert several[0]["message"]["content"] in text and text.rstrip().endswith("[DONE]")


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


def test_a_label_that_fails_counts_as_failed(backbone: Backbone) -> None:
    records: list[FinishedRecord] = []
    cache = AdapterCache(lambda sha256: LoRA.identity(backbone.shape.targets, 2, 4.0), 0)
    with EngineRunner(Engine(backbone, adapters=cache)) as runner:
        labels = LabelAnswers(backbone, runner, cache, records.append)
        with pytest.raises(UsageError, match="same tokens"):
            labels.answer([1, 2], "a", LabelSet(labels=("a", "a")), 1)
    assert [record.outcome for record in records] == ["failed"] and not records[0].completion_tokens


def test_labels_are_scored_in_the_room_that_running_answers_leave(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []

    def scores(*arguments: object, places: int) -> torch.Tensor:
        given.append(places)
        return torch.zeros(1, 2)

    monkeypatch.setattr("shoal.server.label_answers.label_log_likelihoods", scores)
    cache = AdapterCache(lambda sha256: LoRA.identity(backbone.shape.targets, 2, 4.0), 0)
    with EngineRunner(Engine(backbone, limits=Limits(kv_tokens=500), adapters=cache)) as runner:
        labels = LabelAnswers(backbone, runner, cache, lambda record: None)
        with runner.submit(Request([1, 2], max_tokens=300, stop_at_end=False)) as stream:
            next(stream)
            labels.answer([1, 2], "a", LabelSet(labels=("a", "b"), priors=(0.0, 0.0)), 1)
    assert given == [500 - 302]
