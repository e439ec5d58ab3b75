"""Errors as a client sees them: a status, an OpenAI error body, and when to come back."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse

from shoal.errors import ConflictError, NotFoundError, ShoalError, UnavailableError, UsageError

log = logging.getLogger(__name__)

_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}


_PATH = re.compile(r"(?<![\w.])/(?:[^\s/:;,'\"()]+/)+([^\s/:;,'\"()]*)")
UNREAD = frozenset({"body_too_large", "body_length", "slow"})  # codes after which a body is not read


@dataclass(eq=False)
class Failure(Exception):
    """An answer that is an error.

    Attributes:
        status: of HTTP.
        message: one line.
        kind: OpenAI's `type`.
        code: OpenAI's `code`.
        param: the field that is wrong.
        retry_after: whole seconds after which to ask again.
    """

    status: int
    message: str
    kind: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    retry_after: int | None = None

    def body(self) -> dict[str, Any]:
        """OpenAI's error body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Retry-After, the scheme of keys, and the end of a connection whose body is unread."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.code in UNREAD:
            headers["Connection"] = "close"  # what is left of the body is not read
        return headers

    def response(self, headers: Mapping[str, str] | None = None) -> JSONResponse:
        """The error as a response, with further headers."""
        return JSONResponse(self.body(), self.status, {**self.headers(), **(headers or {})})


def failure_of(error: BaseException, retry_seconds: int) -> Failure:
    """The failure that an error means; one that nobody foresaw says nothing of itself, and is logged."""
    if isinstance(error, Failure):
        return error
    message = " ".join(str(error).split())
    if (full := disk_full(error)) is not None:
        log.error("%s", message)
        said = f"the service cannot write: {full}; try again later"
        return Failure(503, said, "server_error", "unavailable", retry_after=retry_seconds)
    if isinstance(error, NotFoundError):
        return Failure(404, message, code="not_found")
    if isinstance(error, ConflictError):
        return Failure(409, message, code="conflict")
    if isinstance(error, UsageError):
        return Failure(400, message)
    if isinstance(error, UnavailableError):
        said = without_places(message)
        return Failure(503, said, "server_error", "unavailable", retry_after=retry_seconds)
    if isinstance(error, ShoalError):
        log.error("%s", message)
        return Failure(500, without_places(message), "server_error", "failed")
    log.error("a request failed in a way that is not foreseen", exc_info=error)
    return Failure(500, "the service failed; its log says more", "server_error", "failed")


def without_places(message: str) -> str:
    """A message whose files keep their names alone: where they lie is for the log."""
    return _PATH.sub(r"\1", message)


def disk_full(error: BaseException) -> str | None:
    """The disk or quota that is used up, where an error comes of that; None where it does not."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and (full := _FULL.get(link.errno or 0)):
            return full
        link = link.__cause__ or link.__context__
    return None


def not_a_model(name: str) -> Failure:
    """The answer to a name that is neither the base model nor an adapter of this owner or a public one."""
    shown = name if len(name) <= 80 else name[:77] + "..."
    return Failure(
        404,
        f"the model {shown!r} does not exist, or is not for this key; GET /v1/models lists those that are",
        code="model_not_found",
        param="model",
    )
