"""Answers in a format over HTTP: OpenAI's client, vLLM's fields, streams, and what is refused."""

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
import torch

from shoal.adapters.card import AdapterCard, LabelSet
from shoal.adapters.lora import LoRA
from shoal.adapters.output_format import OutputFormat
from shoal.models.shapes import load_shape
from tests.fixtures.service import ASK, Running

SCHEMA: dict[str, Any] = {"type": "string", "maxLength": 3}  # without room for spaces
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}
DATE = "[0-9]{2}-[0-9]{2}"


@pytest.fixture
def client(running: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key=running.ada, max_retries=0) as opened:
        yield opened


def asked(running: Running, **body: Any) -> Any:
    with running.http(running.ada) as http:
        return http.post(
            "/v1/chat/completions", json={"model": running.model, **ASK, "max_tokens": 40, **body}
        )


def content(answer: Any) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def test_the_openai_client_gets_json_of_its_schema_whole_and_streamed(
    running: Running, client: openai.OpenAI
) -> None:
    ask: Any = {"model": running.model, **ASK, "max_tokens": 40, "temperature": 0, "response_format": FORMAT}
    whole = client.chat.completions.create(**ask).choices[0]
    jsonschema.validate(json.loads(whole.message.content or ""), SCHEMA)
    stream = client.chat.completions.create(**ask, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in stream) == whole.message.content
    assert whole.finish_reason == "stop"


FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "choice": ({"structured_outputs": {"choice": ["left", "right"]}}, "left|right"),
    "regex": ({"structured_outputs": {"regex": DATE}}, DATE),
    "grammar": ({"structured_outputs": {"grammar": 'root ::= "a" | "b"'}}, "a|b"),
    "json": ({"structured_outputs": {"json": {"enum": [1, 2]}}}, "1|2"),
    "text of json": ({"structured_outputs": {"json": '{"enum": [1, 2]}'}}, "1|2"),
    "guided choice": ({"guided_choice": ["left", "right"]}, "left|right"),
    "guided regex": ({"guided_regex": DATE}, DATE),
    "guided grammar": ({"guided_grammar": 'start: "a" | "b"'}, "a|b"),
    "guided json": ({"guided_json": {"type": "boolean"}}, "true|false"),
    "an object": ({"response_format": {"type": "json_object"}, "max_tokens": 3}, r"\{.*"),
}


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_holds_the_answer_to_its_format(field: str, running: Running) -> None:
    body, pattern = FIELDS[field]
    assert re.fullmatch(pattern, content(asked(running, **body)), re.DOTALL)


def test_completions_with_several_prompts_take_formats_too(running: Running) -> None:
    body = {"model": running.model, "prompt": ["a", "b"], "n": 2, "max_tokens": 20, "guided_regex": DATE}
    with running.http(running.ada) as http:
        choices = http.post("/v1/completions", json=body).json()["choices"]
    assert len(choices) == 4 and all(re.fullmatch(DATE, choice["text"]) for choice in choices)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "two formats": ({"guided_choice": ["a"], "guided_regex": "a"}, "guided_choice` and `guided_regex"),
    "two in one": ({"structured_outputs": {"choice": ["a"], "regex": "a"}}, "choice` and"),
    "none in one": ({"structured_outputs": {}}, "is empty"),
    "unknown": ({"structured_outputs": {"structural_tag": "x"}}, "structural_tag"),
    "no schema": ({"response_format": {"type": "json_schema"}}, "json_schema.schema"),
    "no choices": ({"guided_choice": []}, "1 to 1024"),
    "many choices": ({"guided_choice": [str(i) for i in range(1100)]}, "1 to 1024"),
    "long choice": ({"guided_choice": ["x" * 1100]}, "1024 characters"),
    "remote": ({"guided_json": {"$ref": "http://x.org/s"}}, "$defs"),
    "enormous": ({"guided_json": {"title": "x" * 40000}}, "32768"),
    "impossible": ({"guided_json": {"type": "integer", "minimum": 2, "maximum": 1}}, "greater than maximum"),
    "look-ahead": ({"guided_regex": "(?=a)"}, "look-around"),
    "large counts": ({"guided_regex": "(a{99}){99}"}, "smaller counts"),
    "no rules": ({"guided_grammar": "x: y"}, "cannot be used"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_bad_format_is_400_in_one_sentence(kind: str, running: Running) -> None:
    body, named = REFUSED[kind]
    answer = asked(running, **body)
    assert answer.status_code == 400, answer.text
    assert named in answer.json()["error"]["message"]


def test_a_bad_format_is_refused_before_an_adapter_is_generated(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running.service.completions._selector, "select", None)
    answer = asked(running, adapter={"describe": "Answer in French."}, guided_regex="(?=a)")
    assert answer.status_code == 400


def add_adapter(running: Running, name: str, **facts: Any) -> None:
    """An adapter of ada's that changes nothing, with a card of these facts."""
    shape = load_shape(running.model)
    lora = LoRA.identity(shape.targets, 2, 4.0, generator=torch.Generator().manual_seed(0))
    card = AdapterCard(generator="test", trained=True, description="Sort.", **facts)
    running.service.registry.add(name, lora, shape=shape, card=card, owner="ada")


def test_a_format_of_the_request_comes_before_the_labels_of_the_adapter(running: Running) -> None:
    add_adapter(running, "sorting", label_set=LabelSet(labels=("fruit", "animal")))
    answer = asked(running, model="sorting", guided_choice=["plant", "stone"])
    assert content(answer) in ("plant", "stone") and "labels" not in answer.json()["adapter"]


def test_the_format_that_an_adapter_suggests_holds_where_it_is_asked_for(running: Running) -> None:
    add_adapter(running, "dates", suggested_format=OutputFormat.regex(DATE))
    add_adapter(running, "free")
    asking = {"response_format": {"type": "suggested"}, "seed": 1, "temperature": 1.0}
    assert re.fullmatch(DATE, content(asked(running, model="dates", **asking)))
    assert not re.fullmatch(DATE, content(asked(running, model="dates", seed=1, temperature=1.0)))
    refused = asked(running, model="free", **asking)
    assert refused.status_code == 400 and "suggests no format" in refused.json()["error"]["message"]
