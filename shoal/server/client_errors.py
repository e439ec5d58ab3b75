"""Responses of the service that are no success, as one line: its own words, or those of the status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx2

from shoal.errors import ConflictError, NotFoundError, ShoalError, UnavailableError, UsageError

FOREIGN = "what answered is no Shoal service; check the address"


def parsed(content: str | bytes) -> dict[str, Any]:
    """The JSON object of an answer.

    Raises:
        ShoalError: it is none.
    """
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ShoalError(FOREIGN)
    return body


def message_of(body: Mapping[str, Any]) -> str:
    """The message of an error body, in one line; empty where it has none."""
    error = body.get("error")
    return " ".join(str(error.get("message", "")).split())[:500] if isinstance(error, dict) else ""


def failure_of_status(response: httpx2.Response) -> ShoalError:
    """The error that a status means, with the service's own line."""
    status = response.status_code
    try:
        said = message_of(parsed(response.content))
    except ShoalError:
        said = ""
    said = said or f"the service answered with status {status}"
    later = response.headers.get("Retry-After", "")
    again = f"; try again in {later} s" if later.isdecimal() else ""
    if status in (401, 403):
        return ShoalError(f"the service does not take this key ({status}): {said}")
    if status == 404:
        return NotFoundError(f"not found (404): {said}")
    if status == 409:
        return ConflictError(f"refused (409): {said}")
    if status == 429:
        return UnavailableError(f"too many requests (429): {said}{again}")
    if status == 503:
        return UnavailableError(f"the service is busy or cannot answer now (503): {said}{again}")
    return (
        UsageError(f"refused ({status}): {said}")
        if status < 500
        else ShoalError(f"failed ({status}): {said}")
    )
