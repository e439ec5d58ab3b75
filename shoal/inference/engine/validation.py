"""The numbers of a request against the limits, before anything is allocated for it."""

from __future__ import annotations

from typing import Any

from shoal.errors import UsageError
from shoal.inference.engine.records import MAX_STOP_LENGTH, MAX_STOPS, MAX_TOP, Limits, Request
from shoal.models.backbone import Backbone


def check_numbers(request: Request, backbone: Backbone, limits: Limits) -> None:
    """See that a request is possible for an engine of these limits over this model.

    Raises:
        UsageError: a number of it is outside the limits.
    """
    length = len(request.prompt)
    positions = getattr(backbone.model.config, "max_position_embeddings", None)
    embeddings: Any = backbone.model.get_input_embeddings()
    vocabulary = int(embeddings.weight.shape[0])
    most = min(limits.max_n, limits.max_batch)
    if not 1 <= request.n <= most:
        raise UsageError(f"n {request.n} is outside 1..{most}; ask for fewer answers")
    if length < 1 or request.max_tokens < (1 if request.answered else 0):
        raise UsageError(
            f"a prompt of {length} tokens and max_tokens {request.max_tokens} must be 1 at least"
        )
    width = length + request.max_tokens
    if positions is not None and width > positions:
        raise UsageError(
            f"a prompt of {length} tokens and an answer of up to {request.max_tokens} exceed the "
            f"{positions} positions of {backbone.shape.base_model}; shorten one of them"
        )
    if request.n * width > limits.kv_tokens:
        raise UsageError(
            f"{request.n} answers of up to {width} tokens with the prompt exceed the engine's "
            f"{limits.kv_tokens} places for keys and values; shorten them, or raise kv_tokens"
        )
    odd = next((token for token in request.prompt if not 0 <= token < vocabulary), None)
    if odd is not None:
        raise UsageError(f"token {odd} is outside the vocabulary of {vocabulary}; encode the prompt")
    if len(request.stop) > MAX_STOPS or not all(1 <= len(stop) <= MAX_STOP_LENGTH for stop in request.stop):
        raise UsageError(
            f"{len(request.stop)} stop strings of {[len(stop) for stop in request.stop][:8]} characters: "
            f"at most {MAX_STOPS} are taken, of 1 to {MAX_STOP_LENGTH} characters"
        )
    if request.format is not None and (request.labels is not None or not request.stop_at_end):
        raise UsageError("a format is not for answers from labels or past the end of turn; leave one out")
    if request.logprobs is not None and not 0 <= request.logprobs <= MAX_TOP:
        raise UsageError(f"logprobs {request.logprobs} is outside 0..{MAX_TOP}; choose a number in it")
