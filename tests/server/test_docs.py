"""The pages for people: where one is, and the API's documentation, without a key and without another site."""

from __future__ import annotations

import re

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient


@pytest.fixture
def bare(app: FastAPI) -> TestClient:
    """A client without a key."""
    return TestClient(app, raise_server_exceptions=False)


def test_the_root_says_where_one_is(bare: TestClient) -> None:
    about = bare.get("/").json()
    assert about["service"] == "shoal" and about["links"]["docs"] == "/docs"
    page = bare.get("/", headers={"Accept": "text/html,*/*"})
    assert page.headers["content-type"].startswith("text/html")
    assert all(f'href="{path}"' in page.text for path in about["links"].values())


def test_every_link_of_the_root_is_a_route(bare: TestClient, app: FastAPI) -> None:
    paths = {*app.openapi()["paths"], "/openapi.json"}
    assert set(bare.get("/").json()["links"].values()) <= paths


def test_the_documentation_loads_from_this_service_alone(bare: TestClient) -> None:
    page = bare.get("/docs")
    assert page.status_code == 200 and "http" not in page.text
    for path in re.findall(r'(?:src|href)="(/[^"]+)"', page.text):
        assert bare.get(path).status_code == 200, path
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "http" not in policy


def test_the_schema_needs_no_key_and_data_does(bare: TestClient) -> None:
    assert bare.get("/openapi.json").json()["info"]["title"] == "Shoal"
    assert bare.get("/v1/models").status_code == bare.get("/metrics").status_code == 401


@pytest.mark.parametrize("path", ["/docs/static/../app.py", "/docs/static/%2e%2e/__init__.py", "/docs/x"])
def test_nothing_beside_the_documentations_files_is_served(bare: TestClient, path: str) -> None:
    assert bare.get(path).status_code in (401, 404)


def test_the_schema_says_that_adapters_answer_greedily(app: FastAPI) -> None:
    fields = app.openapi()["components"]["schemas"]["ChatRequest"]["properties"]
    assert "0 for an adapter that was made for a task" in fields["temperature"]["description"]
