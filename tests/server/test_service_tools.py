"""Tools over HTTP: every call parses and fits its schema, whole and streamed, and what is refused."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import openai
import pytest

from shoal.server.schemas import ChatRequest
from tests.fixtures.service import ASK, Running, is_error

TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }} {{ tool.function.description }}"
    "{{ (tool.function.parameters.properties or {}) | tojson }}\n{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SCHEMAS: dict[str, dict[str, Any]] = {
    "turn": {
        "type": "object",
        "properties": {"way": {"enum": ["left", "right"]}, "far": {"type": "boolean"}},
        "required": ["way", "far"],
        "additionalProperties": False,
    },
    "stop-now": {
        "$defs": {"Why": {"enum": ["red", "wall"]}, "Both": {"$ref": "#/$defs/Why"}},
        "properties": {"why": {"$ref": "#/$defs/Both"}},
        "required": ["why"],
        "additionalProperties": False,
    },
}
TOOLS: list[Any] = [
    *({"type": "function", "function": {"name": n, "parameters": s}} for n, s in SCHEMAS.items()),
    {"type": "function", "function": {"name": "wait", "description": "Do nothing."}},
]
SCHEMAS["wait"] = {"type": "object", "maxProperties": 0}
CALLING: dict[str, Any] = {**ASK, "tools": TOOLS, "tool_choice": "required", "max_tokens": 390}


@pytest.fixture(scope="module")
def tooled(
    tiny_llama: Path,
    tmp_path_factory: pytest.TempPathFactory,
    start_service: Callable[..., AbstractContextManager[Running]],
) -> Iterator[Running]:
    """A service of a tiny model whose template shows tools."""
    model = tmp_path_factory.mktemp("tooled") / "model"
    shutil.copytree(tiny_llama, model)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    limits = {"requests_per_minute": 100_000, "tokens_per_minute": 10**8, "max_tokens": 400}
    with start_service(model, model.with_name("registry"), **limits) as running:
        yield running


@pytest.fixture
def client(tooled: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tooled.url}/v1", api_key=tooled.ada, max_retries=0) as opened:
        yield opened


@pytest.fixture
def http(tooled: Running) -> Iterator[httpx2.Client]:
    with tooled.http(tooled.ada) as opened:
        yield opened


def ask(http: httpx2.Client, running: Running, **body: Any) -> Any:
    return http.post("/v1/chat/completions", json={"model": running.model, **CALLING, **body})


def check(name: str, arguments: str) -> None:
    jsonschema.validate(json.loads(arguments), SCHEMAS[name])


def test_every_call_parses_and_fits_the_schema_of_its_tool(client: openai.OpenAI, tooled: Running) -> None:
    answer = client.chat.completions.create(model=tooled.model, **CALLING, n=8, seed=1, temperature=1.5)
    called = set()
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        (call,) = choice.message.tool_calls or ()
        assert call.type == "function" and call.id.startswith("call_")
        check(call.function.name, call.function.arguments)
        called.add(call.function.name)
    assert len(called) > 1


def test_a_stream_has_the_same_call_as_one_piece(client: openai.OpenAI, tooled: Running) -> None:
    asked: Any = {"model": tooled.model, **CALLING, "temperature": 0}
    (call,) = client.chat.completions.create(**asked).choices[0].message.tool_calls or ()
    with client.chat.completions.stream(**asked) as stream:
        choice = stream.get_final_completion().choices[0]
    (streamed,) = choice.message.tool_calls or ()
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert (streamed.function.name, streamed.function.arguments) == (
        call.function.name,
        call.function.arguments,
    )


def test_a_tool_by_name_is_the_one_that_is_called(client: openai.OpenAI, tooled: Running) -> None:
    asked: Any = {**CALLING, "tool_choice": {"type": "function", "function": {"name": "stop-now"}}}
    answer = client.chat.completions.create(model=tooled.model, **asked, seed=1, n=4)
    for choice in answer.choices:
        (call,) = choice.message.tool_calls or ()
        assert call.function.name == "stop-now"
        check("stop-now", call.function.arguments)


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_cut_is_none(stream: bool, http: httpx2.Client, tooled: Running) -> None:
    answer = ask(http, tooled, max_tokens=12, stream=stream)
    assert answer.status_code == 200
    if not stream:
        (choice,) = answer.json()["choices"]
        assert choice["finish_reason"] == "length" and choice["message"]["content"] is None
    assert '"tool_calls"' not in answer.text and "length" in answer.text


def test_a_conversation_goes_on_with_what_a_tool_said(client: openai.OpenAI, tooled: Running) -> None:
    messages: list[Any] = list(ASK["messages"])
    for _ in range(2):
        message = (
            client.chat.completions.create(model=tooled.model, **{**CALLING, "messages": messages}, seed=1)
            .choices[0]
            .message
        )
        (call,) = message.tool_calls or ()
        messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "Done."}]
    last: Any = {**CALLING, "messages": messages, "tool_choice": "none", "max_tokens": 4}
    said = client.chat.completions.create(model=tooled.model, **last).choices[0].message
    assert said.content is not None and not said.tool_calls


def test_the_template_words_tools_calls_and_results(tooled: Running) -> None:
    backbone = tooled.service.completions._backbone
    call = {"id": "c", "type": "function", "function": {"name": "turn", "arguments": {"way": "left"}}}
    chat = [
        {"role": "user", "content": "Go."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "Gone.", "tool_call_id": "c"},
    ]
    offered = ChatRequest(model="m", **CALLING).offered
    text = backbone.tokenizer.decode(backbone.encode_chats([chat], offered)[0])
    assert all(part in text for part in ("Do nothing.", '"way": "left"', "Gone."))


def function(**given: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", **given}}]}


TURNS = ASK["messages"]
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BAD_CALL = {**CALL, "function": {"name": "f", "arguments": "{"}}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "auto": ({"tool_choice": "auto"}, "`tool_choice` auto"),
    "auto by default": ({"tool_choice": None}, "`tool_choice` auto"),
    "no tools": ({"tools": None}, "without `tools`"),
    "none of them": ({"tool_choice": {"type": "function", "function": {"name": "go"}}}, "go, which is none"),
    "an unknown choice": ({"tool_choice": "any"}, "`tool_choice` is 'any'"),
    "too many": ({"tools": TOOLS * 50}, "`tools` has 150 entries; it must be at most 128"),
    "one name twice": ({"tools": TOOLS * 2}, "two tools have the name turn"),
    "a name with spaces": (function(name="go on"), "`tools[0].function.name`"),
    "a name with a line end": (function(name="go\n"), "`tools[0].function.name`"),
    "no name": ({"tools": [{"type": "function", "function": {}}]}, "`tools[0].function.name` is missing"),
    "another type": ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "`tools[0].type`"),
    "no object": (function(parameters={"type": "string"}), "arguments are an object"),
    "parameters as text": (function(parameters="{}"), "`tools[0].function.parameters`"),
    "a large schema": (function(parameters={"title": "x" * 40_000}), "32768"),
    "a remote schema": (function(parameters={"$ref": "http://x.org/s"}), "$defs"),
    "a schema to nowhere": (function(parameters={"$ref": "#/$defs/None"}), "cannot be used"),
    "a schema that is none": (function(parameters={"properties": 5}), "cannot be used"),
    "a long description": (function(description="x" * 5000), "`tools[0].function.description`"),
    "a format too": ({"response_format": {"type": "json_object"}}, "`response_format` and `tools`"),
    "a stop": ({"stop": ["a"]}, "`stop`"),
    "a call of a user": ({"messages": [{**TURNS[0], "tool_calls": [CALL]}]}, "assistant has alone"),
    "a result of a user": ({"messages": [{**TURNS[0], "tool_call_id": "c"}]}, "tool has alone"),
    "a call of nothing": (
        {"messages": [*TURNS, {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
        "`messages[1].tool_calls[0].function` is missing",
    ),
    "a broken call": (
        {"messages": [*TURNS, {"role": "assistant", "content": None, "tool_calls": [BAD_CALL]}]},
        "no JSON object",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_tools_are_400_in_one_sentence(kind: str, http: httpx2.Client, tooled: Running) -> None:
    body, named = REFUSED[kind]
    answer = ask(http, tooled, **body)
    assert is_error(answer, 400), answer.text
    assert named in answer.json()["error"]["message"]


def test_a_template_that_shows_no_tools_refuses_them_and_their_turns(
    as_ada: httpx2.Client, running: Running
) -> None:
    answer = ask(as_ada, running)
    assert is_error(answer, 400) and "shows no tools" in answer.json()["error"]["message"]
    for turn in (
        {"role": "tool", "tool_call_id": "c", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
    ):
        answer = ask(as_ada, running, tools=None, tool_choice=None, messages=[*TURNS, turn])
        assert is_error(answer, 400) and "leaves calls" in answer.json()["error"]["message"]
