"""`POST /v1/adapters` with more than a sentence: solved examples, inputs without answers, labels."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from shoal.server.adapters import MAX_TRAINING
from shoal.server.client import Client
from shoal.server.schemas import NewAdapter
from shoal.text_to_lora import few_shot
from tests.fixtures.service import ASK, wait_until

PLURAL: dict[str, Any] = {"name": "plural", "description": "Write the plural of the given noun."}
EXAMPLES = [{"input": noun, "output": f"{noun}s"} for noun in ("cat", "dog", "hat", "pen", "cup", "bee")]
REVIEWS = [f"The {thing} was {word}." for thing in ("film", "plot", "cast") for word in ("good", "bad")]


@pytest.fixture
def http(serve: Any, random_hypernetwork: Path) -> Iterator[httpx2.Client]:
    """Ada's client of a service with a hypernetwork."""
    with serve() as running, running.http(running.ada) as http:
        yield http


def refused(answer: httpx2.Response, status: int = 400) -> str:
    assert answer.status_code == status, answer.text
    return str(answer.json()["error"]["message"])


def test_an_adapter_is_refined_on_solved_examples(http: httpx2.Client) -> None:
    plain = http.post("/v1/adapters", json=PLURAL).json()
    refined = http.post("/v1/adapters", json={**PLURAL, "examples": EXAMPLES})
    assert refined.status_code == 201, refined.text
    body = refined.json()
    assert body["version"] == 2 and body["sha256"] != plain["sha256"]
    assert any(note.startswith("Refined on 5 examples") for note in body["card"]["notes"])
    assert body["few_shot"]["gain"]["examples"] == 1 and body["few_shot"]["gain"]["spread"] is None
    assert body["next_examples"]["examples"] == 4 and body["next_examples"]["inputs"] == []
    assert plain["few_shot"] is None and body["shots"] is None
    assert http.post("/v1/chat/completions", json={**ASK, "model": "plural"}).status_code == 200


def test_examples_are_only_checked_where_the_adapter_is_not_to_be_refined(http: httpx2.Client) -> None:
    plain = http.post("/v1/adapters", json=PLURAL).json()
    checked = http.post("/v1/adapters", json={**PLURAL, "examples": EXAMPLES, "refine": False})
    assert checked.status_code == 201 and checked.json()["sha256"] == plain["sha256"]
    few = http.post("/v1/adapters", json={**PLURAL, "examples": EXAMPLES[:3], "refine": False})
    assert "3 different inputs" in refused(few)


def test_the_client_takes_what_python_takes(http: httpx2.Client) -> None:
    pairs = [(example["input"], example["output"]) for example in EXAMPLES]
    with Client(str(http.base_url), http.headers["authorization"].removeprefix("Bearer ")) as client:
        said = client.create(
            "plural", PLURAL["description"], examples=pairs, inputs=["fox", "ox", "goose", "ape"], suggest=2
        )
        assert said.curve[0][0] == 0 and len(said.to_label) == 2
        plain = client.create("plain", PLURAL["description"], examples=pairs, refine=False)
    assert plain.curve == () and plain.more == 0


def test_an_output_may_be_a_list_of_right_ones(http: httpx2.Client) -> None:
    several = [{"input": one["input"], "output": [one["output"], "many"]} for one in EXAMPLES]
    assert http.post("/v1/adapters", json={**PLURAL, "examples": several}).status_code == 201
    empty = http.post("/v1/adapters", json={**PLURAL, "examples": [{"input": "cat", "output": []}] * 4})
    assert refused(empty).startswith("`examples[0].output` ")


def test_an_adapter_is_trained_on_inputs_without_answers(http: httpx2.Client) -> None:
    body = {"name": "reviews", "description": "Say whether the review is positive or negative."}
    trained = http.post("/v1/adapters", json={**body, "inputs": REVIEWS, "labels": ["positive", "negative"]})
    assert trained.status_code == 201, trained.text
    assert any(note.startswith("Calibrated on 6 inputs") for note in trained.json()["card"]["notes"])


def test_fields_have_the_names_that_files_may_use() -> None:
    examples = [{"input": "cat", "outputs": ["cats", "felines"]}, {"input": "dog", "output": "dogs"}]
    inputs = ["one", {"input": "two"}, {"text": "three"}, {"prompt": "four"}]
    new = NewAdapter.model_validate({**PLURAL, "examples": examples, "inputs": inputs})
    assert new.solved == [("cat", ["cats", "felines"]), ("dog", "dogs")]
    assert new.unsolved == ["one", "two", "three", "four"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"inputs": [3]}, "`inputs[0]` is 3; it must be text or an object"),
        ({"inputs": [{"question": "a"}]}, "`inputs[0].input` is missing"),
        ({"inputs": [{"text": ""}]}, "`inputs[0].text` has 0 characters"),
        (
            {"examples": [{"input": "a", "outputs": 3}]},
            "`examples[0].outputs` is 3; it must be text or a list",
        ),
        ({"examples": [{"input": "a"}]}, "`examples[0].output` is missing"),
    ],
)
def test_what_is_no_example_or_input_is_named(http: httpx2.Client, more: Any, said: str) -> None:
    assert refused(http.post("/v1/adapters", json={**PLURAL, **more})).startswith(said)


def test_a_new_adapter_says_what_to_expect_of_it(http: httpx2.Client) -> None:
    body = http.post("/v1/adapters", json=PLURAL).json()
    assert body["trained"] is True and body["nonsense"] is False and isinstance(body["notes"], list)
    assert "confidence" in body


def test_few_or_blank_examples_are_refused_before_any_work(http: httpx2.Client) -> None:
    few = http.post("/v1/adapters", json={**PLURAL, "examples": EXAMPLES[:3] * 2})
    assert refused(few).startswith("3 different inputs in 6 examples are too few")
    blank = http.post("/v1/adapters", json={**PLURAL, "examples": [{"input": "cat", "output": ""}] * 4})
    assert refused(blank).startswith("`examples[0].output` has 0 characters")
    assert refused(http.post("/v1/adapters", json={**PLURAL, "inputs": ["one"]})).startswith("1 different")


def test_a_batch_takes_sentences_alone(http: httpx2.Client) -> None:
    batch = {"adapters": [{**PLURAL, "examples": EXAMPLES}]}
    assert "ask for such an adapter alone" in refused(http.post("/v1/adapters/batch", json=batch))


def test_no_more_are_trained_at_once_than_may(serve: Any, random_hypernetwork: Path) -> None:
    with serve() as running, running.http(running.ada) as http:
        for _ in range(MAX_TRAINING):
            running.service.adapters._training.acquire()
        said = refused(http.post("/v1/adapters", json={**PLURAL, "examples": EXAMPLES}), 503)
        assert f"{MAX_TRAINING} adapters are being trained" in said
        assert http.post("/v1/adapters", json=PLURAL).status_code == 201


def test_stopping_ends_trainings_and_leaves_no_thread(
    serve: Any, random_hypernetwork: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = few_shot.REFINING.model_copy(update={"steps": 5000})  # a minute and more
    monkeypatch.setattr(few_shot.refine, "__kwdefaults__", {"config": long})
    monkeypatch.setattr(few_shot, "MAX_TOKENS", 10**9)
    before = set(threading.enumerate())
    with ThreadPoolExecutor(MAX_TRAINING) as pool:
        with serve() as running:
            http = running.http(running.ada)
            for number in range(MAX_TRAINING):
                body = {**PLURAL, "name": f"plural-{number}", "examples": EXAMPLES}
                pool.submit(http.post, "/v1/adapters", json=body)
            wait_until(lambda: running.service.adapters._training._value == 0)
            stopped = time.monotonic()
        assert time.monotonic() - stopped < 15
    http.close()
    wait_until(lambda: not [t for t in threading.enumerate() if t not in before and not t.daemon])
