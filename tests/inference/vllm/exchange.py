"""A vLLM that answers from a recording, request by request, in order; or records a real one.

The recording, recorded.json, holds for every test what was asked and what vLLM said. What differs between
machines is replaced in both: the directories of model and registry, and contents by their order.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2

_CONTENT, _PASSING = re.compile(r"[0-9a-f]{64}"), re.compile(r"vllm-[a-z0-9_]{8}/")


@dataclass
class Names:
    """What is particular to one run, and what stands for it in the recording."""

    model: str
    registry: str
    contents: list[str] = field(default_factory=list)
    passing: str = ""

    def general(self, text: str) -> str:
        text = text.replace(self.model, "{MODEL}").replace(self.registry, "{REGISTRY}")
        for found in _PASSING.findall(text):
            self.passing = found
            text = text.replace(found, "{PASSING}/")
        for content in dict.fromkeys(_CONTENT.findall(text)):
            if content not in self.contents:
                self.contents.append(content)
            number = self.contents.index(content)
            text = text.replace(f"/{content[:2]}/{content}", f"/{{CONTENT {number}}}")
            text = text.replace(content, f"{{CONTENT {number}}}")
        return text

    def particular(self, text: str) -> str:
        for number, content in enumerate(self.contents):
            text = text.replace(f"/{{CONTENT {number}}}", f"/{content[:2]}/{content}")
            text = text.replace(f"{{CONTENT {number}}}", content)
        text = text.replace("{PASSING}/", self.passing)
        return text.replace("{MODEL}", self.model).replace("{REGISTRY}", self.registry)


class Exchange:
    """A server on a port; `steps` are what is asked and answered, `mistakes` what was asked otherwise."""

    def __init__(self, names: Names, steps: list[dict[str, Any]], live: str | None) -> None:
        self.names, self.steps, self.live = names, steps, live
        self.mistakes: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self._used: set[int] = set()
        self._lock = threading.Lock()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        text = self.names.general(body.decode())
        asked = {"method": method, "path": path, "body": json.loads(text) if text else None}
        with self._lock:
            number = len(self.asked)
            self.asked.append(asked)
        if self.live is not None:
            return self._recorded(asked, body)
        said = self._next(asked)
        if said is None:
            recorded = self.steps[number]["asked"] if number < len(self.steps) else "nothing"
            self.mistakes.append(f"request {number}: {asked}, recorded is {recorded}")
            return 599, "text/plain", b"not as recorded"
        return said["status"], said["type"], self.names.particular(said["body"]).encode()

    def _next(self, asked: dict[str, Any]) -> dict[str, Any] | None:
        """What is answered next; completions that follow one another come in any order."""
        with self._lock:
            for number in (n for n in range(len(self.steps)) if n not in self._used):
                if self.steps[number]["asked"] == asked:
                    self._used.add(number)
                    said: dict[str, Any] = self.steps[number]["said"]
                    return said
                if {self.steps[number]["asked"]["path"], asked["path"]} != {"/v1/completions"}:
                    return None
        return None

    def _recorded(self, asked: dict[str, Any], body: bytes) -> tuple[int, str, bytes]:
        headers = {"Content-Type": "application/json"}
        real = httpx2.request(
            asked["method"], f"{self.live}{asked['path']}", content=body or None, headers=headers, timeout=300
        )
        said = {"status": real.status_code, "type": real.headers.get("content-type", "text/plain")}
        self.steps.append({"asked": asked, "said": {**said, "body": self.names.general(real.text)}})
        return real.status_code, said["type"], real.content


@contextmanager
def served(exchange: Exchange) -> Iterator[str]:
    """The exchange on a port; its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._do(b"")

        def do_POST(self) -> None:
            self._do(self.rfile.read(int(self.headers["content-length"])))

        def _do(self, body: bytes) -> None:
            status, kind, said = exchange.answer(self.command, self.path, body)
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for event in said.split(b"\n\n") if kind.startswith("text/event-stream") else [said]:
                part = event + b"\n\n" if kind.startswith("text/event-stream") else event
                if event:
                    self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")

        def handle(self) -> None:
            with suppress(ConnectionError):  # a client that was closed
                super().handle()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def save_model(directory: Path) -> Path:
    """The tiny Llama of tests/conftest.py with heads of 64."""
    spec = importlib.util.spec_from_file_location("fixtures", Path(__file__).parents[2] / "conftest.py")
    assert spec is not None and spec.loader is not None
    fixtures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fixtures)
    wide = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 128}
    fixtures.FAMILIES["llama"] = {**fixtures.COMMON, **wide}
    return fixtures.save_tiny_model("llama", directory)


if __name__ == "__main__":
    print(save_model(Path(sys.argv[1])))
