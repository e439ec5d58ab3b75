"""The service's API as typed calls: what the web page, or any other program, asks of `shoal serve`.

Answers are read as they come. Whatever goes wrong, the service's own word or none at all, is one line of a
`ShoalError`. Knows no models, and nothing of who calls.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2

from shoal.errors import ShoalError, UnavailableError, UsageError, reason
from shoal.server.client_errors import FOREIGN, failure_of_status, message_of, parsed
from shoal.server.client_records import (
    Adapter,
    AdapterPage,
    GeneratedAdapter,
    SettingsStudy,
    SkillLibrary,
    TrainingJob,
    read_adapter,
    read_generated,
    read_job,
    read_library,
    read_study,
)

KEY_VARIABLE = "OPENAI_API_KEY"  # of the environment, as the official client reads it
DEFAULT_URL = "http://127.0.0.1:8000"
CONNECT_SECONDS, READ_SECONDS = 5.0, 120.0
TRAINING_SECONDS = 900.0  # for an adapter that is trained on examples or inputs, also on a busy machine
MAX_ZIP_BYTES = 2**28
Chat = Sequence[Mapping[str, str]]
T = TypeVar("T")
GUIDE_NAMES = (
    "total_requests",
    "successful_requests",
    "avg_response_time",
    "avg_memory_usage",
    "skill_detection_accuracy",
)


class Client:
    """One service, with one key. Close it, or use it in `with`; for any number of threads."""

    def __init__(self, url: str = DEFAULT_URL, key: str | None = None) -> None:
        """Remember whom to ask; nothing is sent yet.

        Args:
            url: of the service, without `/v1`.
            key: of `shoal keys create`; None asks without one.

        Raises:
            UsageError: the URL is none of http or https, or the key cannot be sent.
        """
        self.url = check_url(url)
        if key and not (key.isascii() and key.isprintable()):
            raise UsageError("the key holds characters that no key has; copy it again")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        # No redirects, no proxies from the environment: the key goes to this service alone.
        self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def base_model(self) -> str:
        """Name of the base model."""
        first = {"limit": 1}
        return self._ask("GET", "/v1/models", lambda body: str(body["data"][0]["id"]), params=first)

    def detect_skills(self, text: str) -> dict[str, float]:
        """Skill -> weight of those that a text asks for."""

        def read(body: Mapping[str, Any]) -> dict[str, float]:
            return {str(skill): float(body["weights"].get(skill, 0.0)) for skill in body["skills"]}

        return self._ask("POST", "/v1/skills/detect", read, json={"text": text})

    def create(
        self,
        name: str,
        description: str,
        *,
        public: bool = False,
        examples: Sequence[tuple[str, str | Sequence[str]]] = (),
        inputs: Sequence[str] = (),
        sample_inputs: bool = False,
        refine: bool = True,
        careful: bool = False,
        suggest: int = 0,
    ) -> GeneratedAdapter:
        """Generate an adapter and keep it.

        Args:
            name: that it gets.
            description: what it shall do.
            public: let others use it.
            examples: 4 or more pairs of input and output, or outputs where several are right, on which it is
                trained.
            inputs: 4 or more without answers, by which a closed label set is calibrated.
            sample_inputs: take those that the package ships instead.
            refine: train on the examples; False only lets a network read them that was trained to.
            careful: hold a quarter of the examples out and stop by them.
            suggest: so many of `inputs` are named that are worth labelling next.
        """
        new: dict[str, Any] = {"name": name, "description": description, "public": public}
        new["examples"] = [{"input": given, "output": answer} for given, answer in examples]
        new |= {"inputs": list(inputs), "sample_inputs": sample_inputs}
        new |= {"refine": refine, "careful": careful, "suggest": suggest}
        patience = {"timeout": TRAINING_SECONDS} if examples or inputs or sample_inputs else {}
        return self._ask("POST", "/v1/adapters", read_generated, json=new, **patience)

    def page(self, *, search: str = "", after: str = "", limit: int = 50) -> AdapterPage:
        """Adapters by name."""
        asked = {"after": after, "limit": limit} | ({"search": search} if search else {})

        def read(body: Mapping[str, Any]) -> AdapterPage:
            return AdapterPage(tuple(map(read_adapter, body["data"])), body["after"])

        return self._ask("GET", "/v1/adapters", read, params=asked)

    def adapter(self, name: str) -> Adapter:
        """One adapter."""
        return self._ask("GET", _path("adapters", name), read_adapter)

    def norms(self, name: str) -> dict[str, float]:
        """Module -> Frobenius norm of the delta weight."""

        def read(body: Mapping[str, Any]) -> dict[str, float]:
            return {str(module): float(norm) for module, norm in body["norms"].items()}

        return self._ask("GET", _path("adapters", name, "norms"), read)

    def publish(self, name: str, public: bool) -> Adapter:
        """Let others use an adapter, or no longer."""
        return self._ask("PATCH", _path("adapters", name), read_adapter, json={"public": public})

    def delete(self, name: str) -> None:
        """Remove an adapter with all its versions."""
        self._ask("DELETE", _path("adapters", name), bool)

    def upload(self, name: str, archive: bytes, *, public: bool = False) -> Adapter:
        """Keep a ZIP of a PEFT LoRA under a name."""
        form = {"name": name, "public": str(public).lower()}
        files = {"file": ("adapter.zip", archive, "application/zip")}
        return self._ask("POST", "/v1/adapters/import", read_adapter, data=form, files=files)

    def download(self, name: str) -> bytes:
        """An adapter as a PEFT ZIP.

        Raises:
            ShoalError: it is larger than `MAX_ZIP_BYTES`.
        """
        with self._answer("GET", _path("adapters", name, "download")) as response:
            blocks, size = [], 0
            for block in response.iter_bytes():
                size += len(block)
                if size > MAX_ZIP_BYTES:
                    raise ShoalError(
                        f"{name} is larger than {MAX_ZIP_BYTES} bytes; use `shoal adapters export`"
                    )
                blocks.append(block)
            return b"".join(blocks)

    def train(self, name: str, definition: str, examples: bytes, *, steps: int, rank: int) -> TrainingJob:
        """Train a LoRA on JSONL with `input` and `output`, in the background."""
        form = {"name": name, "definition": definition, "steps": str(steps), "rank": str(rank)}
        files = {"file": ("examples.jsonl", examples, "application/jsonl")}
        return self._ask("POST", "/v1/jobs", read_job, data=form, files=files)

    def merge(self, name: str, parents: Sequence[str], **settings: Any) -> TrainingJob:
        """Merge adapters by name, in the background; settings as `shoal.server.merge_requests.NewMerge`."""
        body = {"name": name, "parents": list(parents), **settings}
        return self._ask("POST", "/v1/jobs/merge", read_job, json=body)

    def libraries(self) -> tuple[str, ...]:
        """Names of the libraries of skills."""
        return self._ask("GET", "/v1/libraries", lambda body: tuple(str(row["name"]) for row in body["data"]))

    def library(self, name: str) -> SkillLibrary:
        """One library: its skills, its versions, and scores over time."""
        return self._ask("GET", _path("libraries", name), read_library)

    def learn(
        self,
        library: str,
        name: str,
        description: str,
        examples: Sequence[tuple[str, Sequence[str]]],
        **settings: object,
    ) -> TrainingJob:
        """Learn a skill into a library, in the background; `settings` are `labels`, `bound`, `allow_loss`."""
        solved = [{"input": given, "output": list(outputs)} for given, outputs in examples]
        body = {"library": library, "name": name, "description": description, "examples": solved, **settings}
        return self._ask("POST", "/v1/jobs/learn", read_job, json=body)

    def forget(self, library: str, name: str) -> TrainingJob:
        """Remove a skill and every file of it, in the background."""
        return self._ask("POST", "/v1/jobs/forget", read_job, json={"library": library, "name": name})

    def rollback(self, library: str, version: int) -> SkillLibrary:
        """Restore an older version of a library, as a new one."""
        path = _path("libraries", library, "rollback")
        return self._ask("POST", path, read_library, json={"version": version})

    def tune(
        self, name: str, definition: str, examples: Sequence[tuple[str, Sequence[str]]], **settings: Any
    ) -> TrainingJob:
        """Find settings, in the background; settings as `shoal.server.tune_requests.NewStudy`."""
        solved = [{"input": given, "output": list(outputs)} for given, outputs in examples]
        body = {"name": name, "definition": definition, "examples": solved, **settings}
        return self._ask("POST", "/v1/jobs/tune", read_job, json=body)

    def studies(self) -> tuple[str, ...]:
        """Names of the studies of settings."""
        return self._ask("GET", "/v1/studies", lambda body: tuple(str(row["name"]) for row in body["data"]))

    def study(self, name: str) -> SettingsStudy:
        """One study: its trials, and its verdict once there is one."""
        return self._ask("GET", _path("studies", name), read_study)

    def train_found(self, study: str, adapter: str) -> TrainingJob:
        """Train an adapter with the settings that a study found, in the background."""
        return self._ask("POST", _path("studies", study, "train"), read_job, json={"adapter": adapter})

    def delete_study(self, name: str) -> None:
        """Remove a study with all its runs."""
        self._ask("DELETE", _path("studies", name), bool)

    def jobs(self) -> tuple[TrainingJob, ...]:
        """The newest jobs."""
        return self._ask("GET", "/v1/jobs", lambda body: tuple(map(read_job, body["data"])))

    def cancel(self, identity: str) -> TrainingJob:
        """End a job."""
        return self._ask("POST", _path("jobs", identity, "cancel"), read_job)

    def monitoring(self) -> dict[str, float | None]:
        """The guide's monitoring names."""
        return self._ask("GET", "/v1/monitoring", lambda body: {name: body[name] for name in GUIDE_NAMES})

    def metrics(self) -> str:
        """Everything that is counted, in Prometheus' text format."""
        with self._answer("GET", "/metrics") as response:
            response.read()
            return response.text

    def chat(
        self,
        model: str,
        messages: Chat,
        *,
        adapter: Mapping[str, Any] | str | None = None,
        max_tokens: int | None = None,
        temperature: float = 0.0,
    ) -> Generator[str, None, None]:
        """Pieces of an answer as they come; leaving it early frees its place in the service.

        Args:
            model: the base model, or an adapter's name.
            messages: `role` and `content` of every turn.
            adapter: `{"describe": ...}`, `{"mix": [{"name": ..., "weight": ...}]}` or `"auto"`.
            max_tokens: at most; None leaves it to the service.
            temperature: 0 for the likeliest tokens.
        """
        body = {"model": model, "messages": list(messages), "stream": True, "temperature": temperature}
        body |= {k: v for k, v in (("adapter", adapter), ("max_tokens", max_tokens)) if v is not None}
        with self._answer("POST", "/v1/chat/completions", json=body) as response:
            for line in response.iter_lines():
                content = line.removeprefix("data: ")
                if content == line or content == "[DONE]":
                    continue
                event = parsed(content)
                if "error" in event:
                    raise ShoalError(message_of(event) or "the service failed on the way")
                if text := _piece(event):
                    yield text

    def _ask(self, method: str, path: str, read: Callable[[dict[str, Any]], T], **asked: Any) -> T:
        with self._answer(method, path, **asked) as response:
            body = parsed(response.read())
        try:
            return read(body)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise ShoalError(FOREIGN) from None

    @contextmanager
    def _answer(self, method: str, path: str, **asked: Any) -> Iterator[httpx2.Response]:
        try:
            with self._http.stream(method, path, **asked) as response:
                if not response.is_success:
                    response.read()
                    raise failure_of_status(response)
                yield response
        except httpx2.TimeoutException:
            raise UnavailableError(f"the service at {self.url} does not answer in time; try again") from None
        except httpx2.TransportError as error:
            raise UnavailableError(
                f"the service at {self.url} cannot be reached ({reason(error, 80)}); start `shoal serve`, or "
                "check the address"
            ) from None


def check_url(url: str) -> str:
    """The URL of a service without a slash at its end.

    Raises:
        UsageError: not http or https, or it holds a name and password.
    """
    try:
        parsed = httpx2.URL(url)
        known = parsed.scheme in ("http", "https") and bool(parsed.host)
    except (httpx2.InvalidURL, ValueError):
        known = False
    if not known:
        raise UsageError(f"{url[:200]!r} is no address of a service; write for example {DEFAULT_URL}")
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise UsageError("the address of a service holds a password, query or fragment; leave them out")
    return str(parsed).rstrip("/")


def _path(*parts: str) -> str:
    """A path below /v1 whose parts are names, whatever is in them."""
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def _piece(body: Mapping[str, Any]) -> str:
    try:
        return "".join(str(choice["delta"].get("content") or "") for choice in body["choices"])
    except (KeyError, TypeError, AttributeError):
        raise ShoalError(FOREIGN) from None
