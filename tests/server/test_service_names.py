"""Names of adapters belong to who used them first, by every way in, and errors do not say what is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from shoal.server.service import Service
from tests.fixtures.service import FREELY, is_error, small

EXAMPLES = "\n".join(json.dumps({"input": f"{i}", "output": f"{i + 1}"}) for i in range(8))


@pytest.fixture(scope="module")
def owners(
    tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory, make_loud: Callable[[int], bytes]
) -> Iterator[tuple[Service, TestClient, dict[str, str]]]:
    """A service, ada's client, and eve's headers; ada has a private adapter and has deleted another."""
    service, http = small(tiny_llama, tmp_path_factory.mktemp("names"), **FREELY)
    for name in ("private", "deleted"):
        sent = {"data": {"name": name}, "files": {"file": make_loud(1)}}
        assert http.post("/v1/adapters/import", **sent).status_code == 201  # type: ignore[arg-type]
    assert http.delete("/v1/adapters/deleted").status_code in (200, 204)
    yield service, http, {"Authorization": f"Bearer {service.keys.create('eve')}"}
    service.close()


WAYS: dict[str, Callable[[str, bytes], dict[str, Any]]] = {
    "import": lambda name, zipped: {
        "url": "/v1/adapters/import",
        "data": {"name": name},
        "files": {"file": zipped},
    },
    "generate": lambda name, _: {"url": "/v1/adapters", "json": {"name": name, "description": "Translate."}},
    "batch": lambda name, _: {
        "url": "/v1/adapters/batch",
        "json": {"adapters": [{"name": name, "description": "Translate."}]},
    },
    "job": lambda name, _: {
        "url": "/v1/jobs",
        "data": {"name": name, "definition": "Write the next number.", "steps": "1"},
        "files": {"file": ("x.jsonl", EXAMPLES)},
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_a_name_that_another_has_or_had_is_refused_in_the_same_words(
    way: str, owners: tuple[Service, TestClient, dict[str, str]], make_loud: Callable[[int], bytes]
) -> None:
    _, http, eve = owners
    said = set()
    for name in ("private", "deleted"):
        answer = http.post(**WAYS[way](name, make_loud(2)), headers=eve)
        assert is_error(answer, 409), answer.text
        said.add(answer.text.replace(name, "NAME"))
    assert len(said) == 1 and "taken" in said.pop()
    assert http.get("/v1/adapters").json()["data"][0]["name"] == "private"


@pytest.mark.parametrize("path", ["", "/download", "/norms"])
def test_what_is_read_of_a_private_name_and_of_none_is_the_same(
    path: str, owners: tuple[Service, TestClient, dict[str, str]]
) -> None:
    _, http, eve = owners
    said = set()
    for name in ("private", "deleted", "never"):
        answers = [http.get(f"/v1/adapters/{name}{path}", headers=eve)]
        if not path:
            answers.append(http.delete(f"/v1/adapters/{name}", headers=eve))
            answers.append(http.patch(f"/v1/adapters/{name}", json={"public": True}, headers=eve))
            answers.append(http.get(f"/v1/models/{name}", headers=eve))
            body = {"model": name, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
            answers.append(http.post("/v1/chat/completions", json=body, headers=eve))
        assert all(is_error(answer, 404) for answer in answers), [a.text for a in answers]
        said.add(tuple(answer.text.replace(name, "NAME") for answer in answers))
    assert len(said) == 1


def test_the_owner_has_a_deleted_name_again(
    owners: tuple[Service, TestClient, dict[str, str]], make_loud: Callable[[int], bytes]
) -> None:
    _, http, _ = owners
    assert http.post(**WAYS["import"]("deleted", make_loud(3))).status_code == 201
    assert http.delete("/v1/adapters/deleted").status_code in (200, 204)
