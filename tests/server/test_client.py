"""The client against a real service: every call, and every failure as one line."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import ConflictError, NotFoundError, ShoalError, UnavailableError, UsageError
from shoal.server.client import Client, check_url

EXAMPLES = b'{"input": "a", "output": "b"}\n{"input": "c", "output": "d"}\n'
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def client(running: Any) -> Iterator[Client]:
    with Client(running.url, running.ada) as client:
        yield client


def test_adapters_come_and_go(client: Client, running: Any) -> None:
    assert client.base_model() == running.model
    assert "mathematics" in client.detect_skills("Solve equations of mathematics.")
    made = client.create("client-one", "Answer in one word.").adapter
    assert (made.name, made.version, made.public, made.owner) == ("client-one", 1, False, "ada")
    assert made.base == running.model and made.description == "Answer in one word." and made.rank >= 1
    assert client.publish("client-one", True).public and client.adapter("client-one").public
    norms = client.norms("client-one")
    assert norms and all(norm >= 0 for norm in norms.values())
    copy = client.upload("client-two", client.download("client-one"), public=True)
    assert copy.public and client.norms("client-two") == pytest.approx(norms)
    first = client.page(search="client-", limit=1)
    second = client.page(search="client-", after=first.after or "", limit=1)
    assert [a.name for p in (first, second) for a in p.adapters] == ["client-one", "client-two"]
    assert second.after is None
    for name in ("client-one", "client-two"):
        client.delete(name)
    assert client.page(search="client-").adapters == ()


def test_a_new_adapter_says_what_to_expect_of_it(client: Client) -> None:
    made = client.create("client-notes", "Answer in one word.")
    client.delete("client-notes")
    assert (made.trained, made.confidence, made.nonsense) == (False, None, False)
    assert len(made.notes) == 1 and made.notes[0].startswith("This adapter changes nothing")


def test_answers_come_in_pieces(client: Client, running: Any) -> None:
    client.create("client-chat", "Answer in one word.")
    pieces = list(client.chat(running.model, HELLO, max_tokens=30))
    assert len(pieces) > 1 and "".join(pieces)
    assert list(client.chat("client-chat", HELLO, max_tokens=30))
    mix = {"mix": [{"name": "client-chat", "weight": 0.5}]}
    assert list(client.chat(running.model, HELLO, adapter=mix, max_tokens=30))
    client.delete("client-chat")


def test_an_answer_that_is_left_frees_its_place(client: Client, running: Any) -> None:
    answer = client.chat(running.model, HELLO, max_tokens=400)
    next(answer)
    answer.close()
    running.wait_until_idle()


def test_jobs_start_and_end(client: Client) -> None:
    job = client.train("client-job", "Say the next letter.", EXAMPLES, steps=500, rank=4)
    assert job.active and job.adapter == "client-job" and job.steps == 500
    assert job.id in {one.id for one in client.jobs()}
    assert client.cancel(job.id).state == "cancelled"


def test_counts_are_read(client: Client) -> None:
    names = client.monitoring()
    assert names["total_requests"] is not None and "skill_detection_accuracy" in names
    assert "shoal_tokens_total" in client.metrics()


def test_failures_are_one_line(client: Client, running: Any) -> None:
    client.create("client-taken", "Answer in one word.", public=False)
    with Client(running.url, running.eve) as eve, Client(running.url, "sk-wrong") as wrong:
        cases = [
            (lambda: client.adapter("../../etc/passwd"), NotFoundError, "404"),
            (lambda: client.norms("nobody"), NotFoundError, "404"),
            (lambda: list(client.chat("nobody", HELLO)), NotFoundError, "nobody"),
            (lambda: eve.create("client-taken", "Answer."), ConflictError, "409"),
            (lambda: client.create("Not A Name", "Answer."), UsageError, "400"),
            (lambda: client.upload("client-bad", b"no zip"), UsageError, "400"),
            (wrong.base_model, ShoalError, "does not take this key"),
            (lambda: list(wrong.chat(running.model, HELLO)), ShoalError, "401"),
        ]
        for call, kind, said in cases:
            with pytest.raises(kind, match=said) as caught:
                call()
            assert "\n" not in str(caught.value) and "sk-" not in str(caught.value).replace(
                "sk-shoal-...", ""
            )
    client.delete("client-taken")


def test_busy_and_broken_services_say_when_to_come_back(
    tiny_llama: Path, tmp_path: Path, start_service: Any
) -> None:
    service = start_service(tiny_llama, tmp_path / "r", requests_per_minute=2)
    with service as small, Client(small.url, small.ada) as client:
        with pytest.raises(UnavailableError, match=r"429.*try again in \d+ s"):
            for _ in range(10):
                client.base_model()
        for path in (tmp_path / "r").glob("registry.db*"):
            path.unlink()
        with (
            Client(small.url, small.eve) as eve,
            pytest.raises(UnavailableError, match="503.*try again in 5 s"),
        ):
            eve.page()


def test_nobody_answers() -> None:
    with Client("http://127.0.0.1:1") as client, pytest.raises(UnavailableError, match="cannot be reached"):
        client.base_model()


class _Other(http.server.BaseHTTPRequestHandler):
    """Another server than ours: JSON, but of other things; a redirect elsewhere."""

    def do_GET(self) -> None:
        if self.path.startswith("/v1/jobs"):
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:1/")
            self.end_headers()
            return
        body = b"<html>" if self.path.startswith("/v1/models") else b'{"data": [{"id": 3}]}'
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_another_server_is_told_from_ours() -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Other)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with Client(f"http://127.0.0.1:{server.server_port}", "sk-secret") as client:
            for call in (client.base_model, client.page, client.monitoring):
                with pytest.raises(ShoalError, match="no Shoal service"):
                    call()
            with pytest.raises(ShoalError, match="302"):  # the key is not carried elsewhere
                client.jobs()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "file:///etc/passwd", "ftp://x", "http://", "http://me:pw@x", "http://x/?key=1"],
)
def test_addresses_of_no_service(url: str) -> None:
    with pytest.raises(UsageError, match="address of a service"):
        check_url(url)


def test_a_key_of_strange_characters_is_refused_unsent() -> None:
    assert check_url("http://127.0.0.1:8000/") == "http://127.0.0.1:8000"
    with pytest.raises(UsageError, match="copy it again") as caught:
        Client(key="sk-\r\nX: y")
    assert "X: y" not in str(caught.value)
