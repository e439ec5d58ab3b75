"""Requests as official clients and evaluation suites send them."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
from starlette.testclient import TestClient

from shoal.inference.engine.records import Request, TokenScore
from shoal.models.backbone import load_backbone
from shoal.server.neutral import IGNORED, NEUTRAL
from shoal.server.responses import text_logprobs
from tests.conftest import MAX_POSITIONS
from tests.fixtures.service import ASK, GREEDY, Running, is_error, small

MESSAGES = ASK["messages"]


def chat(http: httpx2.Client, running: Running, **options: Any) -> httpx2.Response:
    return http.post("/v1/chat/completions", json={"model": running.model, **GREEDY, **options})


def complete(http: httpx2.Client, running: Running, **options: Any) -> httpx2.Response:
    body = {"model": running.model, "max_tokens": 4, "temperature": 0, "prompt": "Say", **options}
    return http.post("/v1/completions", json=body)


def said(answer: httpx2.Response) -> Any:
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"]


def test_every_neutral_value_changes_nothing(as_ada: httpx2.Client, running: Running) -> None:
    plain = said(chat(as_ada, running))
    for number in range(max(map(len, NEUTRAL.values()))):
        options = {name: values[min(number, len(values) - 1)] for name, values in NEUTRAL.items()}
        assert said(chat(as_ada, running, **options)) == plain
    assert said(chat(as_ada, running, **dict.fromkeys([*NEUTRAL, *IGNORED]))) == plain
    assert said(chat(as_ada, running, **dict.fromkeys(IGNORED, {"any": "thing"}))) == plain
    assert said(complete(as_ada, running, **{n: v[0] for n, v in NEUTRAL.items()})) == said(
        complete(as_ada, running)
    )


ASKING: dict[str, Any] = {
    "frequency_penalty": 0.5,
    "logit_bias": {"5": 10},
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "modalities": ["text", "audio"],
    "best_of": 3,
    "ignore_eos": True,
    "reasoning_effort": "high",
    "continue_final_message": True,
}


@pytest.mark.parametrize("name", ASKING)
def test_an_option_that_would_be_ignored_is_refused_by_name(
    name: str, as_ada: httpx2.Client, running: Running
) -> None:
    answer = chat(as_ada, running, **{name: ASKING[name]})
    assert is_error(answer, 400)
    error = answer.json()["error"]
    assert error["param"] == name and f"`{name}` is not supported" in error["message"]


@pytest.mark.parametrize(
    "field", ["n", "seed", "stream", "stream_options", "stop", "top_p", "max_tokens", "adapter"]
)
def test_null_is_not_given(field: str, as_ada: httpx2.Client, running: Running) -> None:
    options = {k: v for k, v in GREEDY.items() if k != field}
    body = {"model": running.model, **options, field: None}
    assert said(as_ada.post("/v1/chat/completions", json=body)) is not None
    assert is_error(as_ada.post("/v1/chat/completions", json={**body, "messages": None}), 400)


TURNS: dict[str, dict[str, Any]] = {
    "a reply as it came": {"refusal": None, "annotations": [], "audio": None, "tool_calls": None},
    "an empty list of calls": {"tool_calls": [], "function_call": None},
    "what it thought": {"reasoning_content": "hm", "reasoning": "hm", "thinking": None},
    "an id and a date": {"id": "msg_1", "created": 5, "type": "message", "status": "completed"},
    "a name": {"name": "x" * 200},
    "citations": {"annotations": [{"type": "url_citation", "url_citation": {"url": "http://x"}}]},
}


@pytest.mark.parametrize("kind", TURNS)
def test_keys_of_a_turn_that_change_nothing_are_taken(
    kind: str, as_ada: httpx2.Client, running: Running
) -> None:
    history = [*MESSAGES, {"role": "assistant", "content": "Pear."}, *MESSAGES]
    plain = said(chat(as_ada, running, messages=history))
    history[1] = {**history[1], **TURNS[kind]}
    assert said(chat(as_ada, running, messages=history)) == plain


def test_parts_of_text_are_one_text(as_ada: httpx2.Client, running: Running) -> None:
    parts = [
        {"type": "text", "text": "Say some", "cache_control": {"type": "ephemeral"}},
        {"type": "input_text", "text": "thing."},
    ]
    plain = said(chat(as_ada, running))
    assert said(chat(as_ada, running, messages=[{"role": "user", "content": parts}])) == plain
    refused = [*MESSAGES, {"role": "assistant", "content": None, "refusal": "No."}, *MESSAGES]
    spoken = [*MESSAGES, {"role": "assistant", "content": "No."}, *MESSAGES]
    assert said(chat(as_ada, running, messages=refused)) == said(chat(as_ada, running, messages=spoken))


def test_a_developer_speaks_as_the_system(as_ada: httpx2.Client, running: Running) -> None:
    def spoken(role: str) -> str:
        return said(chat(as_ada, running, messages=[{"role": role, "content": "Be brief."}, *MESSAGES]))

    assert spoken("developer") == spoken("system")


MEANT: dict[str, tuple[dict[str, Any], str]] = {
    "image": ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "image_url"),
    "sound": ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "input_audio"),
    "file": ({"role": "user", "content": [{"type": "file", "file": {}}]}, "type file"),
    "old call": ({"role": "assistant", "content": "x", "function_call": {"name": "f"}}, "function_call"),
    "spoken": ({"role": "assistant", "content": "x", "audio": {"id": "1"}}, "audio"),
    "begun": ({"role": "assistant", "content": "x", "prefix": True}, "prefix"),
}


@pytest.mark.parametrize("kind", MEANT)
def test_what_cannot_be_read_is_named_in_one_sentence(
    kind: str, as_ada: httpx2.Client, running: Running
) -> None:
    turn, named = MEANT[kind]
    answer = chat(as_ada, running, messages=[*MESSAGES, turn])
    assert is_error(answer, 400)
    error = answer.json()["error"]
    assert named in error["message"] and error["param"].startswith("messages[1]")
    assert "union" not in error["message"] and "text" in error["message"]


def test_many_stop_strings_end_an_answer_before_the_first(as_ada: httpx2.Client, running: Running) -> None:
    whole = said(complete(as_ada, running, max_tokens=12))
    stops = ["never", "nor this", "", "\nclass", "\ndef", "\n#", whole[4:6], "\nif", *map(str, range(12))]
    assert said(complete(as_ada, running, max_tokens=12, stop=stops)) == whole[: whole.index(whole[4:6])]


@pytest.mark.parametrize("option", [{"temperature": 1e-40}, {"top_p": 0}, {"top_p": 1e-300}])
def test_the_smallest_numbers_are_greedy(
    option: dict[str, float], as_ada: httpx2.Client, running: Running
) -> None:
    assert said(complete(as_ada, running, **{"temperature": 1, **option})) == said(complete(as_ada, running))


@pytest.mark.parametrize("kind", ["text", "tokens"])
@pytest.mark.parametrize("length", [3, 140])
def test_an_echo_scores_the_prompt_as_the_model_does(
    kind: str, length: int, as_ada: httpx2.Client, running: Running
) -> None:
    backbone = load_backbone(running.model, device="cpu")
    text = ("abc déf " * 40)[:length]
    ids = backbone.encode_text(text)
    answer = complete(
        as_ada, running, prompt=text if kind == "text" else ids, echo=True, logprobs=2, max_tokens=1
    )
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    scores = choice["logprobs"]
    assert choice["text"].startswith(text) and len(scores["tokens"]) == len(ids) + 1
    with torch.no_grad():
        logprobs = backbone.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    expected = [float(logprobs[i, token]) for i, token in enumerate(ids[1:])]
    assert scores["token_logprobs"][0] is None and scores["top_logprobs"][0] is None
    assert scores["token_logprobs"][1 : len(ids)] == pytest.approx(expected, abs=1e-3)
    best = [float(row.max()) for row in logprobs[:-1]]
    assert [max(top.values()) for top in scores["top_logprobs"][1 : len(ids)]] == pytest.approx(
        best, abs=1e-3
    )


def test_an_echo_of_several_prompts_keeps_their_order(as_ada: httpx2.Client, running: Running) -> None:
    answer = complete(as_ada, running, prompt=["one", "two"], n=2, echo=True, max_tokens=0, logprobs=0)
    texts = [choice["text"] for choice in answer.json()["choices"]]
    assert texts == ["one", "one", "two", "two"]
    assert answer.json()["usage"]["completion_tokens"] == 0
    assert is_error(complete(as_ada, running, max_tokens=0), 400)


def test_an_echo_is_streamed_first(openai_client: openai.OpenAI, running: Running) -> None:
    asked = {"model": running.model, "prompt": "Say", "max_tokens": 3, "temperature": 0, "echo": True}
    whole = openai_client.completions.create(**asked)  # type: ignore[call-overload]
    stream = openai_client.completions.create(**asked, stream=True)  # type: ignore[call-overload]
    assert "".join(part.choices[0].text for part in stream) == whole.choices[0].text
    assert whole.choices[0].text.startswith("Say")
    only = openai_client.completions.create(**{**asked, "max_tokens": 0}, stream=True)  # type: ignore[call-overload]
    assert [(part.choices[0].text, part.choices[0].finish_reason) for part in only] == [("Say", "length")]


def test_a_prompt_that_fills_the_model_is_scored_and_only_it_is_charged(
    tiny_llama: Path, tmp_path: Path
) -> None:
    service, http = small(tiny_llama, tmp_path / "r", tokens_per_minute=MAX_POSITIONS)
    asked = {"model": service.base_names[0], "echo": True, "max_tokens": 0, "logprobs": 0}
    answer = http.post("/v1/completions", json={**asked, "prompt": [5] * (MAX_POSITIONS + 1)})
    assert is_error(answer, 400) and "positions" in answer.text
    answer = http.post("/v1/completions", json={**asked, "prompt": [5] * MAX_POSITIONS})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["choices"][0]["logprobs"]["tokens"]) == MAX_POSITIONS
    service.close()


def test_offsets_go_on_from_an_echo_to_its_answer(as_ada: httpx2.Client, running: Running) -> None:
    answer = complete(as_ada, running, prompt="abc def", echo=True, logprobs=0, n=2, max_tokens=3)
    for choice in answer.json()["choices"]:
        scores = choice["logprobs"]
        starts = ["".join(scores["tokens"][:i]) for i in range(len(scores["tokens"]))]
        assert scores["text_offset"] == [len(start) for start in starts]
        assert len({len(values) for values in scores.values()}) == 1


def test_offsets_of_a_long_answer_take_no_time() -> None:
    scores = [TokenScore(0, "ab", (97, 98), -1.0)] * 32_000
    begun = time.process_time()
    found = text_logprobs(scores)
    assert found is not None and found["text_offset"] == list(range(0, 64_000, 2))
    assert time.process_time() - begun < 2


def test_prompts_are_scored_one_at_a_time(tiny_llama: Path, tmp_path: Path) -> None:
    service, http = small(tiny_llama, tmp_path / "r", max_open_a_key=4)
    own, running, most = service.runner.prompt_scores, [], []

    def scores(request: Request, wanted: Any) -> Any:
        running.append(request)
        most.append(len(running))
        time.sleep(0.05)
        try:
            return own(request, wanted)
        finally:
            running.pop()

    service.runner.prompt_scores = scores  # type: ignore[method-assign]
    asked = {
        "model": service.base_names[0],
        "echo": True,
        "max_tokens": 0,
        "logprobs": 0,
        "prompt": ["a", "b"],
    }
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda _: http.post("/v1/completions", json=asked), range(3)))
    assert [answer.status_code for answer in answers] == [200] * 3 and most == [1] * 6
    service.close()


def test_the_official_client_talks_over_several_turns(openai_client: openai.OpenAI, running: Running) -> None:
    messages: list[Any] = [{"role": "developer", "content": "Be brief."}]
    for question in ("Name a fruit.", "And one more.", "The last."):
        messages.append({"role": "user", "content": question})
        answer = openai_client.chat.completions.create(
            model=running.model,
            messages=messages,
            max_completion_tokens=4,
            temperature=0,
            metadata={"a": "b"},
            store=False,
            user="me",
            parallel_tool_calls=True,
            response_format={"type": "text"},
        )
        messages.append(answer.choices[0].message)
    again = [m if isinstance(m, dict) else m.model_dump() for m in messages]
    assert openai_client.chat.completions.create(
        model=running.model, messages=[*again, {"role": "user", "content": "?"}], max_tokens=2
    ).choices


def test_a_completions_scores_hold_its_end_too(as_ada: httpx2.Client, running: Running) -> None:
    """Evaluation suites leave out the last score, which is that of the one token they had to ask for."""
    drawn = {"n": 8, "max_tokens": 100, "temperature": 1.0, "seed": 1, "logprobs": 0}
    answer = complete(as_ada, running, prompt="Say", **drawn).json()
    scores = [choice["logprobs"] for choice in answer["choices"]]
    assert "stop" in {choice["finish_reason"] for choice in answer["choices"]}
    assert sum(len(s["token_logprobs"]) for s in scores) == answer["usage"]["completion_tokens"]


def test_an_evaluation_suite_scores_through_the_service_as_in_its_own_process(
    running: Running, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    monkeypatch.setenv("OPENAI_API_KEY", running.ada)
    api = LocalCompletionsAPI(
        base_url=f"{running.url}/v1/completions",
        model=running.model,
        tokenizer=str(tiny_llama),
        tokenizer_backend="huggingface",
        batch_size=4,
        max_length=256,
    )
    pairs = [(f"question {i} about", f" answer {i % 3}" * (1 + i % 2)) for i in range(6)]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    own = HFLM(pretrained=str(tiny_llama), device="cpu", dtype="float32", max_length=256, batch_size=1)
    expected, found = own.loglikelihood(requests), api.loglikelihood(requests)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    # The service computes in bfloat16 where the processor has it.
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], rel=2e-3)


FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize(
    "kind", [FORM, {"content-type": "text/plain"}, {"content-type": "multipart/form-data; boundary=x"}]
)
def test_a_body_that_is_no_json_is_415(kind: dict[str, str], as_ada: httpx2.Client) -> None:
    answer = as_ada.post("/v1/chat/completions", content=b'{"model": "x"}', headers=kind)
    assert is_error(answer, 415) and "application/json" in answer.json()["error"]["message"]


ORIGIN = "http://localhost:3000"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


@pytest.fixture
def of_origins(tiny_llama: Path, tmp_path: Path) -> Callable[..., TestClient]:
    return lambda *origins: small(tiny_llama, tmp_path / "registry", allowed_origins=origins)[1]  # type: ignore[arg-type]


def test_pages_of_allowed_origins_may_ask(of_origins: Callable[..., TestClient]) -> None:
    http = of_origins(ORIGIN)
    answer = http.options("/v1/chat/completions", headers={"Origin": ORIGIN, **PREFLIGHT})
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in answer.headers["access-control-allow-headers"]
    models = http.get("/v1/models", headers={"Origin": ORIGIN})
    assert models.status_code == 200 and models.headers["access-control-allow-origin"] == ORIGIN
    unknown = http.get("/v1/models", headers={"Origin": ORIGIN, "Authorization": "Bearer no"})
    assert unknown.status_code == 401 and unknown.headers["access-control-allow-origin"] == ORIGIN
    other = http.options("/v1/chat/completions", headers={"Origin": "http://evil.example", **PREFLIGHT})
    assert other.status_code == 400 and "access-control-allow-origin" not in other.headers


def test_without_allowed_origins_a_preflight_is_refused_and_says_why(
    of_origins: Callable[..., TestClient],
) -> None:
    answer = of_origins().options("/v1/chat/completions", headers={"Origin": ORIGIN, **PREFLIGHT})
    assert is_error(answer, 403) and "allowed_origins" in answer.text
