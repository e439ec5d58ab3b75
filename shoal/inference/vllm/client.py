"""vLLM's OpenAI-compatible server over HTTP: its models, its adapters, and answers as they come.

Whatever goes wrong on the way is an `UnavailableError`, since vLLM may be back a little later. Knows names
and directories, nothing of registries or of our API.

Source: vLLM 0.32, "LoRA Adapters" in its documentation, and the answers recorded in tests/vllm/recorded.json.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from shoal.errors import ShoalError, UnavailableError, UsageError, reason

log = logging.getLogger(__name__)

CONNECT_SECONDS, LOAD_SECONDS = 5.0, 120.0
ALREADY = "has already been loaded"
SWITCH = "start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"


class UnknownModel(ShoalError):
    """vLLM does not know a model or an adapter: it was restarted, or another service unloaded it."""


_KINDS = {400: UsageError, 401: ShoalError, 403: ShoalError, 404: UnknownModel, 422: UsageError}


class VllmClient:
    """One server; for any number of threads."""

    def __init__(self, url: str, key: str | None = None, *, silence_seconds: float = 120.0) -> None:
        """Nothing is asked yet.

        Args:
            url: of the server, without `/v1`.
            key: that the server was started with (`--api-key`).
            silence_seconds: after which an answer that does not go on is given up.
        """
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx2.Client(
            base_url=self.url,
            headers=headers,
            timeout=httpx2.Timeout(silence_seconds, connect=CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=None),
        )

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def models(self) -> list[dict[str, Any]]:
        """Base models and adapters: `id`, `root` (where it is), `parent` (of an adapter).

        Raises:
            UnavailableError: the server cannot be reached.
        """
        with self._failures():
            answer = self._http.get("/v1/models", timeout=CONNECT_SECONDS)
            if answer.status_code != 200:
                raise UnavailableError(f"vLLM at {self.url} lists no models: {_said(answer)}")
            return list(answer.json()["data"])

    def load(self, name: str, directory: str) -> None:
        """Have an adapter loaded under a name; one that is there already is left as it is.

        Raises:
            UnavailableError: it was not loaded, or the server cannot be reached.
        """
        with self._failures():
            body = {"lora_name": name, "lora_path": directory}
            answer = self._http.post("/v1/load_lora_adapter", json=body, timeout=LOAD_SECONDS)
        if answer.status_code == 200 or (answer.status_code == 400 and ALREADY in answer.text):
            return
        raise UnavailableError(f"vLLM at {self.url} did not load the adapter {name}: {_said(answer)}")

    def unload(self, name: str) -> None:
        """Have an adapter forgotten; one that is not there is nothing to do.

        Raises:
            UnavailableError: it was not unloaded, or the server cannot be reached.
        """
        with self._failures():
            answer = self._http.post("/v1/unload_lora_adapter", json={"lora_name": name})
        if answer.status_code not in (200, 404):
            raise UnavailableError(f"vLLM at {self.url} did not unload the adapter {name}: {_said(answer)}")

    @contextmanager
    def completing(self, body: dict[str, Any]) -> Iterator[Iterator[dict[str, Any]]]:
        """Events of a streamed completion, as they come; leaving the block early ends it in vLLM too.

        Raises:
            UnknownModel: there is no such model.
            UnavailableError: the server cannot be reached, is full, or broke off.
            UsageError: it refuses the request.
            ShoalError: it does not let us in, or failed on the way.
        """
        with self._failures(), self._http.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                answer.read()
                said = f"vLLM at {self.url} refused the request: {_said(answer)}"
                raise _KINDS.get(answer.status_code, UnavailableError)(said)
            yield self._events(answer)

    def _events(self, answer: httpx2.Response) -> Iterator[dict[str, Any]]:
        for line in answer.iter_lines():
            content = line.removeprefix("data:").strip()
            if not line.startswith("data:") or not content:
                continue
            if content == "[DONE]":
                return
            event = json.loads(content)
            if "error" in event:
                message = event["error"].get("message", event["error"])
                raise ShoalError(f"vLLM at {self.url} failed: {reason(Exception(message))}")
            yield event
        raise UnavailableError(f"vLLM at {self.url} broke off an answer; ask again")

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except httpx2.HTTPError as error:
            raise UnavailableError(
                f"vLLM at {self.url} cannot be reached ({reason(error)}); see that it runs"
            ) from None
        except (ValueError, KeyError) as error:
            raise UnavailableError(
                f"vLLM at {self.url} answers otherwise than vLLM: {reason(error)}"
            ) from None


def _said(answer: httpx2.Response) -> str:
    """The message of an error."""
    try:
        error = answer.json().get("error")
        said = str(error["message"]) if error else f"no such route; {SWITCH}"
    except (ValueError, KeyError, TypeError, AttributeError):
        said = answer.text
    return f"{answer.status_code}: {reason(Exception(said))}"
