"""The documentation as a newcomer uses it: every command and Python block of these pages runs as written.

A page is one session in one directory, in order. Long trainings get the changes of `CHANGES`, ports are free
ones, and what cannot run here stands in `NOT_RUN` with the reason. Everything else runs, so a new block is
tested without anybody listing it.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from shoal.apps.cli.main import _app
from shoal.models.sources import DEFAULT_MODEL, find_model

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
NAMED = ("quickstart", "service", "library", "commands")
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in NAMED)]
PAGES += TUTORIALS
FIRST = {"README.md", "quickstart.md", "service.md"}  # every run of the slow tests has these
HOW_TOS = sorted((ROOT / "docs" / "howto").glob("*.md"))
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
SECONDS = 1800  # for one command on a busy machine; nothing is measured

# Beginning of a command -> why no test runs it.
NOT_RUN = {
    "make demo": "installs; tests/test_examples.py runs what it runs",
    "make test": "this is a part of it",
    "pip install": "changes the environment that the tests run in",
    "shoal adapters push": "needs a model hub; tests/adapters/test_hub.py has one that answers alike",
    "shoal adapters pull": "the same",
    "VLLM_": "needs vLLM; tests/inference/vllm replays what it answered",
}
# Beginning of a command -> what is appended, so that it takes seconds instead of hours.
CHANGES = {
    "shoal train lora": "--steps 2 --batch-size 2",
    "shoal train multi-task": "--steps 2 --batch-size 2 --checkpoint-every 2",
    "shoal train multi-task --config configs/multi_task.yaml --procedural": "--procedural 4",
    "shoal train text-to-lora": "--steps 2 --batch-size 4 --procedural 4 --label-sets 2 --relabelled 0",
    "shoal train expert": "--steps 1 --batch-size 2 --procedural 16 --least-success 0 --most-success 1",
    "shoal evaluate": "--examples 4 --max-new-tokens 4",
    "shoal adapt ": "--population 4 --iterations 1",
    "shoal train dispatch": "--procedural 16 --requests 8 --test-requests 4",
    "torchrun": "--steps 2 --batch-size 2",
}
# What stands for something that the reader has and a test has not.
STANDS_FOR = {"--device cuda": "--device cpu"}
SERVERS = {"shoal serve": "8000", "shoal ui": "8501", "shoal cluster up": "8000"}  # and the default port

GOOD = "A joy to watch. Warm and funny. The year's best film. Clever and moving. A perfect ending. Charming."
BAD = "A film that nobody needed. Loud and empty. A waste of time. The jokes fail. It bored us all. Painful."


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line that it starts at."""

    language: str
    text: str
    line: int

    @property
    def commands(self) -> list[tuple[str, list[str]]]:
        """The commands of a console block, each with the lines of output that are shown below it."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                found.append((" ".join(line[2:].split("    #")[0].split()), []))
            elif found:
                found[-1][1].append(line)
        return found


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    fences = re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(m[1], m[2], text[: m.start()].count("\n") + 1) for m in fences]


def all_commands(pages: list[Path]) -> list[str]:
    return [c for page in pages for b in blocks(page) if b.language == "console" for c, _ in b.commands]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def rows(count: int) -> list[dict[str, str]]:
    labels = (("positive", GOOD), ("negative", BAD))
    texts = [(s.strip() + ".", label) for label, all_of in labels for s in all_of.split(".") if s.strip()]
    return [{"input": f"{text} {i}", "output": label} for i in range(count) for text, label in texts][:count]


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")


def write_data(folder: Path) -> None:
    """A data directory of three small tasks, one of them held out."""
    (folder / "tasks").mkdir(parents=True)
    words = [row["input"] for row in rows(24)]
    changes = {"shout": str.upper, "whisper": str.lower, "first_word": lambda text: text.split()[0]}
    for name, change in changes.items():
        examples = [{"input": word, "outputs": [change(word)]} for word in words]
        task = {"name": name, "category": "words", "source": ["made here"], "license": ["MIT"]}
        told = {"definition": f"Do {name} to the text.", "descriptions": [f"Apply {name} to the whole text."]}
        parts = {"train": examples[:20], "test": examples[20:]}
        (folder / "tasks" / f"{name}.json").write_text(json.dumps({**task, **told, **parts}), "utf-8")
    split = {"train": ["shout", "whisper"], "validation": ["first_word"]}
    (folder / "splits.json").write_text(json.dumps(split), "utf-8")


PYTHON = """
import json, sys, traceback
names = {"__name__": "__main__"}
for line in sys.stdin:
    try:
        exec(compile(json.loads(line), "block", "exec"), names)
        failure = ""
    except BaseException:
        failure = traceback.format_exc()
    print("DONE" + json.dumps(failure), flush=True)
"""


def json_block_of(tutorial: str, word: str) -> str:
    """The JSON of a tutorial that has this word."""
    page = ROOT / "docs" / "tutorials" / f"{tutorial}.md"
    return next(b.text for b in blocks(page) if b.language == "json" and word in b.text)


class Session:
    """A newcomer's terminal in a directory of its own: shell, Python and servers that stay."""

    def __init__(self, folder: Path, model: Path, stack: ExitStack) -> None:
        self.folder, self.model, self.stack = folder, model, stack
        self.ports: dict[str, str] = {}
        self.python: subprocess.Popen[str] | None = None
        for name in ("configs", "examples", "src", "benchmarks"):
            (folder / name).symlink_to(ROOT / name)
        write_jsonl(folder / "solved.jsonl", rows(8))
        write_jsonl(folder / "more.jsonl", rows(12))
        (folder / "inputs.txt").write_text("".join(row["input"] + "\n" for row in rows(12)), "utf-8")
        (folder / "genres.json").write_text(json_block_of("serve", "genres"), "utf-8")
        (folder / "reviews-folder").mkdir()
        table = "text,label\n" + "".join(f"{r['input']},{r['output']}\n" for r in rows(12))
        (folder / "reviews-folder" / "train.csv").write_text(table, "utf-8")
        write_data(folder / "DATA")
        (folder / "bin").mkdir()
        script = f'#!/bin/sh\nexec {sys.executable} -m shoal.apps.cli.main "$@"\n'
        (folder / "bin" / "shoal").write_text(script, "utf-8")
        (folder / "bin" / "shoal").chmod(0o755)
        path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        own = {"PATH": path, "PYTHONPATH": f"{ROOT}:{folder}", "SHOAL_REGISTRY": str(folder / "registry")}
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
        self.environment = {**os.environ, **own, **offline}
        subprocess.run(["bash", "-c", "export -p > env.sh"], cwd=folder, env=self.environment, check=True)

    def fitted(self, text: str) -> str:
        """With free ports, and with a model and a device that are here."""
        for port in re.findall(r"\b8\d{3}\b", text):
            text = re.sub(rf"\b{port}\b", self.port(port), text)
        hub_id = 'from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")'
        text = text.replace(hub_id, f'from_pretrained("{find_model(DEFAULT_MODEL).location}")')
        for written, here in STANDS_FOR.items():
            text = text.replace(written, here)
        return re.sub(r"\bMODEL\b", str(self.model), text)

    def port(self, documented: str) -> str:
        if documented not in self.ports:
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.ports[documented] = str(free.getsockname()[1])
        return self.ports[documented]

    def run(self, command: str, shown: list[str]) -> None:
        extra = [more for begin, more in CHANGES.items() if command.startswith(begin)]
        command = self.fitted(" ".join([command, *extra]))
        server = next((name for name in SERVERS if command.startswith(name)), None)
        if server:
            self.start(command if "--port" in command else f"{command} --port {self.port(SERVERS[server])}")
            return
        line = f". ./env.sh; {command}\ncode=$?; export -p > env.sh; exit $code"
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.folder, capture_output=True, text=True, timeout=SECONDS
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
        printed = done.stdout.splitlines()
        assert [line for line in shown if line.strip() and line not in printed] == [], (
            f"$ {command}\n{printed}"
        )

    def start(self, command: str) -> None:
        """Start a server and wait until it listens; it ends with the session."""
        log = self.stack.enter_context((self.folder / "server.log").open("a"))
        line = f". ./env.sh; exec {command}"
        server = subprocess.Popen(
            ["bash", "-c", line], cwd=self.folder, stdout=log, stderr=log, start_new_session=True
        )
        self.stack.callback(end, server)
        port, until = int(re.search(r"--port (\d+)", command)[1]), time.monotonic() + SECONDS
        while True:
            said = (self.folder / "server.log").read_text("utf-8")
            assert server.poll() is None, f"$ {command}\n{said}"
            assert time.monotonic() < until, f"$ {command} does not listen\n{said}"
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                time.sleep(0.2)

    def execute(self, code: str) -> None:
        """Run a block of Python after those before it, in the same process."""
        if self.python is None:
            line = '. ./env.sh; exec python -u -c "$0"'
            self.python = subprocess.Popen(
                ["bash", "-c", line, PYTHON],
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            self.stack.callback(end, self.python)
        assert self.python.stdin and self.python.stdout
        self.python.stdin.write(json.dumps(self.fitted(code)) + "\n")
        self.python.stdin.flush()
        for line in self.python.stdout:
            if line.startswith("DONE"):
                assert not (failure := json.loads(line[4:])), f"{code}\n{failure}"
                return
        raise AssertionError(f"Python ended at\n{code}")


def end(process: subprocess.Popen[Any]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()


@pytest.fixture
def session(tmp_path: Path, tiny_llama: Path) -> Iterator[Session]:
    with ExitStack() as stack:
        yield Session(tmp_path, tiny_llama, stack)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[] if p.name in FIRST else pytest.mark.tutorial) for p in PAGES], ids=named
)
def test_every_block_of_a_page_runs_as_written(page: Path, session: Session) -> None:
    for block in blocks(page):
        if block.language == "console":
            for command, shown in block.commands:
                if not any(command.startswith(begin) for begin in NOT_RUN):
                    session.run(command, shown)
        elif block.language == "python":
            session.execute(block.text)
        elif block.language == "yaml" and (name := re.match(r"# (\w+\.yaml)\n", block.text)):
            (session.folder / name[1]).write_text(block.text, "utf-8")


@pytest.mark.slow
@pytest.mark.tutorial
@pytest.mark.parametrize("page", HOW_TOS, ids=named)
def test_every_worked_example_fits_the_source_and_works(page: Path, tmp_path: Path) -> None:
    for name in ("shoal", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    for block in blocks(page):
        if block.language == "diff":
            command, given = ["patch", "-p1", "--fuzz=2", "--no-backup-if-mismatch"], block.text
        elif block.language == "python":
            command, given = [sys.executable, "-c", block.text], None
        else:
            continue
        done = subprocess.run(
            command,
            input=given,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, f"{named(page)}, line {block.line}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", HOW_TOS, ids=named)
def test_every_patch_fits_the_source(page: Path) -> None:
    for block in blocks(page):
        if block.language == "diff":
            command = ["patch", "-p1", "--fuzz=2", "--dry-run"]
            done = subprocess.run(command, input=block.text, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, f"{named(page)}, line {block.line}\n{done.stdout}"


def test_nothing_is_excepted_or_changed_that_no_page_has() -> None:
    commands = all_commands(PAGES)
    for begin in (*NOT_RUN, *CHANGES, *SERVERS):
        assert any(c.startswith(begin) for c in commands), f"no page has {begin!r}; take it out of the table"
    for written in STANDS_FOR:
        assert any(written in c for c in commands), f"no page has {written!r}; take it out of the table"


@pytest.mark.parametrize("page", PROSE, ids=named)
def test_blocks_are_of_languages_that_are_checked(page: Path) -> None:
    for block in blocks(page):
        where = f"{named(page)}, line {block.line}"
        assert block.language in {"console", "python", "json", "yaml", "text", "diff"}, where
        if block.language == "python":
            ast.parse(block.text)
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "console":
            assert block.commands, f"{where}: no line starts with $"


def shoal_commands(page: Path) -> Iterator[list[str]]:
    """The words of every `shoal ...` in the console blocks of a page, loops and all."""
    for block in blocks(page):
        for command, _ in block.commands if block.language == "console" else ():
            for part in re.split(r";|\||\$\(|\)", command):
                words = shlex.split(part, comments=True)
                if "shoal" in words and not command.startswith(("docker", "kubectl", "pip")):
                    yield words[words.index("shoal") + 1 :]


@pytest.mark.parametrize("page", PROSE, ids=named)
def test_every_documented_command_and_flag_exists(page: Path) -> None:
    root = typer.main.get_command(_app())
    for words in shoal_commands(page):
        command, context, rest = root, None, words
        while hasattr(command, "commands"):
            context = command.make_context(
                command.name or "shoal", [], parent=context, resilient_parsing=True
            )
            name, rest = (rest[0], rest[1:]) if rest else ("", [])
            command = command.get_command(context, name)
            assert command, f"{named(page)}: there is no command shoal {shlex.join(words)}"
        known = {"--help", *(option for p in command.params for option in (*p.opts, *p.secondary_opts))}
        given = {word.split("=")[0] for word in rest if word.startswith("--")}
        assert given <= known, f"{named(page)}: shoal {shlex.join(words)} has no {given - known}"


def test_the_readme_is_short_and_has_a_line_for_every_package() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert len(readme.splitlines()) <= 150
    table = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", readme, re.MULTILINE))
    packages = {p.parent.name: p for p in (ROOT / "shoal").glob("*/__init__.py")}
    docs = {name: ast.get_docstring(ast.parse(p.read_text("utf-8"))) for name, p in packages.items()}
    assert table == {name: " ".join((doc or "").split("\n\n")[0].split()) for name, doc in docs.items()}


@pytest.mark.parametrize("page", PROSE, ids=named)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", without_blocks(page)):
        assert (page.parent / target).exists(), f"{named(page)}: {target} is no file"


@pytest.mark.parametrize("page", [p for p in PROSE if "decisions" not in p.parts], ids=named)
def test_files_that_prose_names_are_there(page: Path) -> None:
    ignored = (ROOT / ".gitignore").read_text("utf-8").splitlines()  # those that the reader makes
    folders = "shoal|tests|benchmarks|docs|deploy|examples|configs"
    for path in re.findall(rf"`((?:{folders})/[\w./-]+)`", without_blocks(page)):
        assert (ROOT / path).exists() or path in ignored, f"{named(page)}: there is no {path}"


def without_blocks(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
