"""A refused field is named in plain words, with the value, the limit or the fix."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello."}]}


def message(answer: Any) -> tuple[str, str | None]:
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    return error["message"], error["param"]


@pytest.mark.parametrize(
    ("change", "said", "field"),
    [
        ({"temperature": 3}, "`temperature` is 3; it must be at most 2", "temperature"),
        ({"n": "many"}, "`n` is 'many'; it must be a whole number", "n"),
        ({"messages": []}, "`messages` has 0 entries; it must be at least 1 entry long", "messages"),
        (
            {"functions": [{}]},
            "`functions` is not supported with another value than []; leave it out",
            "functions",
        ),
        (
            {"messages": [{"role": "root", "content": ""}]},
            "`messages[0].role` is 'root'; it must be 'system', 'developer', 'user', 'assistant' or 'tool'",
            "messages[0].role",
        ),
        (
            {"messages": [{"role": "user"}]},
            "`messages[0].content` is missing; give it",
            "messages[0].content",
        ),
        (
            {"adapter": {"mix": [{"name": "a", "weight": 1e9}]}},
            "`adapter.mix[0].weight` is 1000000000.0; it must be at most 10",
            "adapter.mix[0].weight",
        ),
        ({"adapter": "manual"}, "`adapter` is 'manual'; it must be an object or 'auto'", "adapter"),
    ],
)
def test_a_field_of_a_chat(http: TestClient, change: Any, said: str, field: str) -> None:
    assert message(http.post("/v1/chat/completions", json={**CHAT, **change})) == (said, field)


HALF = "half \ud83d"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"messages": [{"role": "user", "content": HALF}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": HALF}]}]}, "content[0].text"),
        ({"stop": HALF}, "stop"),
        ({"stop": ["a", HALF]}, "stop[1]"),
        ({"model": HALF}, "model"),
        ({"adapter": HALF}, "adapter"),
    ],
)
def test_half_of_a_surrogate_pair(http: TestClient, change: Any, field: str) -> None:
    answer = http.post(
        "/v1/chat/completions",
        content=json.dumps({**CHAT, **change}),
        headers={"Content-Type": "application/json"},
    )
    said, place = message(answer)
    assert "'half \\ud83d', which is not valid Unicode" in said and str(place).endswith(field)


def test_a_prompt_of_no_kind(http: TestClient) -> None:
    said, field = message(http.post("/v1/completions", json={"model": "m", "prompt": 5}))
    assert (said, field) == ("`prompt` is 5; it must be text or a list", "prompt")


def test_a_missing_field(http: TestClient) -> None:
    said = message(http.post("/v1/adapters", json={"name": "a"}))
    assert said == ("`description` is missing; give it", "description")


def test_a_long_description(http: TestClient) -> None:
    said, _ = message(http.post("/v1/adapters", json={"name": "a", "description": "x" * 5000}))
    assert said == "`description` has 5000 characters; it must be at most 4000 characters long"


def test_a_parameter_of_the_address(http: TestClient) -> None:
    said = message(http.get("/v1/adapters", params={"limit": 1000}))
    assert said == ("`limit` is '1000'; it must be at most 200", "limit")


def test_a_field_of_a_form(http: TestClient) -> None:
    said = message(http.post("/v1/jobs", data={"name": "a"}, files={"file": b"x"}))
    assert said == ("`definition` is missing; give it", "definition")


def test_a_body_that_is_no_json(http: TestClient) -> None:
    headers = {"Content-Type": "application/json"}
    said, field = message(http.post("/v1/adapters", content=b'{"name": a}', headers=headers))
    assert said.startswith("the body is not JSON: ") and "at character 9" in said and field is None


def test_no_body_at_all(http: TestClient) -> None:
    assert message(http.post("/v1/adapters")) == ("the body is missing; give it", None)
