"""A request from when it was accepted to its last answer: its streams, and what its responses say of it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.inference.engine.stream import Stream
from shoal.server.adapter_selection import SelectedAdapter
from shoal.server.responses import Echo
from shoal.server.schemas import ChatRequest, CompletionRequest


@dataclass
class AcceptedRequest:
    """A request whose answers are being generated.

    Attributes:
        body: of the request.
        streams: one per prompt; none where nothing is to be generated.
        selected: the adapter.
        prompt_tokens: of all prompts.
        echoes: of all prompts, where they are to be repeated.
        id: of the response.
        created: seconds since 1970.
    """

    body: ChatRequest | CompletionRequest
    streams: list[Stream]
    selected: SelectedAdapter
    prompt_tokens: int
    echoes: list[Echo] = field(default_factory=list)
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def chat(self) -> bool:
        """True for a chat, False for a completion."""
        return isinstance(self.body, ChatRequest)

    @property
    def calls(self) -> bool:
        """True where each answer is a call of a tool."""
        return isinstance(self.body, ChatRequest) and bool(self.body.tools)

    @property
    def counts_usage(self) -> bool:
        """True where the stream ends with the tokens used."""
        return self.body.stream_options is not None and self.body.stream_options.include_usage

    @property
    def prompts(self) -> int:
        """Prompts of the request."""
        return len(self.body.prompts) if isinstance(self.body, CompletionRequest) else 1

    def cancel(self) -> None:
        """Free its places in the engine."""
        for stream in self.streams:
            stream.cancel()

    def envelope(
        self,
        choices: Sequence[dict[str, Any]],
        *,
        streamed: bool,
        labels: Mapping[str, float] | None = None,
    ) -> dict[str, Any]:
        """A response body, or one event of a stream, with the probabilities of labels where one answers."""
        kind = "chat.completion" if self.chat else "text_completion"
        body = {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}",
            "object": f"{kind}.chunk" if streamed and self.chat else kind,
            "created": self.created,
            "model": self.body.model,
            "choices": list(choices),
        }
        facts = dict(self.selected.facts or {}) | ({"labels": dict(labels)} if labels else {})
        return {**body, "adapter": facts} if facts else body
