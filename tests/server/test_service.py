"""The service on a real port: the official client works unchanged, owners are apart, and places are freed."""

from __future__ import annotations

import io
import json
import socket
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import sqlalchemy
import torch
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from shoal.adapters.files import load_adapter
from shoal.config import TextToLoRAConfig
from shoal.models.backbone import pick_device, pick_dtype
from shoal.models.shapes import load_shape
from shoal.registry.registry import Registry
from shoal.server.app import create_app
from shoal.server.service import open_service
from shoal.text_to_lora.checkpoint import HypernetworkCheckpoint, save_hypernetwork
from shoal.text_to_lora.encoders.sentence import DEFAULT_ENCODER, TaskEncoder
from shoal.text_to_lora.shipped import new_hypernetwork

ASK: Any = [{"role": "user", "content": "Say something."}]
GREEDY: dict[str, Any] = {"messages": ASK, "max_tokens": 8, "temperature": 0}


@pytest.fixture
def client(running: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key=running.ada, max_retries=0) as client:
        yield client


@pytest.fixture
def http(running: Any) -> Iterator[httpx2.Client]:
    with owner(running, running.ada) as http:
        yield http


@pytest.fixture(scope="session")
def zipped(make_loud: Callable[[int], bytes]) -> bytes:
    return make_loud(5)


@pytest.fixture
def loud(http: httpx2.Client, zipped: bytes) -> Iterator[str]:
    """That adapter, private to ada, for one test."""
    answer = http.post("/v1/adapters/import", data={"name": "loud"}, files={"file": ("loud.zip", zipped)})
    assert answer.status_code == 201, answer.text
    yield "loud"
    http.delete("/v1/adapters/loud")


def owner(running: Any, key: str) -> httpx2.Client:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.Client(base_url=running.url, headers=headers, timeout=60)


def wait_until_idle(running: Any) -> None:
    until = time.monotonic() + 20
    while running.service.runner.state().running or running.service.runner.state().waiting:
        assert time.monotonic() < until, "places are not freed"
        time.sleep(0.01)


def test_models_have_parents(running: Any, client: openai.OpenAI, loud: str) -> None:
    models = {model.id: model for model in client.models.list()}
    assert set(models) == {running.model, loud}
    assert models[loud].parent == running.model and models[running.model].parent is None  # type: ignore[attr-defined]
    assert client.models.retrieve(loud).owned_by == "ada"
    assert client.models.retrieve(running.model).owned_by == "shoal"


def test_chats_stream_what_they_answer_whole(running: Any, client: openai.OpenAI, loud: str) -> None:
    answers = {}
    for model in (running.model, loud):
        whole = client.chat.completions.create(model=model, **GREEDY)
        chunks = list(
            client.chat.completions.create(
                model=model, stream=True, stream_options={"include_usage": True}, **GREEDY
            )
        )
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        answers[model] = whole.choices[0].message.content
        assert text == answers[model] and whole.choices[0].finish_reason == "length"
        assert chunks[0].choices[0].delta.role == "assistant" and not chunks[-1].choices
        assert chunks[-1].usage == whole.usage and whole.usage is not None
        assert whole.usage.completion_tokens == 8 and whole.model == model
        assert {c.id for c in chunks} == {chunks[0].id}
    assert answers[running.model] != answers[loud]


def test_completions_seeds_choices_and_scores(running: Any, client: openai.OpenAI) -> None:
    options: dict[str, Any] = {
        "model": running.model,
        "prompt": ["one", "two"],
        "max_tokens": 5,
        "n": 2,
        "seed": 7,
    }
    first, second = (client.completions.create(logprobs=2, **options) for _ in range(2))
    assert [c.text for c in first.choices] == [c.text for c in second.choices]
    assert [c.index for c in first.choices] == [0, 1, 2, 3]
    scores = first.choices[0].logprobs
    assert scores is not None and scores.token_logprobs is not None and len(scores.token_logprobs) == 5
    assert all(len(top) <= 2 for top in scores.top_logprobs or ())
    streamed = list(client.completions.create(stream=True, **options))
    for index, choice in enumerate(first.choices):
        pieces = [c.choices[0].text for c in streamed if c.choices and c.choices[0].index == index]
        assert "".join(pieces) == choice.text
    ids = client.completions.create(model=running.model, prompt=[1, 2, 3], max_tokens=2)
    assert ids.usage is not None and ids.usage.prompt_tokens == 3
    chat = client.chat.completions.create(model=running.model, logprobs=True, top_logprobs=3, **GREEDY)
    assert chat.choices[0].logprobs is not None and chat.choices[0].logprobs.content is not None
    assert [len(t.top_logprobs) for t in chat.choices[0].logprobs.content] == [3] * 8


def test_stop_strings_end_an_answer(running: Any, client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=running.model, **GREEDY).choices[0].message.content or ""
    stop = whole[3:5]
    cut = client.chat.completions.create(model=running.model, stop=stop, **GREEDY).choices[0]
    assert cut.message.content == whole[: whole.index(stop)] and cut.finish_reason == "stop"


def test_adapters_by_mix_description_and_auto(running: Any, client: openai.OpenAI, loud: str) -> None:
    def text(model: str, adapter: object = None) -> str | None:
        extra = {} if adapter is None else {"adapter": adapter}
        answer = client.chat.completions.create(model=model, extra_body=extra, **GREEDY)
        return answer.choices[0].message.content

    base, adapted = text(running.model), text(loud)
    assert text(running.model, {"mix": [{"name": loud, "weight": 1.0}]}) == adapted
    assert text(running.model, {"mix": [{"name": loud, "weight": 0.0}]}) == base
    halves = [{"name": loud, "weight": 0.5}, {"name": loud, "weight": 0.5}]
    assert text(running.model, {"mix": halves}) == adapted
    assert text(running.model, "auto") == base  # no experts
    for adapter in (
        {"mix": [{"name": "nobody"}]},
        {},
        {"describe": "x y", "mix": [{"name": loud}]},
        "manual",
    ):
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)):
            text(running.model, adapter)
    with pytest.raises(openai.BadRequestError, match="`adapter` cannot name another"):
        text(loud, {"mix": [{"name": loud}]})


def install_hypernetwork(model: Path, shipped: Path) -> None:
    """A checkpoint for a tiny model, with random weights in its heads too: every description is heard."""
    shape = load_shape(str(model))
    sizes = TextToLoRAConfig(adapter_rank=2, target_modules=("q_proj", "v_proj"), num_layers_to_adapt=None)
    network = new_hypernetwork(shape, sizes, TaskEncoder().dim)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    checkpoint = HypernetworkCheckpoint(network.eval(), shape.base_model, DEFAULT_ENCODER, True, {})
    save_hypernetwork(checkpoint, shipped / model.name.lower())


def test_a_description_is_answered_as_its_stored_adapter_is(
    serve: Any, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.text_to_lora.shipped.SHIPPED", tmp_path / "shipped")
    install_hypernetwork(tiny_llama, tmp_path / "shipped")
    wanted = {"plural": "Write the plural of the given noun.", "sum": "Add the two given numbers."}
    with serve() as running, owner(running, running.ada) as http:

        def answer(model: str, **more: Any) -> dict[str, Any]:
            asked = http.post("/v1/chat/completions", json={"model": model, **GREEDY, **more})
            assert asked.status_code == 200, asked.text
            return asked.json()

        base = answer(running.model)
        texts = {base["choices"][0]["message"]["content"]}
        assert "adapter" not in base
        for name, description in wanted.items():
            described = answer(running.model, adapter={"describe": description})
            facts = described["adapter"]
            assert facts["description"] == description and facts["trained"] is True
            new = {"name": name, "description": description}
            assert http.post("/v1/adapters", json=new).status_code == 201
            named = answer(name)
            assert named["choices"] == described["choices"]
            assert named["adapter"] == {"name": name, "version": 1}
            texts.add(described["choices"][0]["message"]["content"])
        assert len(texts) == 3  # the base's, and one a description


def test_without_a_hypernetwork_a_description_changes_nothing_and_says_so(
    running: Any, http: httpx2.Client
) -> None:
    chat = {"model": running.model, **GREEDY}
    described = {**chat, "adapter": {"describe": "Write the plural of the given noun."}}
    base, same = (http.post("/v1/chat/completions", json=asked).json() for asked in (chat, described))
    assert same["choices"] == base["choices"] and same["adapter"]["trained"] is False


@pytest.mark.parametrize("name", ["loudd", "Loud", "../loud", "loud@1", "a" * 300])
def test_a_mistyped_adapter_is_404(client: openai.OpenAI, loud: str, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model=name, **GREEDY)
    assert caught.value.code == "model_not_found" and caught.value.param == "model"


def test_owners_are_apart(running: Any, loud: str, http: httpx2.Client) -> None:
    eve = httpx2.Client(base_url=running.url, headers={"Authorization": f"Bearer {running.eve}"})
    ask = {"model": loud, **GREEDY}
    assert eve.post("/v1/chat/completions", json=ask).status_code == 404
    mix = {"model": running.model, "adapter": {"mix": [{"name": loud}]}, **GREEDY}
    assert eve.post("/v1/chat/completions", json=mix).status_code == 404
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/download"), ("GET", "/norms")):
        assert eve.request(method, f"/v1/adapters/{loud}{path}").status_code == 404
    assert eve.get("/v1/adapters").json()["data"] == []
    assert http.patch(f"/v1/adapters/{loud}", json={"public": True}).json()["public"] is True
    assert eve.post("/v1/chat/completions", json=ask).status_code == 200
    assert eve.delete(f"/v1/adapters/{loud}").status_code == 409
    http.post("/v1/skills", json={"name": "law", "keywords": ["contract"]}).raise_for_status()
    asked = {"text": "Read this contract."}
    assert http.post("/v1/skills/detect", json=asked).json()["skills"] == ["law"]
    assert eve.post("/v1/skills/detect", json=asked).json()["skills"] != ["law"]
    eve.close()


def test_adapters_are_made_listed_fetched_and_deleted(http: httpx2.Client, tmp_path: Path) -> None:
    wanted = [
        {"name": f"made-{i}", "description": f"Write the word number {i} of the sentence."} for i in range(3)
    ]
    made = http.post("/v1/adapters/batch", json={"adapters": wanted})
    assert made.status_code == 201, made.text
    again = http.post("/v1/adapters", json=wanted[0]).json()
    assert (again["name"], again["version"], again["owner"]) == ("made-0", 2, "ada")
    first = http.get("/v1/adapters", params={"limit": 2, "search": "made"}).json()
    rest = http.get("/v1/adapters", params={"after": first["after"], "search": "made"}).json()
    assert [a["name"] for a in first["data"] + rest["data"]] == ["made-0", "made-1", "made-2"]
    answer = http.get("/v1/adapters/made-1/download")
    assert answer.headers["content-disposition"] == 'attachment; filename="made-1.zip"'
    zipfile.ZipFile(io.BytesIO(answer.content)).extractall(tmp_path)
    stored = load_adapter(tmp_path)
    assert stored.card is not None and stored.card.description == wanted[1]["description"]
    assert set(http.get("/v1/adapters/made-1/norms").json()["norms"]) == set(stored.lora.factors)
    for new in wanted:
        assert http.delete(f"/v1/adapters/{new['name']}").json()["deleted"] is True
    assert http.get("/v1/adapters/made-1").status_code == 404


def test_two_services_of_one_registry_know_the_same_adapters(
    start_service: Any, tiny_llama: Path, tmp_path: Path, zipped: bytes
) -> None:
    def start() -> Any:
        return start_service(tiny_llama, tmp_path / "registry")

    with start() as one, start() as two, owner(one, one.ada) as first, owner(two, one.ada) as second:
        sent = {"data": {"name": "loud"}, "files": {"file": ("x.zip", zipped)}}
        assert first.post("/v1/adapters/import", **sent).status_code == 201
        chats, ask = "/v1/chat/completions", {"model": "loud", **GREEDY}
        base = first.post(chats, json={**ask, "model": one.model}).json()["choices"]
        answers = [http.post(chats, json=ask).json()["choices"] for http in (first, second)]
        assert answers[0] == answers[1] != base
        assert second.delete("/v1/adapters/loud").status_code == 200
        for http in (first, second):  # also where it is still in memory
            assert http.post(chats, json=ask).status_code == 404
            assert http.get("/v1/adapters/loud").status_code == 404


def test_a_postgresql_that_is_lost_is_503_until_it_is_back(
    postgresql: str, tiny_llama: Path, tmp_path: Path
) -> None:
    url = sqlalchemy.make_url(postgresql).set(drivername="postgresql+psycopg")
    operator = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'lost'"
    with operator.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE lost")
        registry = Registry(tmp_path / "r", postgresql.replace("/postgres?", "/lost?"))
        service = open_service(registry, str(tiny_llama))
        headers = {"Authorization": f"Bearer {service.keys.create('ada')}"}
        http = TestClient(create_app(service), headers=headers, raise_server_exceptions=False)
        assert http.get("/v1/adapters").status_code == http.get("/ready").status_code == 200
        connection.exec_driver_sql("ALTER DATABASE lost ALLOW_CONNECTIONS false")
        connection.exec_driver_sql(end)
        for path in ("/v1/adapters", "/ready"):
            answer = http.get(path)
            assert answer.status_code == 503 and answer.headers["retry-after"] == "5", answer.text
            assert set(answer.json()) == {"error"}
        assert http.get("/health").status_code == 200
        connection.exec_driver_sql("ALTER DATABASE lost ALLOW_CONNECTIONS true")
        assert http.get("/v1/adapters").status_code == http.get("/ready").status_code == 200
        service.close()
    operator.dispose()


def test_the_guides_route(http: httpx2.Client) -> None:
    question = {
        "prompt": "Make this model excel at code generation and debugging",
        "model_path": "microsoft/DialoGPT-small",
    }
    answer = http.post("/generate-adapter", params=question)
    assert answer.json() == {"success": True, "skills": ["code_generation", "debugging"]}
    for path in ("/etc/passwd", "../..", "evil/model", "file:///etc"):
        refused = http.post("/generate-adapter", params={**question, "model_path": path})
        assert refused.status_code == 400 and "is not among the base models here" in refused.text


def test_a_job_trains_an_adapter(running: Any, http: httpx2.Client) -> None:
    lines = "\n".join(json.dumps({"input": f"{i}", "output": f"{i + 1}"}) for i in range(40))
    form = {"name": "next", "definition": "Write the next number.", "steps": "2", "rank": "2"}
    job = http.post("/v1/jobs", data=form, files={"file": ("x.jsonl", lines)}).json()
    assert job["state"] == "queued", job
    waiting = http.post("/v1/jobs", data={**form, "name": "other"}, files={"file": ("x.jsonl", lines)}).json()
    settings = running.service.registry.root / "jobs" / waiting["id"] / "settings.yaml"
    assert json.loads(settings.read_text())["test_size"] == 0  # all that was uploaded is trained on
    cancelled = http.post(f"/v1/jobs/{waiting['id']}/cancel").json()
    assert cancelled["state"] == "cancelled"
    assert http.post(f"/v1/jobs/{waiting['id']}/cancel").status_code == 409
    until = time.monotonic() + 120
    while (job := http.get(f"/v1/jobs/{job['id']}").json())["state"] in ("queued", "running"):
        assert time.monotonic() < until
        time.sleep(0.2)
    assert (job["state"], job["step"], job["steps"]) == ("succeeded", 2, 2), job["error"]
    assert http.get("/v1/adapters/next").json()["card"]["generator"] == "lora training"
    assert http.get("/v1/adapters/other").status_code == 404
    http.delete("/v1/adapters/next")
    eve = {"Authorization": f"Bearer {running.eve}"}
    assert http.get(f"/v1/jobs/{job['id']}", headers=eve).status_code == 404
    for name, content in (("../x", lines), ("x", "no json"), ("x", '{"input": "a"}'), ("x", "")):
        bad = http.post("/v1/jobs", data={**form, "name": name}, files={"file": ("x.jsonl", content)})
        assert bad.status_code == 400, bad.text
    assert not list((running.service.registry.root / "jobs").iterdir())


def test_a_running_job_is_cancelled(running: Any, http: httpx2.Client) -> None:
    lines = "\n".join(json.dumps({"input": f"{i}", "output": f"{i + 1}"}) for i in range(40))
    form = {"name": "long", "definition": "Write the next number.", "steps": "2000"}
    job = http.post("/v1/jobs", data=form, files={"file": ("x.jsonl", lines)}).json()
    until = time.monotonic() + 60
    while http.get(f"/v1/jobs/{job['id']}").json()["step"] < 1:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert http.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelled"
    while list((running.service.registry.root / "jobs").iterdir()):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert http.get("/v1/adapters/long").status_code == 404


def samples(http: httpx2.Client) -> dict[tuple[str, ...], float]:
    """(name, value of each label ...) -> number, of all that is told; but not what asking for it counts."""
    families = text_string_to_metric_families(http.get("/metrics").text)
    found = {(one.name, *one.labels.values()): one.value for f in families for one in f.samples}
    return {key: value for key, value in found.items() if "/metrics" not in key}


def counted(http: httpx2.Client, before: Mapping[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
    """What was added since, of what only counts: neither seconds nor memory."""
    changes = {key: value - before.get(key, 0) for key, value in samples(http).items()}
    counts = ("_total", "_count", "_rows_sum")
    own = {k: v for k, v in changes.items() if k[0].startswith("shoal_") and k[0].endswith(counts)}
    return {key: value for key, value in own.items() if value}


def wait_until_counted(
    http: httpx2.Client,
    before: Mapping[tuple[str, ...], float],
    wanted: Mapping[tuple[str, ...], float],
) -> None:
    """An answer is there a moment before it is counted."""
    until = time.monotonic() + 20
    while counted(http, before) != wanted and time.monotonic() < until:
        time.sleep(0.05)
    assert counted(http, before) == wanted


def test_every_metric_counts_what_it_says(serve: Any, make_loud: Callable[[int], bytes]) -> None:
    chats, adapters = "/v1/chat/completions", "/v1/adapters"
    room = 2_000 * pick_dtype(pick_device()).itemsize  # for one adapter, of 1,344 numbers
    with serve(cache_bytes=room) as running, owner(running, running.ada) as http:
        for name, seed in (("loud", 5), ("other", 6)):
            sent = {"data": {"name": name}, "files": {"file": ("x.zip", make_loud(seed))}}
            assert http.post("/v1/adapters/import", **sent).status_code == 201
        of_a_chat = {
            ("shoal_requests_total", chats, "200"): 1,
            ("shoal_request_seconds_count", chats): 1,
            ("shoal_generations_total", "length"): 1,
            ("shoal_queue_seconds_count",): 1,
            ("shoal_first_token_seconds_count",): 1,
            ("shoal_token_gap_seconds_count",): 7,  # between 8 tokens
            ("shoal_tokens_total", "completion"): 8,
            ("shoal_batch_rows_count",): 7,  # steps: the first token comes from reading the prompt
            ("shoal_batch_rows_sum",): 7,  # rows in them
        }
        miss, hit = ("shoal_adapter_cache_misses_total",), ("shoal_adapter_cache_hits_total",)
        evicted = ("shoal_adapter_cache_evictions_total",)
        for model, cache in (("loud", {miss: 1}), ("loud", {hit: 1}), ("other", {miss: 1, evicted: 1})):
            before = samples(http)
            answer = http.post(chats, json={"model": model, **GREEDY})
            prompt = answer.json()["usage"]["prompt_tokens"]
            wait_until_counted(http, before, {**of_a_chat, **cache, ("shoal_tokens_total", "prompt"): prompt})
            assert samples(http)["shoal_cached_adapters",] == 1
        assert 0 < samples(http)["shoal_cached_adapter_bytes",] <= room

        before = samples(http)
        new = {"name": "made", "description": "Write the plural of the given noun."}
        assert http.post(adapters, json=new).status_code == 201
        made = {("shoal_requests_total", adapters, "201"): 1, ("shoal_request_seconds_count", adapters): 1}
        wait_until_counted(http, before, {**made, ("shoal_adapter_generation_seconds_count",): 1})

        before = samples(http)
        assert http.post(chats, json={"model": "nobody", **GREEDY}).status_code == 404
        refused = {("shoal_requests_total", chats, "404"): 1, ("shoal_request_seconds_count", chats): 1}
        wait_until_counted(http, before, {**refused, ("shoal_errors_total", "404"): 1})


def test_the_guides_names_count_too(serve: Any) -> None:
    with serve() as running, owner(running, running.ada) as http:
        assert http.post("/v1/chat/completions", json={"model": running.model, **GREEDY}).status_code == 200
        assert http.post("/v1/chat/completions", json={"model": "nobody", **GREEDY}).status_code == 404
        until = time.monotonic() + 20
        while running.service.monitoring.usage().total_requests < 2:
            assert time.monotonic() < until
            time.sleep(0.01)
        usage = http.get("/v1/monitoring").json()
        assert (usage["total_requests"], usage["successful_requests"]) == (2, 1)
        assert usage["avg_response_time"] > 0 and usage["avg_memory_usage"] > 2**20
        assert 0.8 < usage["skill_detection_accuracy"] < 1
        shown = samples(http)
        assert {name for name in usage if usage[name] is not None} <= {key[0] for key in shown}
        assert shown["successful_requests",] == shown["total_requests",] - 1
        assert shown["shoal_memory_bytes",] > 2**20


def test_a_client_that_goes_away_frees_its_place(running: Any) -> None:
    for stream in (False, True):
        body = json.dumps(
            {"model": running.model, "messages": ASK, "max_tokens": 400, "stream": stream, "n": 8}
        )
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {running.ada}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", running.port)) as connection:
            connection.sendall((head + body).encode())
            until = time.monotonic() + 20
            while not running.service.runner.state().running:
                assert time.monotonic() < until
                time.sleep(0.001)
        wait_until_idle(running)
    outcomes = running.service.monitoring.outcomes.labels("cancelled")
    assert outcomes._value.get() >= 2
