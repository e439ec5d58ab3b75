"""Dependencies of routes: the open service, and the owner of a request; async, lest each takes a thread."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from shoal.server.service import Service

_bearer = Depends(HTTPBearer(auto_error=False))  # for the schema alone: the guard has checked the key


async def _service(request: Request) -> Service:
    return cast(Service, request.app.state.service)


async def _owner(request: Request, _: object = _bearer) -> str:
    # An AttributeError, so an error, on a path that no guard stands before.
    return cast(str, request.state.owner)


Open = Annotated[Service, Depends(_service)]
Owner = Annotated[str, Depends(_owner)]
