"""A request in the words of vLLM's completions API; nothing of streams or connections."""

from __future__ import annotations

import json
from typing import Any

from shoal.adapters.output_format import OutputFormat
from shoal.inference.engine.records import Request


def is_greedy(request: Request) -> bool:
    """True where all its answers are one and the same, which vLLM gives once alone."""
    return request.sampling.greedy


def request_body(request: Request, model: str, ends: list[int]) -> dict[str, Any]:
    """A request as vLLM takes it; everything is stated, or its server's defaults would count."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(request.prompt),
        "max_tokens": request.max_tokens,
        "n": 1 if is_greedy(request) else request.n,
        "temperature": 0.0 if sampling.greedy else sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stop": list(request.stop),
        "stop_token_ids": ends if request.stop_at_end else [],
        "ignore_eos": not request.stop_at_end,
        "stream": True,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    if request.format is not None:
        body["structured_outputs"] = _structured(request.format)
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if request.logprobs is not None:
        body["logprobs"] = request.logprobs
    return body


def _structured(wanted: OutputFormat) -> dict[str, Any]:
    """A format in vLLM's words (0.12 and later)."""
    if wanted.kind == "json_schema":
        return {"json": json.loads(wanted.text)}
    return {wanted.kind: list(wanted.choices) or wanted.text}
