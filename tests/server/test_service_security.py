"""What has gone wrong in systems like this one, and that it cannot here."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from sqlalchemy import create_engine, make_url
from starlette.testclient import TestClient

from shoal.models.backbone import load_backbone
from shoal.registry.api_keys import ApiKeys
from shoal.registry.registry import Registry
from shoal.server.app import create_app
from shoal.server.json_logs import JsonLines
from shoal.server.middleware import PUBLIC
from shoal.server.service import Service, open_service
from tests.fixtures.service import ASK, FREELY, is_error, small

JSON_TYPE = {"Content-Type": "application/json"}


def routes(app: FastAPI) -> list[tuple[str, str]]:
    table = app.openapi()["paths"]
    found = [(method.upper(), path) for path, methods in table.items() for method in methods]
    assert len(found) > 20
    return [*found, ("GET", "/openapi.json")]


def test_every_route_wants_a_key(app: FastAPI, http: TestClient, service: Service) -> None:
    right = http.headers["Authorization"]
    revoked = service.keys.create("ada")
    service.keys.revoke(revoked.split("-")[2])
    bare = TestClient(app, raise_server_exceptions=False)
    for method, path in routes(app):
        path = path.replace("{name}", "nobody").replace("{identity}", "0")
        for wrong in ("", "Bearer", "Bearer x", right[:-1], right + "x", "Basic YTpi", f"Bearer {revoked}"):
            answer = bare.request(method, path, headers={"Authorization": wrong} if wrong else {})
            if path in PUBLIC:
                assert answer.status_code == 200
            else:
                assert is_error(answer, 401) and answer.headers["www-authenticate"] == "Bearer", (path, wrong)
        answer = http.request(method, path)
        assert answer.status_code in (200, 400, 404), (method, path, answer.text)
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["x-request-id"]


def test_no_route_is_hidden_from_the_schema(app: FastAPI) -> None:
    declared = {path for _, path in routes(app)}
    own = {route.path.replace("{name:path}", "{name}") for route in app.routes if isinstance(route, APIRoute)}
    assert own <= declared


def refused(http: TestClient, service: Service) -> dict[str, tuple[int, Any]]:
    model = service.base_names[0]
    chat = {"model": model, **ASK}
    post = http.post
    return {
        "n": (400, post("/v1/chat/completions", json={**chat, "n": 100})),
        "choices": (400, post("/v1/completions", json={"model": model, "prompt": ["a"] * 5, "n": 2})),
        "max_tokens": (400, post("/v1/chat/completions", json={**chat, "max_tokens": 9})),
        "many tokens": (400, post("/v1/chat/completions", json={**chat, "max_tokens": 2**40})),
        "a long prompt": (400, post("/v1/completions", json={"model": model, "prompt": "x" * 150_000})),
        "a large body": (413, post("/v1/completions", json={"model": model, "prompt": "x" * 2**21})),
        "temperature": (400, post("/v1/chat/completions", json={**chat, "temperature": 3})),
        "NaN": (400, post("/v1/chat/completions", content=b'{"temperature": NaN}', headers=JSON_TYPE)),
        "deep JSON": (400, post("/v1/chat/completions", content=b"[" * 100_000, headers=JSON_TYPE)),
        "top_logprobs": (
            400,
            post("/v1/chat/completions", json={**chat, "logprobs": True, "top_logprobs": 99}),
        ),
        "stops": (400, post("/v1/chat/completions", json={**chat, "stop": ["a"] * 65})),
        "roles": (
            400,
            post("/v1/chat/completions", json={**chat, "messages": [{"role": "root", "content": ""}]}),
        ),
        "no messages": (400, post("/v1/chat/completions", json={**chat, "messages": []})),
        "tools": (400, post("/v1/chat/completions", json={**chat, "tools": [{}]})),
        "remote code": (400, post("/v1/chat/completions", json={**chat, "trust_remote_code": True})),
        "token ids": (400, post("/v1/completions", json={"model": model, "prompt": [10**6]})),
        "a mix": (
            400,
            post("/v1/chat/completions", json={**chat, "adapter": {"mix": [{"name": "a"}] * 9}}),
        ),
        "a weight": (
            400,
            post("/v1/chat/completions", json={**chat, "adapter": {"mix": [{"name": "a", "weight": 1e9}]}}),
        ),
        "a batch": (
            400,
            post("/v1/adapters/batch", json={"adapters": [{"name": "a", "description": "b c d"}] * 65}),
        ),
        "twice": (
            400,
            post("/v1/adapters/batch", json={"adapters": [{"name": "a", "description": "b c d"}] * 2}),
        ),
        "a description": (400, post("/v1/adapters", json={"name": "a", "description": "x" * 5000})),
        "a page": (400, http.get("/v1/adapters", params={"limit": 10**6})),
        "no ZIP": (400, post("/v1/adapters/import", data={"name": "a"}, files={"file": b"PK"})),
        "a method": (405, http.put("/v1/adapters")),
        "a path": (404, http.get("/v1/adapters/%2e%2e%2f%2e%2e%2fetc%2fpasswd")),
        "no length": (400, post("/v1/adapters", content=b"{}", headers={"Content-Length": "x"})),
    }


def test_limits_come_before_work(http: TestClient, service: Service) -> None:
    before = service.runner.state()
    for what, (status, answer) in refused(http, service).items():
        assert is_error(answer, status), (what, answer.status_code, answer.text)
    assert service.runner.state() == before and service.registry.count(None) == 0


def test_no_adapter_takes_the_name_of_the_base_model(tiny_llama: Path, tmp_path: Path) -> None:
    """Else the base model would answer in its place, since its name is looked at first."""
    loaded = load_backbone(str(tiny_llama))
    backbone = replace(loaded, shape=replace(loaded.shape, base_model="gpt2"))  # as its hub id
    service = open_service(Registry(tmp_path / "r"), str(tiny_llama), open=True, backbone=backbone)
    http = TestClient(create_app(service), raise_server_exceptions=False)
    try:
        new = {"name": "gpt2", "description": "Write the plural of the given noun."}
        lines = b'{"input": "a", "output": "b"}'
        answers = {
            "create": http.post("/v1/adapters", json=new),
            "batch": http.post("/v1/adapters/batch", json={"adapters": [{**new, "name": "a"}, new]}),
            "upload": http.post("/v1/adapters/import", data={"name": "gpt2"}, files={"file": b"PK"}),
            "job": http.post("/v1/jobs", data={"name": "gpt2", "definition": "Copy."}, files={"file": lines}),
        }
        for what, answer in answers.items():
            assert is_error(answer, 400) and "is a model's own" in answer.text, (what, answer.text)
        assert service.registry.count(None) == 0 and not service.jobs.page(None)
        assert http.post("/v1/completions", json={"model": "gpt2", "prompt": "a"}).status_code == 200
    finally:
        service.close()


def test_rates_say_when_to_come_back(tiny_llama: Path, tmp_path: Path) -> None:
    service, http = small(tiny_llama, tmp_path / "r", requests_per_minute=5, tokens_per_minute=60)
    eve = service.keys.create("eve")
    try:
        ask = {"model": service.base_names[0], **ASK}
        answers = [http.post("/v1/chat/completions", json=ask) for _ in range(3)]  # about 30 tokens each
        assert [a.status_code for a in answers] == [200, 429, 429]
        assert "tokens a minute" in answers[1].text and 1 <= int(answers[1].headers["retry-after"]) <= 120
        assert is_error(http.post("/v1/chat/completions", json={**ask, "max_tokens": 100}), 400)
        http.get("/v1/models")
        answer = http.get("/v1/models")
        assert is_error(answer, 429) and "requests a minute" in answer.text and answer.headers["retry-after"]
        others = http.get("/v1/models", headers={"Authorization": f"Bearer {eve}"})
        assert others.status_code == 200 and http.get("/health").status_code == 200
    finally:
        service.close()


@pytest.fixture(scope="module")
def on_postgresql(
    tiny_llama: Path, postgresql: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestClient]:
    server = make_url(postgresql)
    engine = create_engine(server.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    database = f"security_{secrets.token_hex(4)}"  # a worker may set this fixture up more than once
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {database}")
    engine.dispose()
    url = server.set(database=database).render_as_string(hide_password=False)
    service, http = small(tiny_llama, tmp_path_factory.mktemp("postgresql") / "r", url)
    yield http
    service.close()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/adapters", {"name": "nul", "description": "Write the \0 plural of the noun."}),
        ("GET", "/v1/adapters?search=%00", None),
        ("GET", "/v1/adapters?after=%00", None),
        ("GET", "/v1/models?after=%00", None),
        ("GET", "/v1/models/%00", None),
        ("GET", "/v1/jobs/%00", None),
        ("POST", "/v1/jobs/%00/cancel", None),
        ("POST", "/v1/skills", {"name": "n\0", "keywords": ["contract"]}),
    ],
)
def test_a_value_that_no_database_keeps_is_the_callers_mistake(
    on_postgresql: TestClient, method: str, path: str, body: Any
) -> None:
    answer = on_postgresql.request(method, path, json=body)
    assert is_error(answer, 404 if path == "/v1/models/%00" else 400), (answer.status_code, answer.text)
    assert "security" not in answer.text and on_postgresql.get("/v1/adapters").json()["data"] == []


def test_logs_hold_no_prompts_and_no_keys(tiny_llama: Path, tmp_path: Path) -> None:
    """`shoal serve` itself, to its end: a JSON object a line, of every request and of nothing it said."""
    registry = Registry(tmp_path / "r")
    key = ApiKeys(registry.database).create("ada")
    registry.close()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [
        sys.executable,
        "-m",
        "shoal.apps.cli.main",
        "serve",
        "--base",
        str(tiny_llama),
        "--port",
        port,
    ]
    command += ["--registry", str(tmp_path / "r")]
    headers = {"Authorization": f"Bearer {key}"}
    secret, said = "tangerine", "Write the plural of the word tangerine."
    ask = {"model": str(tiny_llama), "max_tokens": 2}
    out = subprocess.DEVNULL  # what the command says; its log is on standard error
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((tmp_path / "log").open("wb"))
        process = stack.enter_context(subprocess.Popen(command, stdout=out, stderr=log))
        stack.callback(process.kill)  # a failure waits for nothing
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as http:
            until = time.monotonic() + 300
            while True:
                with contextlib.suppress(httpx2.TransportError):
                    http.get("/health")
                    break
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.1)
            form = {"name": secret, "definition": said}
            example = json.dumps({"input": said, "output": secret}).encode()
            chat = {**ask, "messages": [{"role": "user", "content": said}]}
            answers = [
                http.post("/v1/chat/completions", json=chat),
                http.post("/v1/chat/completions", json={**chat, "adapter": {"describe": said}}),
                http.post("/v1/chat/completions", json={**chat, "tools": [secret]}),
                http.post("/v1/completions", json={**ask, "prompt": said, "stream": True}),
                http.post("/generate-adapter", params={"prompt": said, "model_path": str(tiny_llama)}),
                http.post("/v1/adapters", json={"name": secret, "description": said}),
                http.get("/v1/adapters", params={"search": secret}),
                http.get(f"/v1/adapters/{secret}/norms"),
                http.post("/v1/adapters/import", data={"name": secret}, files={"file": said.encode()}),
                http.post("/v1/skills", json={"name": secret, "keywords": [said]}),
                http.post("/v1/skills/detect", json={"text": said}),
                http.post("/v1/jobs", data={**form, "steps": "1"}, files={"file": example}),
                http.post("/v1/jobs", data={**form, "name": f"{secret}-2"}, files={"file": said.encode()}),
                http.get(f"/{secret}"),
                http.get("/v1/models", headers={"Authorization": f"Bearer {key}{secret}"}),
            ]
            statuses = [answer.status_code for answer in answers]
            while http.get("/v1/jobs").json()["data"][0]["state"] in ("queued", "running"):
                assert time.monotonic() < until
                time.sleep(0.2)
        process.terminate()
        process.wait(60)
    assert statuses == [200, 200, 400, 200, 200, 201, 200, 200, 400, 201, 200, 202, 400, 404, 401]
    text = (tmp_path / "log").read_text()
    assert secret not in text and "sk-shoal" not in text
    written = [json.loads(line) for line in text.splitlines()]
    assert all(set(line) >= {"time", "level", "logger", "message"} for line in written)
    assert {line["logger"] for line in written} >= {"shoal.server.middleware", "uvicorn.error"}
    known = [line for line in written if line.get("route") == "/v1/chat/completions"]
    assert [(line["status"], line["owner"], line["method"]) for line in known[:2]] == [
        (200, "ada", "POST")
    ] * 2
    assert {line["id"] for line in written if "id" in line} >= {a.headers["x-request-id"] for a in answers}


def test_a_failure_is_one_line_of_the_log() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "a %s", ("b\nc",), sys.exc_info())
    line = JsonLines().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "a b\nc" and "two\nlines" in json.loads(line)["traceback"]


def test_without_keys_only_this_machine_is_answered(tiny_llama: Path, tmp_path: Path) -> None:
    service = open_service(Registry(tmp_path / "r"), str(tiny_llama), open=True)
    http = TestClient(create_app(service))
    assert http.get("/v1/models").status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", ""):
        assert is_error(http.get("/v1/models", headers={"Host": host}), 403)
    service.close()


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.one_of(
        st.text(st.characters(codec="utf-8"), max_size=80),
        st.sampled_from(["..", ".", "../x", "/etc", "a/b", "con", "a\x00"]),
    )
)
def test_any_name_is_refused_or_stays_in_the_store(http: TestClient, service: Service, name: str) -> None:
    root = service.registry.root
    before = {p.name for p in root.parent.iterdir()}
    answers = [http.get(f"/v1/adapters/{quote(name, safe='', errors='surrogatepass') or '%20'}")]
    answers.append(
        http.post("/v1/adapters", json={"name": name, "description": "Write the plural of the noun."})
    )
    ask = {"model": name or "x", **ASK}
    answers.append(http.post("/v1/chat/completions", json=ask))
    for answer in answers:
        assert answer.status_code < 500, answer.text
    if answers[1].status_code == 201:
        http.delete(f"/v1/adapters/{name}")
    assert {p.name for p in root.parent.iterdir()} == before
    assert {p.name for p in root.iterdir()} <= {
        "objects",
        "incoming",
        "jobs",
        ".lock",
        "registry.db",
        "registry.db-wal",
        "registry.db-shm",
        "spare",
    }


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_request_of_the_schema_breaks_the_service(tiny_llama: Path, tmp_path: Path, mode: str) -> None:
    """More than 1,000 cases over every route, of requests that the schema allows and that it does not.

    A service of its own: schemathesis ends the application with the test, and nothing answers after that.
    """
    service, http = small(tiny_llama, tmp_path / "registry", max_tokens=8, max_adapters=50, **FREELY)
    app: Any = http.app
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=dict(http.headers))
    tried, left_out = 0, []
    for found in schema.get_all_operations():
        operation = found.ok()
        cases = operation.as_strategy(generation_mode=GenerationMode(mode))

        @settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck), database=None)
        @given(case=cases)
        def check(case: Any) -> None:
            nonlocal tried
            tried += 1
            answer = case.call(headers={"Authorization": http.headers["Authorization"]})
            text = answer.content.decode("utf-8", "replace")  # a download is a ZIP
            busy = (
                answer.status_code == 503
                and "retry-after" in answer.headers
                and re.search(r"the limit is|requests wait|jobs wait", text)
            )
            assert answer.status_code < 500 or busy, (case, text)
            assert "Traceback" not in text

        try:
            check()
        except Unsatisfiable:  # nothing is wrong to send where nothing is read
            left_out.append(operation.label)
    print(f"{mode}: {tried} cases; left out: {left_out}")
    read_nothing = {"GET /", "GET /docs", "GET /docs/start.js", "GET /health", "GET /ready"}
    assert tried >= 1000 and set(left_out) <= read_nothing
    assert {p.name for p in tmp_path.iterdir()} == {"registry"}
    service.runner.ready()  # it was open to the end
