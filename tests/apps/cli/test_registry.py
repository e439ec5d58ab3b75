"""`shoal adapters` and `shoal keys`; the hub is a local server that speaks its protocol, not the real one."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from shoal.adapters.card import AdapterCard
from shoal.adapters.files import load_adapter, save_adapter
from shoal.adapters.lora import LoRA
from shoal.apps.cli import main as cli
from shoal.models.shapes import load_shape
from shoal.registry.api_keys import ApiKeys
from shoal.registry.registry import Registry

Shoal = Callable[..., str]
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def directory(tiny_llama: Path, tmp_path: Path) -> Path:
    shape = load_shape(str(tiny_llama))
    lora = LoRA.identity(shape.select(("q_proj",), None), 4, 8.0, generator=torch.Generator().manual_seed(0))
    card = AdapterCard(generator="test", trained=True, description="Plurals.")
    save_adapter(tmp_path / "plural", lora, shape=shape, card=card)
    return tmp_path / "plural"


@pytest.fixture
def shoal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shoal:
    """Runs a command and returns what it printed: results, or where a code is expected, the error."""
    monkeypatch.setenv("SHOAL_REGISTRY", str(tmp_path / "registry"))

    def run(*arguments: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["shoal", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert ended.value.code == code, said.err
        return said.err if code else said.out

    return run


COMMANDS_OF_LINES = """
import contextlib, io, json, sys
from shoal.apps.cli.main import main
for line in sys.stdin:
    sys.argv, out, err = ["shoal", *json.loads(line)], io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
        main()
    print(json.dumps(out.getvalue() or err.getvalue().splitlines()[-1]), flush=True)
"""


def test_an_adapter_goes_in_and_comes_out(
    shoal: Shoal, directory: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    kept = json.loads(shoal("adapters", "import", "plural", directory, "--base", tiny_llama, "--json"))
    assert (kept["version"], kept["owner"], kept["description"]) == (1, "operator", "Plurals.")
    assert shoal("adapters", "list").startswith("plural ")
    assert "sha256:      " + kept["sha256"] in shoal("adapters", "show", "plural")
    shoal("adapters", "export", "plural", "--out", tmp_path / "out")
    assert load_adapter(tmp_path / "out").lora == load_adapter(directory).lora
    shoal("adapters", "export", "plural", "--out", tmp_path / "out.zip")
    assert "adapter_config.json" in zipfile.ZipFile(tmp_path / "out.zip").namelist()
    again = shoal("adapters", "import", "plural", tmp_path / "out.zip", "--base", tiny_llama)
    assert again == "plural kept as version 2\n"
    shoal("adapters", "rm", "plural")
    assert shoal("adapters", "list") == "no adapters\n"
    missing = shoal("adapters", "show", "plural", code=2)
    assert missing == "error: there is no adapter 'plural'; list those that there are\n"


def test_keys_are_shown_once_and_kept_hashed(shoal: Shoal, tmp_path: Path) -> None:
    key = shoal("keys", "create", "ada").strip()
    identity, secret = key.split("-", 3)[2:]
    registry = Registry(tmp_path / "registry")
    keys = ApiKeys(registry.database)
    assert keys.owner_of(key) == "ada"
    for wrong in (
        key[:-1],
        key[:-1] + ("A" if key[-1] != "A" else "B"),
        "",
        "sk-shoal",
        "\ud800",
        key + "\n",
    ):
        assert keys.owner_of(wrong) is None
    assert all(
        secret.encode() not in path.read_bytes() for path in (tmp_path / "registry").glob("registry.db*")
    )
    assert shoal("keys", "list").startswith(identity)
    shoal("keys", "revoke", identity)
    assert keys.owner_of(key) is None
    assert "no valid key" in shoal("keys", "revoke", identity, code=2)
    assert "is no owner's name" in shoal("keys", "create", "../x", code=2)
    registry.close()


class Hub(BaseHTTPRequestHandler):
    """What the hub's client asks for to create, fill, look at and fetch one repository."""

    repositories: dict[str, dict[str, bytes]]
    commit = "a" * 40

    @property
    def endpoint(self) -> str:
        return f"http://{self.headers['Host']}"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path.split("?")[0].split("/")
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.repositories.setdefault(name, {})
            self._answer({"url": f"{self.endpoint}/{name}", "name": name, "id": name})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "preupload" in parts:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif "commit" in parts:
            repository = self.repositories["/".join(parts[3:5])]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    repository[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = "/".join(parts[3:5])
            facts = {"commitUrl": f"{self.endpoint}/{address}/commit/{self.commit}", "commitOid": self.commit}
            self._answer({**facts, "pullRequestUrl": None, "hookOutput": "", "success": True})
        else:
            self._answer({"error": self.path}, 404)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        parts = path.strip("/").split("/")
        if path.startswith("/api/models/") and "/".join(parts[2:4]) in self.repositories:
            files = self.repositories["/".join(parts[2:4])]
            if "tree" in parts:
                tree = [{"type": "file", "path": n, "size": len(c), "oid": _oid(c)} for n, c in files.items()]
                self._answer(tree)
            else:
                siblings = [{"rfilename": n, "size": len(c)} for n, c in files.items()]
                self._answer({"id": "/".join(parts[2:4]), "sha": self.commit, "siblings": siblings})
        elif parts[2:3] == ["resolve"] and parts[4] in self.repositories.get("/".join(parts[:2]), {}):
            content = self.repositories["/".join(parts[:2])][parts[4]]
            headers = {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": self.commit}
            self._send(content, 200, "application/octet-stream", headers)
        else:
            self._answer({"error": "Repository not found"}, 404)

    do_HEAD = do_GET

    def _answer(self, content: object, code: int = 200) -> None:
        self._send(json.dumps(content).encode(), code, "application/json", {})

    def _send(self, content: bytes, code: int, kind: str, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub() -> Iterator[tuple[str, dict[str, dict[str, bytes]]]]:
    repositories: dict[str, dict[str, bytes]] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Hub,), {"repositories": repositories}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", repositories
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def shoal_at_hub(
    shoal: Shoal, hub: tuple[str, dict[str, dict[str, bytes]]], tmp_path: Path
) -> Iterator[Shoal]:
    """The same in a process of its own: the hub's client reads where its hub is when it is imported."""
    there = {
        "HF_ENDPOINT": hub[0],
        "HF_TOKEN": "hf_x",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hf"),
    }
    with subprocess.Popen(
        [sys.executable, "-c", COMMANDS_OF_LINES],
        env={**os.environ, "PYTHONPATH": str(ROOT), **there},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def run(*arguments: object) -> str:
            assert process.stdin is not None and process.stdout is not None
            print(json.dumps([*map(str, arguments)]), file=process.stdin, flush=True)
            return str(json.loads(process.stdout.readline()))

        yield run


def test_an_adapter_goes_to_a_hub_and_back(
    shoal: Shoal,
    directory: Path,
    tiny_llama: Path,
    tmp_path: Path,
    hub: tuple[str, dict[str, dict[str, bytes]]],
    shoal_at_hub: Shoal,
) -> None:
    endpoint, repositories = hub
    shoal("adapters", "import", "plural", directory, "--base", tiny_llama)
    pushed = shoal_at_hub("adapters", "push", "plural", "ada/plural-lora")
    assert pushed == f"plural pushed: {endpoint}/ada/plural-lora/commit/{'a' * 40}\n"
    assert set(repositories["ada/plural-lora"]) == {p.name for p in directory.iterdir()}
    repositories["ada/plural-lora"]["../evil.py"] = b"import os"
    pull = ("adapters", "pull", "back", "ada/plural-lora", "--base", tiny_llama)
    assert shoal_at_hub(*pull) == "back kept as version 1\n"
    registry = Registry(tmp_path / "registry")
    assert registry.get("back", None).sha256 == registry.get("plural", None).sha256
    registry.close()
    del repositories["ada/plural-lora"]["adapter_model.safetensors"]
    assert "has no adapter_model.safetensors, so it is no PEFT adapter" in shoal_at_hub(*pull)
    assert "is no hub id" in shoal("adapters", "pull", "x", "../../etc", code=2)
