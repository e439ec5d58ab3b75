"""Requests at the edge of what the API says: neutral by another spelling, out of bounds, or hardly JSON."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from shoal.server.service import Service
from tests.fixtures.service import GREEDY, is_error

TOOLS = [{"type": "function", "function": {"name": "f"}}]
USER = GREEDY["messages"][0]


@pytest.fixture
def body(service: Service) -> dict[str, Any]:
    return {"model": service.base_names[0], **GREEDY, "max_tokens": 2}


def chat(http: TestClient, body: dict[str, Any], **options: Any) -> Any:
    return http.post("/v1/chat/completions", json={**body, **options})


@pytest.fixture(scope="module")
def plain(service: Service, http: TestClient) -> str:
    answer = chat(http, {"model": service.base_names[0], **GREEDY, "max_tokens": 2})
    return str(answer.json()["choices"][0]["message"]["content"])


# name -> options that ask for nothing but what is done anyway
NOTHING: dict[str, dict[str, Any]] = {
    "a form of text with nulls": {"response_format": {"type": "text", "json_schema": None}},
    "tools that must not be called": {"tools": TOOLS, "tool_choice": "none"},
    "functions that must not be called": {"functions": [{"name": "f"}], "function_call": "none"},
    "biases of zero": {"logit_bias": {"5": 0, "6": 0.0}},
    "null among the stops": {"stop": [None, "never said"]},
    "stops of null alone": {"stop": [None]},
    "a null within an option": {"stream_options": {"include_usage": None}},
    "a part of a stream that is not known": {"stream_options": {"include_obfuscation": False}},
    "penalties below zero by a sign alone": {"presence_penalty": -0.0, "frequency_penalty": -0.0},
    "numbers as text": {"n": "1", "seed": "5"},
    "whole numbers as others": {"n": 1.0, "top_k": 0.0},
    "the least and the largest seed": {"seed": 2**63 - 1},
    "no limit, as local servers spell it": {"max_tokens": 2, "max_completion_tokens": -1},
    "a turn of text parts": {"messages": [{**USER, "content": [{"text": USER["content"]}]}]},
}


@pytest.mark.parametrize("kind", NOTHING)
def test_what_is_done_anyway_may_be_asked_for(
    kind: str, plain: str, http: TestClient, body: dict[str, Any]
) -> None:
    answer = chat(http, body, **NOTHING[kind])
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == plain


def turn(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


# name -> (options, what the error says)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "tools that may be called": ({"tools": TOOLS, "tool_choice": "auto"}, "`tool_choice` auto"),
    "a bias beside one of zero": ({"logit_bias": {"5": 0, "6": 1}}, "`logit_bias` is not supported"),
    "a form of JSON": (
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        "`response_format.json_schema.schema`",
    ),
    "no answer at all": ({"max_tokens": 0}, "`max_tokens` is 0; it must be at least 1"),
    "less than no answer": ({"max_tokens": -2}, "`max_tokens` is -2"),
    "a seed that is too large": ({"seed": 2**64}, "`seed` is 18446744073709551616; it must be below"),
    "a seed of 400 digits": ({"seed": 10**400}, "`seed` is 1000"),
    "a broken seed": ({"seed": 1.5}, "`seed` is 1.5; it must be a whole number"),
    "likeliest tokens without scores": ({"top_logprobs": 3}, "top_logprobs needs logprobs"),
    "too many likeliest tokens": ({"logprobs": True, "top_logprobs": 21}, "`top_logprobs` is 21"),
    "scores as a number": ({"logprobs": 5}, "`logprobs` is 5; it must be true or false"),
    "too many stops": ({"stop": ["x"] * 257}, "`stop` has 257 entries"),
    "a stop that is an object": ({"stop": {"a": 1}}, "`stop` is {'a': 1}; it must be text or a list"),
    "best of more": ({"n": 2, "best_of": 3}, "`best_of` is not supported"),
    "a function that speaks": (
        {"messages": [{"role": "function", "name": "f", "content": "1"}]},
        "'function'",
    ),
    "a tool that speaks": ({"messages": [{"role": "tool", "content": "1", "tool_call_id": "c"}]}, "tool"),
    "sound": (
        turn([{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]),
        "type input_audio",
    ),
    "a film": (turn([{"type": "video_url", "video_url": {"url": "x"}}]), "type video_url"),
    "a part that is a text": (turn(["a"]), "`messages[0].content[0]` is 'a'; it must be an object"),
    "a part of null": (turn([None]), "`messages[0].content[0]` is None; it must be an object"),
    "a text of null": (turn([{"type": "text", "text": None}]), "`messages[0].content[0].text` is missing"),
    "one turn alone": ({"messages": USER}, "`messages` is {'role'"),
    "no turns": ({"messages": []}, "`messages` has 0 entries"),
    "no model": ({"model": None}, "`model` is missing"),
    "an adapter of nothing": ({"adapter": {"describe": None}}, "`adapter` holds one of describe and mix"),
    "what nobody knows": ({"web_search_options": {}}, "`web_search_options` is no field"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_out_of_bounds_is_named_in_one_sentence(
    kind: str, http: TestClient, body: dict[str, Any]
) -> None:
    options, said = REFUSED[kind]
    answer = chat(http, body, **options)
    assert is_error(answer, 400), answer.text
    message = answer.json()["error"]["message"]
    assert said in message and "\n" not in message and len(message) < 300


PROMPTS: dict[str, tuple[Any, str]] = {
    "no text": ("", "`prompt` has 0 characters"),
    "no prompts": ([], "`prompt` is []"),
    "a prompt of no tokens": ([[]], "`prompt[0]` is []"),
    "texts and tokens": (["a", 5], "`prompt[1]` is 5"),
    "a token below 0": ([-1], "`prompt[0]` is -1"),
    "a token above the vocabulary": ([10**6], "the last of the vocabulary"),
    "null": (None, "`prompt` is missing"),
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_a_prompt_that_is_none_is_named(kind: str, http: TestClient, body: dict[str, Any]) -> None:
    prompt, said = PROMPTS[kind]
    answer = http.post("/v1/completions", json={"model": body["model"], "prompt": prompt, "max_tokens": 1})
    assert is_error(answer, 400) and said in answer.json()["error"]["message"]


WELL = json.dumps({"model": "m", "messages": [USER]})
UNREADABLE: dict[str, bytes] = {
    "a number of 5000 digits": f'{WELL[:-1]}, "seed": {"9" * 5000}}}'.encode(),
    "lists in lists": b"[" * 100_000,
    "objects in objects": b'{"a":' * 20_000,
    "Latin-1": b'{"model": "\xe9"}',
    "compressed": gzip.compress(WELL.encode()),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_body_that_cannot_be_read_is_one_line(kind: str, http: TestClient) -> None:
    answer = http.post(
        "/v1/chat/completions", content=UNREADABLE[kind], headers={"Content-Type": "application/json"}
    )
    assert is_error(answer, 400) and "the body cannot be read: it is compressed" in answer.text


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_named(number: str, http: TestClient, body: dict[str, Any]) -> None:
    content = json.dumps({**body, "temperature": 0.125}).replace("0.125", number)
    answer = http.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert is_error(answer, 400) and "finite" in answer.json()["error"]["message"]
