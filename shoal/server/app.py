"""The service over HTTP: routes by noun behind one guard, and errors as OpenAI words them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from shoal.errors import ShoalError
from shoal.server import routes_adapters, routes_completions, routes_operations
from shoal.server.errors import Failure, disk_full, failure_of
from shoal.server.middleware import Guard
from shoal.server.service import Service


def create_app(service: Service) -> FastAPI:
    """The application of an open service; the service is closed when the application stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="Shoal",
        version=version("shoal"),
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        responses={"4XX": {"description": "an OpenAI error body"}, "503": {"description": "try again later"}},
    )
    app.state.service = service
    for routes in (routes_completions, routes_adapters, routes_operations):
        app.include_router(routes.router)
    for kind in (Failure, ShoalError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _failed)
    app.add_middleware(Guard, service=service)
    return app


async def _failed(request: Request, error: Exception) -> JSONResponse:
    failure = _failure(error, request.app.state.service.config.retry_seconds)
    headers = failure.headers()
    if isinstance(error, HTTPException):
        headers |= dict(error.headers or {})
    return JSONResponse(failure.body(), failure.status, headers)


def _failure(error: Exception, retry_seconds: int) -> Failure:
    if isinstance(error, RequestValidationError):
        first: dict[str, Any] = dict(error.errors()[0])
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return Failure(400, f"{where or 'the body'}: {first['msg']}"[:500], param=where[:200] or None)
    if isinstance(error.__cause__, Failure):  # raised while the body was read, which FastAPI words anew
        return error.__cause__
    if isinstance(error, HTTPException) and not disk_full(error):  # else of a body that was to be kept
        return Failure(
            error.status_code, str(error.detail), code="not_found" if error.status_code == 404 else None
        )
    return failure_of(error, retry_seconds)
