"""Adapters over HTTP: generated, uploaded, selected, mixed, shared and deleted."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from shoal.adapters.files import FACTS_FILE, load_adapter
from shoal.inference.engine import scheduler
from shoal.inference.engine.records import Request
from shoal.registry.registry import Registry
from tests.fixtures.service import ASK, GREEDY


def test_adapters_by_mix_description_and_auto(running: Any, openai_client: openai.OpenAI, loud: str) -> None:
    def text(model: str, adapter: object = None) -> str | None:
        extra = {} if adapter is None else {"adapter": adapter}
        answer = openai_client.chat.completions.create(model=model, extra_body=extra, **GREEDY)
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


@pytest.fixture
def zipped_without_card(make_loud: Callable[[int], bytes]) -> bytes:
    """A PEFT ZIP as any trainer writes it: no description of a task."""
    packed, file = zipfile.ZipFile(io.BytesIO(make_loud(5))), io.BytesIO()
    with zipfile.ZipFile(file, "w") as plain:
        for name in packed.namelist():
            if not name.endswith(FACTS_FILE):
                plain.writestr(name, packed.read(name))
    return file.getvalue()


def test_a_description_is_answered_as_its_stored_adapter_is(serve: Any, random_hypernetwork: Path) -> None:
    wanted = {"plural": "Write the plural of the given noun.", "sum": "Add the two given numbers."}
    with serve() as running, running.http(running.ada) as http:

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
    running: Any, as_ada: httpx2.Client
) -> None:
    chat = {"model": running.model, **GREEDY}
    described = {**chat, "adapter": {"describe": "Write the plural of the given noun."}}
    base, same = (as_ada.post("/v1/chat/completions", json=asked).json() for asked in (chat, described))
    assert same["choices"] == base["choices"] and same["adapter"]["trained"] is False


def temperatures(running: Any, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The temperature of every request that the engine gets from now on."""
    seen: list[float] = []
    submit = running.service.runner.submit

    def spy(request: Request, **options: Any) -> Any:
        seen.append(request.sampling.temperature)
        return submit(request, **options)

    monkeypatch.setattr(running.service.runner, "submit", spy)
    return seen


def test_an_adapter_made_for_a_task_answers_greedily_by_default(
    running: Any, as_ada: httpx2.Client, loud: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = temperatures(running, monkeypatch)
    described = {"adapter": {"describe": "Write the plural of the given noun."}}
    mixed = {"adapter": {"mix": [{"name": loud}]}}
    for body in (
        {"model": loud},
        {"model": running.model, **described},
        {"model": running.model, **mixed},
        {"model": loud, "temperature": 0.7},
        {"model": running.model},
        {"model": running.model, "adapter": "auto"},
    ):
        as_ada.post("/v1/chat/completions", json={**ASK, **body}).raise_for_status()
    assert seen == [0, 0, 0, 0.7, 1, 1]


def test_an_adapter_without_a_description_keeps_openais_temperature(
    running: Any, as_ada: httpx2.Client, zipped_without_card: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = temperatures(running, monkeypatch)
    sent = {"data": {"name": "plain"}, "files": {"file": ("x.zip", zipped_without_card)}}
    assert as_ada.post("/v1/adapters/import", **sent).status_code == 201
    as_ada.post("/v1/chat/completions", json={**ASK, "model": "plain"}).raise_for_status()
    as_ada.delete("/v1/adapters/plain")
    assert seen == [1]


@pytest.mark.parametrize("adapter", [None, {"mix": [{"name": "loud"}]}])
def test_a_chat_looks_its_adapter_up_once(
    running: Any, as_ada: httpx2.Client, loud: str, adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    get = Registry.get
    monkeypatch.setattr(Registry, "get", lambda *args: seen.append(args[1]) or get(*args))
    body = {**ASK, "model": running.model if adapter else loud, "adapter": adapter}
    as_ada.post("/v1/chat/completions", json=body).raise_for_status()
    assert seen == [loud]


def test_the_numbers_of_a_chat_are_checked_once(
    running: Any, as_ada: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Request] = []
    check = scheduler.check_numbers
    monkeypatch.setattr(scheduler, "check_numbers", lambda *args: seen.append(args[0]) or check(*args))
    as_ada.post("/v1/chat/completions", json={**ASK, "model": running.model}).raise_for_status()
    assert len(seen) == 1


@pytest.mark.parametrize("name", ["loudd", "Loud", "../loud", "loud@1", "a" * 300])
def test_a_mistyped_adapter_is_404(openai_client: openai.OpenAI, loud: str, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        openai_client.chat.completions.create(model=name, **GREEDY)
    assert caught.value.code == "model_not_found" and caught.value.param == "model"


def test_owners_are_apart(running: Any, loud: str, as_ada: httpx2.Client) -> None:
    eve = httpx2.Client(base_url=running.url, headers={"Authorization": f"Bearer {running.eve}"})
    ask = {"model": loud, **GREEDY}
    assert eve.post("/v1/chat/completions", json=ask).status_code == 404
    mix = {"model": running.model, "adapter": {"mix": [{"name": loud}]}, **GREEDY}
    assert eve.post("/v1/chat/completions", json=mix).status_code == 404
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/download"), ("GET", "/norms")):
        assert eve.request(method, f"/v1/adapters/{loud}{path}").status_code == 404
    assert eve.get("/v1/adapters").json()["data"] == []
    assert as_ada.patch(f"/v1/adapters/{loud}", json={"public": True}).json()["public"] is True
    assert eve.post("/v1/chat/completions", json=ask).status_code == 200
    assert eve.delete(f"/v1/adapters/{loud}").status_code == 409
    as_ada.post("/v1/skills", json={"name": "law", "keywords": ["contract"]}).raise_for_status()
    asked = {"text": "Read this contract."}
    assert as_ada.post("/v1/skills/detect", json=asked).json()["skills"] == ["law"]
    assert eve.post("/v1/skills/detect", json=asked).json()["skills"] != ["law"]
    eve.close()


def test_adapters_are_made_listed_fetched_and_deleted(as_ada: httpx2.Client, tmp_path: Path) -> None:
    wanted = [
        {"name": f"made-{i}", "description": f"Write the word number {i} of the sentence."} for i in range(3)
    ]
    made = as_ada.post("/v1/adapters/batch", json={"adapters": wanted})
    assert made.status_code == 201, made.text
    again = as_ada.post("/v1/adapters", json=wanted[0]).json()
    assert (again["name"], again["version"], again["owner"]) == ("made-0", 2, "ada")
    first = as_ada.get("/v1/adapters", params={"limit": 2, "search": "made"}).json()
    rest = as_ada.get("/v1/adapters", params={"after": first["after"], "search": "made"}).json()
    assert [a["name"] for a in first["data"] + rest["data"]] == ["made-0", "made-1", "made-2"]
    answer = as_ada.get("/v1/adapters/made-1/download")
    assert answer.headers["content-disposition"] == 'attachment; filename="made-1.zip"'
    zipfile.ZipFile(io.BytesIO(answer.content)).extractall(tmp_path)
    stored = load_adapter(tmp_path)
    assert stored.card is not None and stored.card.description == wanted[1]["description"]
    assert set(as_ada.get("/v1/adapters/made-1/norms").json()["norms"]) == set(stored.lora.factors)
    for new in wanted:
        assert as_ada.delete(f"/v1/adapters/{new['name']}").json()["deleted"] is True
    assert as_ada.get("/v1/adapters/made-1").status_code == 404


def test_two_services_of_one_registry_know_the_same_adapters(
    start_service: Any, tiny_llama: Path, tmp_path: Path, make_loud: Callable[[int], bytes]
) -> None:
    def start() -> Any:
        return start_service(tiny_llama, tmp_path / "registry")

    with start() as one, start() as two, one.http(one.ada) as first, two.http(one.ada) as second:
        sent = {"data": {"name": "loud"}, "files": {"file": ("x.zip", make_loud(5))}}
        assert first.post("/v1/adapters/import", **sent).status_code == 201
        chats, ask = "/v1/chat/completions", {"model": "loud", **GREEDY}
        base = first.post(chats, json={**ask, "model": one.model}).json()["choices"]
        answers = [http.post(chats, json=ask).json()["choices"] for http in (first, second)]
        assert answers[0] == answers[1] != base
        assert second.delete("/v1/adapters/loud").status_code == 200
        for http in (first, second):  # also where it is still in memory
            assert http.post(chats, json=ask).status_code == 404
            assert http.get("/v1/adapters/loud").status_code == 404


def test_the_guides_route(as_ada: httpx2.Client) -> None:
    question = {
        "prompt": "Make this model excel at code generation and debugging",
        "model_path": "microsoft/DialoGPT-small",
    }
    answer = as_ada.post("/generate-adapter", params=question)
    assert answer.json() == {"success": True, "skills": ["code_generation", "debugging"]}
    for path in ("/etc/passwd", "../..", "evil/model", "file:///etc"):
        refused = as_ada.post("/generate-adapter", params={**question, "model_path": path})
        assert refused.status_code == 400 and "is not among the base models here" in refused.text
